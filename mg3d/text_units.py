"""Sentences and clauses of a report as character offsets, the polarity of one, and the form in which texts are compared."""

import re
from typing import Literal, NamedTuple

from mg3d.glossary import NEGATION_CUES, NOT_GIVEN

UnitKind = Literal["sentence", "clause"]

# A sentence ends at . ! ? before white space and something that is not lower case, at a line break, a bullet or a double space.
# The full stop of "e.g.", "Dr." or of a figure ("0.8", "no. 3") ends nothing.
_SENTENCE_END = re.compile(
    r"(?:(?<!\b[Ee]\.g)(?<!\b[Ii]\.e)(?<!\b[Dd]r)(?<!\b[Aa]pprox)(?<!\b[Nn]o)(?<!\b[Ff]ig)[.!?]+(?=\s+[^a-z\s]|\s*$))"
    r"|\n+|\s{2,}|[\u2022\u25cf]"
)
_CLAUSE_END = re.compile(r"[,;](?=\s)")
_NEGATION = re.compile(r"\b(?:" + "|".join(re.escape(cue) for cue in NEGATION_CUES) + r")\b", re.IGNORECASE)


class Unit(NamedTuple):
    """A sentence or clause: `report[start:end]`."""

    start: int
    end: int
    section: int
    """0 findings, 1 impression."""
    kind: int
    """0 sentence, 1 clause."""


def clean_section(text: object) -> str | None:
    """A report section with single line breaks and no stray space, or None when the data set left it out.

    Double spaces stay: in CT-RATE's impressions they part the items.
    """
    if not isinstance(text, str) or text.strip().lower() in NOT_GIVEN:
        return None
    lines = (re.sub(r"[\t\r\f\v\u00a0]", " ", line).strip() for line in text.split("\n"))
    return re.sub(r" {3,}", "  ", "\n".join(line for line in lines if line)) or None


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Character offsets of the sentences of `text`; white space at the edges is left out, the final mark is kept."""
    edges, begin = [], 0
    for match in _SENTENCE_END.finditer(text):
        is_mark = text[match.start()] in ".!?"
        edges.append((begin, match.end() if is_mark else match.start()))
        begin = match.end()
    edges.append((begin, len(text)))
    return [span for span in (_trim(text, *edge) for edge in edges) if span]


def split_clauses(text: str) -> list[tuple[int, int]]:
    """Character offsets of the clauses: sentences cut once more at every comma or semicolon outside brackets."""
    spans = []
    for start, end in split_sentences(text):
        begin = start
        for match in _CLAUSE_END.finditer(text, start, end):
            before = text[begin : match.start()]
            if before.count("(") > before.count(")"):
                continue
            spans.append((begin, match.end()))
            begin = match.end()
        spans.append((begin, end))
    return [span for span in (_trim(text, *span) for span in spans) if span]


def report_units(findings: str | None, impression: str | None) -> tuple[str, list[Unit]]:
    """The canonical report (sections joined by a line break) and all its sentences and clauses, in reading order."""
    report, units = "", []
    for section, text in enumerate((findings, impression)):
        if not text:
            continue
        report += "\n" if report else ""
        offset = len(report)
        report += text
        for kind, split in enumerate((split_sentences, split_clauses)):
            units += [Unit(offset + start, offset + end, section, kind) for start, end in split(text)]
    return report, sorted(units, key=lambda unit: (unit.kind, unit.start))


def polarity(text: str) -> int:
    """-1 when the sentence denies a finding or calls something normal, else +1."""
    return -1 if _NEGATION.search(text) else 1


def normalise(text: str) -> str:
    """The text as it is compared between reports: lower case, digits masked, white space and edge punctuation single or gone."""
    return re.sub(r"\s+", " ", re.sub(r"\d+", "#", text.lower())).strip(" .,;:")


def _trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    while start < end and (text[start].isspace() or text[start] in ",;-*"):
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if re.search(r"\w", text[start:end]) else None
