"""Whether sentences state a finding, deny it or are uncertain: cue words with a scope, as in NegEx and ConText.

A cue applies forward or backward to the findings in its scope (Chapman et al., J Biomed Inform 2001; Harkema et al., 2009). The
scope ends at a termination ("but"), a semicolon, and at a comma unless a list continues. Pseudo-negations ("no change") deny
nothing. In addition, a sentence that calls something normal counts as negated. The words are in `mg3d/languages`.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import takewhile
from typing import NamedTuple

from mg3d.languages import Language, language_of

AFFIRMED, NEGATED, UNCERTAIN = 1, -1, 2
_SIZE = re.compile(r"\d\s*(?:mm|cm)\b")
_WORD = re.compile(r"[^\W\d_]+")
MAX_ITEM = 5
"""Words of an item of a list that a cue of another item covers."""


class _Patterns(NamedTuple):
    """Compiled tables of a language."""

    cue: re.Pattern[str]
    """For lower-case text, which is three times as fast as IGNORECASE. One named group per kind of cue; longer cues are tried
    before the shorter ones that they contain."""
    last_negated_item: re.Pattern[str]
    last_item: re.Pattern[str]
    anatomy: re.Pattern[str]


@cache
def _patterns(language: Language) -> _Patterns:
    kinds = {
        "pseudo": language.pseudo_negations,
        "doubt_around": language.doubts_around,
        "doubt_backward": language.doubts_backward,
        "negation_backward": language.negations_backward,
        "end": language.terminations,
        "negation_forward": language.negations_forward,
        "doubt_forward": language.doubts_forward,
        "normal": language.normals,
        "finding": language.findings,
        "verb": language.verbs,
    }
    groups = "|".join(f"(?P<{kind}>{'|'.join(patterns)})" for kind, patterns in kinds.items())
    small_words = language.open_words | language.function_words
    return _Patterns(
        re.compile(rf"(?<!\w)(?:{groups})(?!\w)|(?P<semicolon>;)|(?P<comma>,(?=\s|$))"),
        re.compile(rf"\b(?:{'|'.join(language.alternatives)})\b", re.IGNORECASE),
        re.compile(rf"\b(?:{'|'.join([*language.alternatives, *language.additions])})\b", re.IGNORECASE),
        re.compile("|".join([*language.anatomy, *map(re.escape, small_words)]), re.IGNORECASE),
    )


class _Piece:
    """Part of a sentence between two ends of scope."""

    def __init__(self, text: str, start: int, *, after_comma: bool) -> None:
        self.text, self.start, self.after_comma = text, start, after_comma
        self.end = len(text)
        self.cues: list[str] = []
        """Kinds of the cues and findings, in order."""
        self.positions: list[int] = []
        self.carried = ""
        """Forward cue of an earlier item of the same list."""
        self.referred = ""
        """Backward cue of a later item of the same list."""

    @property
    def words(self) -> str:
        """The text of the piece."""
        return self.text[self.start : self.end]

    @property
    def is_item(self) -> bool:
        """Whether it may be an item of a list: short, without a verb, and without a cue besides findings."""
        return set(self.cues) <= {"finding"} and len(self.words.split()) <= MAX_ITEM

    @property
    def is_open(self) -> bool:
        """Whether its last cue is not followed by a verb: "no mass is seen, ..." is complete."""
        return next((kind != "verb" for kind in reversed(self.cues) if kind != "finding"), True)

    def cues_before(self, index: int) -> set[str]:
        """Kinds of the cues before an index of `words`."""
        return {kind for kind, position in zip(self.cues, self.positions) if position < self.start + index}

    def last(self, direction: str) -> str:
        """The last cue of a direction, or the one carried into the piece."""
        return next((kind for kind in reversed(self.cues) if kind.endswith((direction, "around"))), self.carried)

    def polarity(self) -> int:
        """Of the piece; 0 if it says nothing about a finding."""
        found = {self._polarity_of(index) for index, kind in enumerate(self.cues) if kind == "finding"}
        if found:
            return _strongest(found)
        kinds = {kind.partition("_")[0] for kind in [*self.cues, self.carried, self.referred]}
        if kinds & {"negation", "normal"}:
            return NEGATED
        if "doubt" in kinds:
            return UNCERTAIN
        return AFFIRMED if _SIZE.search(self.words) else 0

    def _polarity_of(self, index: int) -> int:
        """Of the finding at an index of `cues`."""
        before = [kind for kind in self.cues[:index] if kind.endswith(("forward", "around"))]
        after = [kind for kind in self.cues[index + 1 :] if kind.endswith(("backward", "around"))]
        kinds = {kind.partition("_")[0] for kind in [*before, *after, self.carried, self.referred]}
        return NEGATED if "negation" in kinds else UNCERTAIN if "doubt" in kinds else AFFIRMED


def polarity(text: str, language: Language | None = None) -> int:
    """1 if a sentence states a finding, -1 if it negates all findings or calls something normal, 2 if it is uncertain.

    language: of the text; None recognises it.
    """
    pieces = _pieces(text, language or language_of(text))
    return _strongest({value for _, _, value in pieces if value} or {AFFIRMED})


def span_polarities(report: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """`polarity` of spans of a report (ascending). A clause is read in the context of its sentence.

    "No effusion, mass or nodule": the negation covers all three clauses. "Heart size, contours are normal": so does the cue.
    """
    language, polarities = language_of(report), []
    for sentence in _sentences(report, spans):
        start = sentence[0][0]
        pieces = _pieces(report[start : sentence[-1][1]], language)
        found = [
            _strongest({value for begin, end, value in pieces if begin < last - start and end > first - start})
            for first, last in sentence
        ]
        polarities += [value or AFFIRMED for value in found]
    return polarities


def _sentences(report: str, spans: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Spans grouped by sentence: a span that ends with a comma is continued by the next one."""
    groups: list[list[tuple[int, int]]] = []
    for start, end in spans:
        if groups and report[groups[-1][-1][1] - 1] == "," and "\n" not in report[groups[-1][-1][1] : start]:
            groups[-1].append((start, end))
        else:
            groups.append([(start, end)])
    return groups


def _strongest(polarities: set[int]) -> int:
    """What a sentence with parts of these polarities is: a stated finding outweighs uncertain and negated ones."""
    return next((value for value in (AFFIRMED, UNCERTAIN, NEGATED) if value in polarities), 0)


@lru_cache(maxsize=1 << 16)
def _pieces(text: str, language: Language) -> list[tuple[int, int, int]]:
    """Start, end and polarity (0 unknown) of the parts of a sentence. Cached, because reports repeat stock sentences."""
    patterns = _patterns(language)
    pieces = _split(_lower(text), patterns.cue)
    _carry_forward(pieces, patterns.last_negated_item)
    _refer_backward(pieces, patterns)
    polarities = [piece.polarity() for piece in pieces]
    for index in reversed(range(len(pieces))):
        is_bare = not polarities[index] and _is_bare(pieces[index], patterns.anatomy)
        if is_bare and index + 1 < len(pieces) and pieces[index + 1].after_comma:
            polarities[index] = polarities[index + 1]
        elif is_bare and index and pieces[index].after_comma:
            polarities[index] = polarities[index - 1]
    return [(piece.start, piece.end, value) for piece, value in zip(pieces, polarities)]


def _lower(text: str) -> str:
    """Lower case of the same length: a dotted capital I becomes two characters."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(letter.lower()[:1] for letter in text)


def _split(text: str, cue: re.Pattern[str]) -> list[_Piece]:
    pieces = [_Piece(text, 0, after_comma=False)]
    for match in cue.finditer(text):
        kind, piece = match.lastgroup, pieces[-1]
        if kind == "comma" and text.count("(", piece.start, match.start()) > text.count(")", piece.start, match.start()):
            continue
        if kind in {"comma", "semicolon", "end"}:
            piece.end = match.start() if kind == "end" else match.end()
            pieces.append(_Piece(text, piece.end, after_comma=kind == "comma"))
        else:
            piece.cues.append(kind)
            piece.positions.append(match.start())
    return pieces


def _carry_forward(pieces: list[_Piece], last_item: re.Pattern[str]) -> None:
    """Extend forward cues over the items of a list: "no A, B or C"."""
    for index, piece in enumerate(pieces):
        cue = piece.last("forward")
        for item in _list_items(pieces[index + 1 :], last_item) if cue and piece.is_open else ():
            item.carried = cue


def _list_items(pieces: list[_Piece], last_item: re.Pattern[str]) -> list[_Piece]:
    """The first pieces up to the last item of a list; empty if there is no such item."""
    items = []
    for piece in takewhile(lambda piece: piece.after_comma, pieces):
        items.append(piece)
        conjunction = last_item.search(piece.words)
        if conjunction and not piece.cues_before(conjunction.start()) - {"finding"}:
            return items
        if not piece.is_item:
            break
    return []


def _refer_backward(pieces: list[_Piece], patterns: _Patterns) -> None:
    """Extend backward cues to the earlier items of a list: "A, B and C are not seen"."""
    for index, piece in enumerate(pieces):
        cue = piece.last("backward")
        if not (cue and patterns.last_item.search(piece.words)):
            continue
        while index and pieces[index].after_comma and pieces[index - 1].is_item:
            index -= 1
            pieces[index].referred = cue


def _is_bare(piece: _Piece, anatomy: re.Pattern[str]) -> bool:
    """Whether a piece only names parts of the body."""
    return all(anatomy.fullmatch(word) for word in _WORD.findall(piece.words))
