"""A synthetic report and the truth of each of its clauses."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mg3d.glossary import LABELS
from mg3d.phantom.pathology import Finding
from mg3d.phantom.wording import (
    CONNECTIVES,
    DISTRACTORS,
    GRADES,
    NEGATIVE,
    NORMAL,
    NOTHING_FOUND,
    POSITIVE,
    UNCERTAIN,
    WORDS,
)

MENTION_PRESENT, MENTION_ABSENT, CHECKLIST_ABSENT = 0.97, 0.55, 0.9
CHECKLIST = ("Pleural effusion", "Pericardial effusion", "Lymphadenopathy")
UNSURE, OWN_WORDS, NOISE = 0.08, 0.3, 0.02

Style = Literal["ctrate", "ctrg"]


class Clause(NamedTuple):
    """One statement."""

    text: str
    label: str
    """Empty where it is about none of the 18."""
    polarity: str
    """+ states, - denies or calls normal, ? is unsure."""
    location: str
    """side and lobe, or empty."""


class Report(NamedTuple):
    """Sections as a data set gives them, and every clause in them."""

    findings: str
    impression: str
    clauses: tuple[Clause, ...]


class Writer:
    """Words the findings of one patient."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def pick(self, options: Sequence[str]) -> str:
        """One of several."""
        return options[int(self.generator.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.generator.random() < probability)

    def statement(self, label: str, finding: Finding | None, *, unsure: bool = False) -> Clause:
        """A clause on one finding, which is there or (None) is not."""
        words = WORDS[label]
        if finding is None:
            template = self.pick(words.negative) if self.chance(OWN_WORDS) else self.pick(NEGATIVE)
        elif unsure:
            template = self.pick(UNCERTAIN)
        else:
            template = self.pick(words.positive) if self.chance(OWN_WORDS) else self.pick(POSITIVE)
        name = self.pick(words.names) if self.chance(0.4) else words.names[0]
        polarity = "-" if finding is None else "?" if unsure else "+"
        place = place_of(finding) if finding else ""
        return Clause(self.fill(template, name, finding), label, polarity, place if "{where}" in template else "")

    def fill(self, template: str, name: str, finding: Finding | None) -> str:
        """The template in words; the first letter is a capital."""
        size = round(finding.size_mm + float(self.generator.uniform(-1, 1))) if finding else int(self.generator.integers(5, 20))
        number = f"{size}.0" if self.chance(NOISE) else str(size)
        grade = GRADES[finding.severity - 1] if finding else GRADES[0]
        text = template.format(name=name, Name=capital(name), where=where_of(finding), size=number, grade=grade)
        return capital(text)

    def noisy(self, clause: Clause) -> Clause:
        """The clause with two letters of a long word exchanged, rarely."""
        long_words = list(re.finditer(r"[a-z]{7,}", clause.text))
        if clause.polarity == "-" or not long_words or not self.chance(NOISE):
            return clause
        place = long_words[int(self.generator.integers(len(long_words)))].start() + 3
        letters = list(clause.text)
        letters[place], letters[place + 1] = letters[place + 1], letters[place]
        return clause._replace(text="".join(letters))


def write_report(findings: Mapping[str, Finding | None], *, style: Style, generator: np.random.Generator) -> Report:
    """A report on the 18 findings (label -> what was drawn, or None)."""
    writer = Writer(generator)
    clauses = [writer.noisy(clause) for clause in _body(findings, writer)]
    if style == "ctrate":
        clauses = [_connect(clause, writer) for clause in clauses]
        text, impression, concluded = _sentences(clauses, writer), *_impression(findings, writer, separator="  ")
        if writer.chance(0.03):
            impression, concluded = "Not given.", []
        elif writer.chance(0.01):
            impression, concluded = "", []
    else:
        clauses = [_cite(clause, writer) for clause in clauses]
        text = _chains(clauses, writer)
        impression, concluded = _impression(findings, writer, separator=", ")
    return Report(text, impression, (*clauses, *concluded))


def _body(findings: Mapping[str, Finding | None], writer: Writer) -> list[Clause]:
    spoken: dict[str, list[Clause]] = {organ: [] for organ in NORMAL}
    for label in LABELS:
        finding = findings[label]
        absent = CHECKLIST_ABSENT if label in CHECKLIST else MENTION_ABSENT
        if writer.chance(MENTION_PRESENT if finding else absent):
            unsure = finding is not None and writer.chance(UNSURE)
            spoken[WORDS[label].organ].append(writer.statement(label, finding, unsure=unsure))
    for organ, options in NORMAL.items():
        if writer.chance(0.35):
            spoken[organ].append(Clause(writer.pick(options), "", "-", ""))
    for organ, options in DISTRACTORS.items():
        if writer.chance(0.08):
            spoken[organ].append(Clause(writer.fill(writer.pick(options), "", None), "", "+", ""))
    organs = list(NORMAL)
    return [clause for place in writer.generator.permutation(len(organs)) for clause in spoken[organs[place]]]


def _connect(clause: Clause, writer: Writer) -> Clause:
    if not writer.chance(0.08):
        return clause
    return clause._replace(text=writer.pick(CONNECTIVES) + small(clause.text))


def _cite(clause: Clause, writer: Writer) -> Clause:
    """Now and then with the number of a slice."""
    if clause.polarity != "+" or not writer.chance(0.1):
        return clause
    return clause._replace(text=clause.text.removesuffix(".") + f" (img{int(writer.generator.integers(10, 250))}).")


def _sentences(clauses: Sequence[Clause], writer: Writer) -> str:
    """Full sentences, now and then two of them joined by a semicolon."""
    text = ""
    for clause in clauses:
        if text and writer.chance(0.1):
            text = text.removesuffix(".") + "; " + small(clause.text)
        else:
            text += (" " if text else "") + clause.text
    return text


def _chains(clauses: Sequence[Clause], writer: Writer) -> str:
    """Clauses chained by commas, three to six in a sentence."""
    text, left = "", 0
    for clause in clauses:
        words = clause.text.removesuffix(".")
        if left == 0:
            text, left = text + (". " if text else "") + words, int(writer.generator.integers(3, 7))
        else:
            text += ", " + small(words)
        left -= 1
    return text + "."


def _impression(findings: Mapping[str, Finding | None], writer: Writer, *, separator: str) -> tuple[str, list[Clause]]:
    """What matters: findings of at least moderate severity, or that there is nothing."""
    clauses = []
    for label, finding in findings.items():
        if finding is not None and finding.severity >= 2:
            name = capital(WORDS[label].names[0])
            clauses.append(Clause(name + where_of(finding), label, "+", place_of(finding)))
    clauses = clauses or [Clause(writer.pick(NOTHING_FOUND), "", "-", "")]
    return separator.join(clause.text for clause in clauses), clauses


def place_of(finding: Finding) -> str:
    """Side and lobe, or empty."""
    return f"{finding.side} {finding.lobe}".strip()


def where_of(finding: Finding | None) -> str:
    """Side and lobe as they stand in a sentence, with a leading space, or empty."""
    if finding is None or not finding.side:
        return ""
    if finding.side == "bilateral":
        return " on both sides"
    in_lobe = finding.lobe and finding.label != "Pleural effusion"
    return f" in the {finding.side} {finding.lobe} lobe" if in_lobe else f" on the {finding.side}"


def capital(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]


def small(text: str) -> str:
    """With a small first letter."""
    return text[:1].lower() + text[1:]
