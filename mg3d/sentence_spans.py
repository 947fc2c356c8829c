"""Sentences and clauses of a report as character offsets, the polarity of one, and the form in which texts are compared."""

import hashlib
import re
from typing import Literal, NamedTuple

from mg3d.glossary import NEGATION_CUES, NOT_GIVEN

UnitKind = Literal["sentence", "clause"]

UNITS_VERSION = 2
"""Rises when the same report is cut in another way. It stands in the index files, which every preparation writes anew."""

_EDGE = re.compile(r"\n+|\s{2,}|[\u2022\u25cf\u25aa\u2023]|[.!?\u2026]+[)\]\"'\u201d\u2019]*(?=\s|$)")
"""Where a sentence may end: line breaks, double spaces and bullets always, marks before white space as `_is_end` tells."""
_MARKS = ".!?\u2026"
_FOLLOWING = re.compile(r"\s*(\S*)")
_NEVER_LAST = {"e.g", "i.e", "dr", "prof", "approx", "vs", "cf", "al"}
_SIDES = {"L", "R"}
_BEFORE_FIGURE = {"no", "nr", "fig", "figs", "img", "ca"}
"""Abbreviations when a figure follows: `no. 3`; without it the word is a word."""
_ORDINAL = re.compile(r"[CLST]?\d{1,2}", re.IGNORECASE)
_COUNTED = ("vertebra", "rib", "costa", "segment", "intercostal")
"""What Turkish spelling counts with a full stop: `T4. Vertebra`, `9. Rib`."""
_LEADING = ",;-*\u2013\u2014"
"""Left out at the beginning of a unit."""
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
    """Character offsets of the sentences of `text`; white space at the edges is left out, the final mark is kept.

    A sentence ends at a line break, a bullet, a double space, and at . ! ? before white space and what is not lower case. The
    full stop of an abbreviation (`e.g.`, `L. lung`), of a figure (`0.8`, `3.Subcarinal`), of an item's number at the beginning
    (`1. Emphysema`) or of an ordinal (`T4. Vertebra`) ends nothing.
    """
    edges, begin = [], 0
    for match in _EDGE.finditer(text):
        is_mark = text[match.start()] in _MARKS
        if is_mark and not _is_end(text, begin, match):
            continue
        edges.append((begin, match.end() if is_mark else match.start()))
        begin = match.end()
    edges.append((begin, len(text)))
    return [span for span in (_trim(text, *edge) for edge in edges) if span]


def split_clauses(text: str) -> list[tuple[int, int]]:
    """Character offsets of the clauses: sentences cut once more at every comma or semicolon outside brackets.

    A bracket that is never closed is none; a comma without white space after it (`1,5 cm`) cuts nothing.
    """
    spans = []
    for start, end in split_sentences(text):
        begin = start
        for match in _CLAUSE_END.finditer(text, start, end):
            before = text[begin : match.start()]
            if before.count("(") > before.count(")") and text.find(")", match.end(), end) >= 0:
                continue
            spans.append((begin, match.end()))
            begin = match.end()
        spans.append((begin, end))
    return [span for span in (_trim(text, *span) for span in spans) if span]


def original_clauses(*sections: str | None) -> list[list[str]]:
    """The clauses of each section as the released preparation cuts them, for comparison; nothing is trained on them.

    White space is made single, the text cut at every `. ` (which is lost) and then behind every comma or semicolon outside
    parentheses. `report_units` differs in this: the full stop stays; ! ? line breaks, bullets and double spaces cut as well;
    abbreviations, items' numbers and ordinals do not; a full stop before lower case does not; a comma within a figure or word
    does not; clauses are offsets into one report instead of copies.
    """
    pieces = (" ".join((section or "").split()).split(". ") for section in sections)
    return [[clause for piece in part for clause in _cut_outside_brackets(piece)] for part in pieces]


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


def _is_end(text: str, begin: int, mark: re.Match[str]) -> bool:
    """Whether a mark before white space ends the sentence that began at `begin`."""
    following = _FOLLOWING.match(text, mark.end())[1]
    if not following or following[0].islower():
        return not following
    before = text[begin : mark.start()].strip(_LEADING + " \t\n")
    word = re.split(r"[\s(\[]", before)[-1]
    if not mark[0].startswith(".") or mark[0].startswith(".."):
        return True
    is_item_number = word == before and re.fullmatch(r"\d{1,2}", word)
    is_ordinal = _ORDINAL.fullmatch(word) and following.lower().startswith(_COUNTED)
    is_short = word in _SIDES or word.lower() in _NEVER_LAST
    return not (is_item_number or is_ordinal or is_short or (word.lower() in _BEFORE_FIGURE and following[0].isdigit()))


def _cut_outside_brackets(piece: str) -> list[str]:
    """Pieces of a text, each up to and with a comma or semicolon."""
    found, depth, begin = [], 0, 0
    for place, letter in enumerate(piece):
        depth = max(0, depth + {"(": 1, ")": -1}.get(letter, 0))
        if letter in ",;" and not depth:
            found.append(piece[begin : place + 1].strip())
            begin = place + 1
    found.append(piece[begin:].strip())
    return [clause for clause in found if clause]


def _trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    while start < end and (text[start].isspace() or text[start] in _LEADING):
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if re.search(r"\w", text[start:end]) else None


def text_key(text: str) -> int:
    """A 63-bit number that is equal for equal texts, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
