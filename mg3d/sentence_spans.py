"""Sentences and clauses of a report as character offsets, and a normal form to compare texts."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mg3d.languages import Language, language_of

SpanKind = Literal["sentence", "clause"]

SPANS_VERSION = 3
"""Increased when the same report is split differently. Stored in the index files, which every preparation writes again."""

_EDGE = re.compile(
    r"(?P<item>(?<!\S)(?=(?P<number>\(?\d{1,2}\)|\d{1,2}\.|[a-z]\))\s+\S))"
    r"|(?P<space>\s*\n\s*|\s{2,})"
    r"|(?P<bullet>[\u2022\u25cf\u25aa\u2023]|(?<!\S)\*(?=\s))"
    r"|(?P<dash>(?<=\s)[-\u2013](?=\s+[A-Z]))"
    r"|(?P<mark>[.!?\u2026]+[)\]\"'\u201d\u2019]*(?=\s|$)|(?<=[a-z)])\.(?=[A-Z][a-z]))"
)
"""Candidate ends, of which `_Splitter` decides: numbers of items, white space, bullets, dashes, final marks."""
_NEXT_WORD = re.compile(r"\s*(\S*)")
_SIDES = {"L", "R"}
"""Left and right."""
_TITLES = r"dr\.|prof\.|\bby|\bto"
"""Before an initial: `Dr. A. Brown`."""
_ORDINAL = re.compile(r"[CLST]?\d{1,2}", re.IGNORECASE)
_LEADING = ",;-*\u2013\u2014"
"""Removed from the start of a span."""
_CLAUSE_END = re.compile(r"[,;](?=\s)")


class SentenceSpan(NamedTuple):
    """A sentence or clause: `report[start:end]`."""

    start: int
    end: int
    section: int
    """0 findings, 1 impression."""
    kind: int
    """0 sentence, 1 clause."""


def split_sentences(text: str, language: Language | None = None) -> list[tuple[int, int]]:
    """Character offsets of the sentences, without surrounding white space, with the final mark.

    A sentence ends at a line break, a bullet, a double space (unless it cannot end there), the next number of a list
    ("1) ... 2) ..."), and at . ! ? before white space. A full stop does not end a sentence after an abbreviation (`e.g.`,
    `Ser. 4`, `L. lung`), inside a number or bracket, after the number of an item (`1. Emphysema`) and after an ordinal
    (`T4. Vertebra`).

    language: of the text; None recognises it.
    """
    splitter = _Splitter(text, language or language_of(text))
    return [span for span in (_trim(text, *edge) for edge in splitter.edges()) if span]


def split_clauses(text: str, language: Language | None = None) -> list[tuple[int, int]]:
    """Character offsets of the clauses: sentences split at every comma or semicolon outside brackets.

    A bracket that is never closed is ignored; a comma without white space after it (`1,5 cm`) does not split.
    """
    return _split_at_commas(text, split_sentences(text, language))


def _split_at_commas(text: str, sentences: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    spans = []
    for start, end in sentences:
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
    language = language_of(f"{findings} {impression}")
    for section, text in enumerate((findings, impression)):
        if not text:
            continue
        report += "\n" if report else ""
        offset = len(report)
        report += text
        sentences = split_sentences(text, language)
        for kind, parts in enumerate((sentences, _split_at_commas(text, sentences))):
            spans += [SentenceSpan(offset + start, offset + end, section, kind) for start, end in parts]
    return report, sorted(spans, key=lambda span: (span.kind, span.start))


def normalize_text(text: str) -> str:
    """A text for comparison between reports: lower case, digits masked, single spaces, no punctuation at the ends."""
    return re.sub(r"\s+", " ", re.sub(r"\d+", "#", text.lower())).strip(" .,;:")


def text_key(text: str) -> int:
    """63-bit hash, equal in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class _Splitter:
    """One pass over the candidate ends of a text."""

    def __init__(self, text: str, language: Language) -> None:
        self.text, self.language = text, language
        self.begin = 0
        self.is_dash_list = False
        """Whether the line starts with a dash, so that later dashes in it start items."""
        self.last_number: Counter[str] = Counter()
        """Kind of list -> number of its last item."""

    def edges(self) -> list[tuple[int, int]]:
        """Begin and end of the sentences, not trimmed."""
        edges = []
        self._start(0)
        for match in _EDGE.finditer(self.text):
            if not self._is_end(match):
                continue
            edges.append((self.begin, match.end() if match["mark"] else match.start()))
            self._start(match.end())
        return [*edges, (self.begin, len(self.text))]

    def _start(self, begin: int) -> None:
        self.begin = begin
        if begin == 0 or self.text[begin - 1] == "\n":
            self.is_dash_list = re.match(r"\s*[-\u2013]\s", self.text[begin : begin + 9]) is not None

    def _is_end(self, match: re.Match[str]) -> bool:
        if match["bullet"]:
            return True
        if match["dash"]:
            return self.is_dash_list
        if match["space"]:
            return self._ends_at_space(match)
        return self._ends_at_mark(match) if match["mark"] else self._ends_at_item(match)

    def _ends_at_space(self, match: re.Match[str]) -> bool:
        """Double spaces end a sentence unless the words around them show that it continues."""
        before = self.text[self.begin : match.start()]
        words = (before.split() or [""])[-1].lower(), _NEXT_WORD.match(self.text, match.end())[1].lower()
        return "\n" in match[0] or not (before.endswith(",") or self.language.open_words.intersection(words))

    def _ends_at_item(self, match: re.Match[str]) -> bool:
        """The next number of a list ends the item before it."""
        label, name = match["number"], match["number"].strip("().")
        kind, number = label.replace(name, ""), int(name) if name.isdigit() else ord(name) - ord("a") + 1
        kind += "a" if name.isalpha() else ""
        before = self.text[self.begin : match.start()].strip(_LEADING + " \t\n")
        is_next = self.last_number[kind] + 1 == number
        if before and not (is_next and number > 1 and self._may_follow(before, label, match.end() + len(label))):
            return False
        if is_next or number == 1:
            self.last_number[kind] = number
        return bool(before)

    def _may_follow(self, before: str, label: str, end: int) -> bool:
        """Whether an item may start after `before`; `end` is the end of its label."""
        if before.count("(") > before.count(")"):
            return False
        follows_noun = before.split()[-1].lower() in self.language.nouns_before_number
        return not label.endswith(".") or (self._following(end)[0].isupper() and not follows_noun)

    def _ends_at_mark(self, match: re.Match[str]) -> bool:
        following = self._following(match.end())
        if not following:
            return True
        before = self.text[self.begin : match.start()].strip(_LEADING + " \t\n")
        word = re.split(r"[\s(\[/]", before)[-1]
        is_query = match[0] == "?" and (not before or self.text[match.start() - 1].isspace())
        if is_query or self._is_inside_bracket(before, match):
            return False
        if not match[0].startswith(".") or len(match[0]) > 1:
            return not following[0].islower()
        is_item_number = word == before and re.fullmatch(r"\d{1,2}", word)
        is_numbered = len(words := before.split()) > 1 and words[-2].lower() in self.language.nouns_before_number
        is_ordinal = _ORDINAL.fullmatch(word) and _starts(self.language.nouns_after_ordinal, following) and not is_numbered
        return not (is_item_number or is_ordinal or self._is_abbreviation(word, before, following))

    def _is_abbreviation(self, word: str, before: str, following: str) -> bool:
        language, lower = self.language, word.lower()
        if lower in language.abbreviations:
            return True
        if len(word) == 1 and word.isupper():  # "L. lung", "Dr. A. Brown", but "Stanford type A. The flap"
            is_initial = re.search(rf"(?:{_TITLES}|\b[A-Z]\.)\s+.$", before, re.IGNORECASE)
            is_side = word in _SIDES and _matches(language.nouns_after_side, following.rstrip(".,;:"))
            return word == before or bool(is_initial) or is_side
        if lower in language.abbreviations_before_lower_case:
            return following[0].islower() or following[0].isdigit()
        return lower in language.abbreviations_before_number and following[0].isdigit()

    def _is_inside_bracket(self, before: str, match: re.Match[str]) -> bool:
        """Whether a bracket is open at a mark and closed later in the same line."""
        if before.count("(") <= before.count(")") + match[0].count(")"):
            return False
        line_rest = re.split(r"\s{2,}|\n|[\u2022\u25cf\u25aa\u2023]", self.text[match.end() :], maxsplit=1)[0]
        return ")" in line_rest

    def _following(self, index: int) -> str:
        return _NEXT_WORD.match(self.text, index)[1]


def _trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    while start < end and (text[start].isspace() or text[start] in _LEADING):
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if re.search(r"[^\W_]", text[start:end]) else None


def _matches(patterns: tuple[str, ...], word: str) -> bool:
    return re.fullmatch("|".join(patterns), word, re.IGNORECASE) is not None


def _starts(patterns: tuple[str, ...], word: str) -> bool:
    return re.match("|".join(patterns), word, re.IGNORECASE) is not None
