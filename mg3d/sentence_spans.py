"""Sentences and clauses of a report as character offsets, their polarity, and a normal form to compare texts."""

import hashlib
import re
from typing import Literal, NamedTuple

from mg3d.glossary import NEGATION_CUES, NOT_GIVEN

SpanKind = Literal["sentence", "clause"]

SPANS_VERSION = 2
"""Increased when the same report is split differently. Stored in the index files, which every preparation writes again."""

_EDGE = re.compile(r"\n+|\s{2,}|[\u2022\u25cf\u25aa\u2023]|[.!?\u2026]+[)\]\"'\u201d\u2019]*(?=\s|$)")
"""Candidate ends: line breaks, double spaces and bullets always end a sentence, marks before white space if `_is_end`."""
_MARKS = ".!?\u2026"
_NEXT_WORD = re.compile(r"\s*(\S*)")
_ABBREVIATIONS = {"e.g", "i.e", "dr", "prof", "approx", "vs", "cf", "al"}
_SIDES = {"L", "R"}
_ABBREVIATIONS_BEFORE_NUMBER = {"no", "nr", "fig", "figs", "img", "ca"}
_ORDINAL = re.compile(r"[CLST]?\d{1,2}", re.IGNORECASE)
_NOUNS_AFTER_ORDINAL = ("vertebra", "rib", "costa", "segment", "intercostal")
"""Turkish spelling writes ordinals with a full stop: `T4. Vertebra`, `9. Rib`."""
_LEADING = ",;-*\u2013\u2014"
"""Removed from the start of a span."""
_CLAUSE_END = re.compile(r"[,;](?=\s)")
_NEGATION = re.compile(r"\b(?:" + "|".join(re.escape(cue) for cue in NEGATION_CUES) + r")\b", re.IGNORECASE)


class SentenceSpan(NamedTuple):
    """A sentence or clause: `report[start:end]`."""

    start: int
    end: int
    section: int
    """0 findings, 1 impression."""
    kind: int
    """0 sentence, 1 clause."""


def clean_section(text: object) -> str | None:
    """A report section with single line breaks and without stray spaces; None for a missing or "not given" section.

    Double spaces are preserved: they separate the items of CT-RATE's impressions.
    """
    if not isinstance(text, str) or text.strip().lower() in NOT_GIVEN:
        return None
    lines = (re.sub(r"[\t\r\f\v\u00a0]", " ", line).strip() for line in text.split("\n"))
    return re.sub(r" {3,}", "  ", "\n".join(line for line in lines if line)) or None


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Character offsets of the sentences, without surrounding white space, with the final mark.

    A sentence ends at a line break, a bullet, a double space, and at . ! ? before white space unless a lower-case word follows.
    A full stop does not end a sentence after an abbreviation (`e.g.`, `L. lung`), inside a number (`0.8`, `3.Subcarinal`), after
    the number of an item (`1. Emphysema`) and after an ordinal (`T4. Vertebra`).
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
    """Character offsets of the clauses: sentences split at every comma or semicolon outside brackets.

    A bracket that is never closed is ignored; a comma without white space after it (`1,5 cm`) does not split.
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


def build_report(findings: str | None, impression: str | None) -> tuple[str, list[SentenceSpan]]:
    """The report (sections joined by a line break) and its spans: all sentences, then all clauses, in reading order."""
    report, spans = "", []
    for section, text in enumerate((findings, impression)):
        if not text:
            continue
        report += "\n" if report else ""
        offset = len(report)
        report += text
        for kind, split in enumerate((split_sentences, split_clauses)):
            spans += [SentenceSpan(offset + start, offset + end, section, kind) for start, end in split(text)]
    return report, sorted(spans, key=lambda span: (span.kind, span.start))


def polarity(text: str) -> int:
    """-1 if a sentence negates a finding or calls something normal, else +1."""
    return -1 if _NEGATION.search(text) else 1


def normalize_text(text: str) -> str:
    """A text for comparison between reports: lower case, digits masked, single spaces, no punctuation at the ends."""
    return re.sub(r"\s+", " ", re.sub(r"\d+", "#", text.lower())).strip(" .,;:")


def text_key(text: str) -> int:
    """63-bit hash, equal in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _is_end(text: str, begin: int, mark: re.Match[str]) -> bool:
    """Whether a mark before white space ends the sentence that starts at `begin`."""
    following = _NEXT_WORD.match(text, mark.end())[1]
    if not following or following[0].islower():
        return not following
    before = text[begin : mark.start()].strip(_LEADING + " \t\n")
    word = re.split(r"[\s(\[]", before)[-1]
    if not mark[0].startswith(".") or mark[0].startswith(".."):
        return True
    is_item_number = word == before and re.fullmatch(r"\d{1,2}", word)
    is_ordinal = _ORDINAL.fullmatch(word) and following.lower().startswith(_NOUNS_AFTER_ORDINAL)
    is_abbreviation = word in _SIDES or word.lower() in _ABBREVIATIONS
    is_number_prefix = word.lower() in _ABBREVIATIONS_BEFORE_NUMBER and following[0].isdigit()
    return not (is_item_number or is_ordinal or is_abbreviation or is_number_prefix)


def _trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    while start < end and (text[start].isspace() or text[start] in _LEADING):
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if re.search(r"\w", text[start:end]) else None
