"""Synthetic reports and the ground truth of each of their clauses."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mg3d.glossary import LABELS
from mg3d.phantom import wording
from mg3d.phantom.pathology import DrawnFinding

P_MENTION_PRESENT, P_MENTION_ABSENT, P_CHECKLIST_ABSENT = 0.97, 0.55, 0.9
CHECKLIST = ("Pleural effusion", "Pericardial effusion", "Lymphadenopathy")
P_UNCERTAIN, P_SPECIFIC_PHRASE, P_TYPO = 0.08, 0.3, 0.02

Style = Literal["ctrate", "ctrg"]


class Clause(NamedTuple):
    """One statement."""

    text: str
    label: str
    """One of the 18 labels, or empty."""
    polarity: str
    """+ present, - absent or normal, ? uncertain."""
    location: str
    """Side and lobe, or empty."""


class PhantomReport(NamedTuple):
    """The two sections and all their clauses."""

    findings: str
    impression: str
    clauses: tuple[Clause, ...]


class Writer:
    """Random choices of one report."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def pick(self, options: Sequence[str]) -> str:
        """Random element."""
        return options[int(self.generator.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.generator.random() < probability)

    def statement(self, label: str, finding: DrawnFinding | None, *, uncertain: bool = False) -> Clause:
        """Clause about one finding; None = absent."""
        phrases = wording.PHRASES[label]
        if finding is None:
            template = self.pick(phrases.negative) if self.chance(P_SPECIFIC_PHRASE) else self.pick(wording.NEGATIVE)
        elif uncertain:
            template = self.pick(wording.UNCERTAIN)
        else:
            template = self.pick(phrases.positive) if self.chance(P_SPECIFIC_PHRASE) else self.pick(wording.POSITIVE)
        name = self.pick(phrases.names) if self.chance(0.4) else phrases.names[0]
        polarity = "-" if finding is None else "?" if uncertain else "+"
        location = location_of(finding) if finding and "{where}" in template else ""
        return Clause(self.fill(template, name, finding), label, polarity, location)

    def fill(self, template: str, name: str, finding: DrawnFinding | None) -> str:
        """Fill a template; the first letter is upper case."""
        size = round(finding.size_mm + float(self.generator.uniform(-1, 1))) if finding else int(self.generator.integers(5, 20))
        number = f"{size}.0" if self.chance(P_TYPO) else str(size)
        grade = wording.GRADES[finding.severity - 1] if finding else wording.GRADES[0]
        text = template.format(name=name, Name=capitalized(name), where=where_of(finding), size=number, grade=grade)
        return capitalized(text)

    def with_typo(self, clause: Clause) -> Clause:
        """Rarely swap two letters of a long word."""
        long_words = list(re.finditer(r"[a-z]{7,}", clause.text))
        if clause.polarity == "-" or not long_words or not self.chance(P_TYPO):
            return clause
        start = long_words[int(self.generator.integers(len(long_words)))].start() + 3
        text = clause.text
        return clause._replace(text=text[:start] + text[start + 1] + text[start] + text[start + 2 :])

    def with_connective(self, clause: Clause) -> Clause:
        """Sometimes start with a connective."""
        return clause._replace(text=self.pick(wording.CONNECTIVES) + uncapitalized(clause.text)) if self.chance(0.08) else clause

    def with_slice_number(self, clause: Clause) -> Clause:
        """Sometimes cite a slice number in a positive statement."""
        if clause.polarity != "+" or not self.chance(0.1):
            return clause
        return clause._replace(text=clause.text.removesuffix(".") + f" (img{int(self.generator.integers(10, 250))}).")


def write_report(findings: Mapping[str, DrawnFinding | None], *, style: Style, generator: np.random.Generator) -> PhantomReport:
    """Write a report on the 18 findings (label -> finding, or None)."""
    writer = Writer(generator)
    clauses = [writer.with_typo(clause) for clause in _body(findings, writer)]
    if style == "ctrg":
        clauses = [writer.with_slice_number(clause) for clause in clauses]
        text = _chains(clauses, writer)
        impression = _impression(findings, writer)
        return PhantomReport(text, ", ".join(clause.text for clause in impression), (*clauses, *impression))
    clauses = [writer.with_connective(clause) for clause in clauses]
    text = _sentences(clauses, writer)
    impression = _impression(findings, writer)
    if writer.chance(0.03):
        return PhantomReport(text, "Not given.", tuple(clauses))
    if writer.chance(0.01):
        return PhantomReport(text, "", tuple(clauses))
    return PhantomReport(text, "  ".join(clause.text for clause in impression), (*clauses, *impression))


def _body(findings: Mapping[str, DrawnFinding | None], writer: Writer) -> list[Clause]:
    clauses: dict[str, list[Clause]] = {organ: [] for organ in wording.NORMAL}
    for label in LABELS:
        finding = findings[label]
        absent = P_CHECKLIST_ABSENT if label in CHECKLIST else P_MENTION_ABSENT
        if writer.chance(P_MENTION_PRESENT if finding else absent):
            uncertain = finding is not None and writer.chance(P_UNCERTAIN)
            clauses[wording.PHRASES[label].organ].append(writer.statement(label, finding, uncertain=uncertain))
    for organ, options in wording.NORMAL.items():
        if writer.chance(0.35):
            clauses[organ].append(Clause(writer.pick(options), "", "-", ""))
    for organ, options in wording.DISTRACTORS.items():
        if writer.chance(0.08):
            clauses[organ].append(Clause(writer.fill(writer.pick(options), "", None), "", "+", ""))
    organs = list(wording.NORMAL)
    return [clause for index in writer.generator.permutation(len(organs)) for clause in clauses[organs[index]]]


def _sentences(clauses: Sequence[Clause], writer: Writer) -> str:
    """Full sentences; some are joined by a semicolon."""
    text = ""
    for clause in clauses:
        if text and writer.chance(0.1):
            text = text.removesuffix(".") + "; " + uncapitalized(clause.text)
        else:
            text += (" " if text else "") + clause.text
    return text


def _chains(clauses: Sequence[Clause], writer: Writer) -> str:
    """Sentences of three to six clauses joined by commas."""
    text, remaining = "", 0
    for clause in clauses:
        words = clause.text.removesuffix(".")
        if remaining == 0:
            text, remaining = text + (". " if text else "") + words, int(writer.generator.integers(3, 7))
        else:
            text += ", " + uncapitalized(words)
        remaining -= 1
    return text + "."


def _impression(findings: Mapping[str, DrawnFinding | None], writer: Writer) -> list[Clause]:
    """Findings of at least moderate severity, or a statement that nothing was found."""
    clauses = []
    for label, finding in findings.items():
        if finding is not None and finding.severity >= 2:
            name = capitalized(wording.PHRASES[label].names[0])
            clauses.append(Clause(name + where_of(finding), label, "+", location_of(finding)))
    return clauses or [Clause(writer.pick(wording.NOTHING_FOUND), "", "-", "")]


def location_of(finding: DrawnFinding) -> str:
    """Side and lobe, or empty."""
    return f"{finding.side} {finding.lobe}".strip()


def where_of(finding: DrawnFinding | None) -> str:
    """Location phrase with a leading space, or empty."""
    if finding is None or not finding.side:
        return ""
    if finding.side == "bilateral":
        return " on both sides"
    in_lobe = finding.lobe and finding.label != "Pleural effusion"
    return f" in the {finding.side} {finding.lobe} lobe" if in_lobe else f" on the {finding.side}"


def capitalized(text: str) -> str:
    """Text with an upper-case first letter."""
    return text[:1].upper() + text[1:]


def uncapitalized(text: str) -> str:
    """Text with a lower-case first letter."""
    return text[:1].lower() + text[1:]
