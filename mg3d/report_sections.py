"""From the text of a report, as exported by a hospital, to clean findings and impression."""

import html
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from mg3d.languages import Language, language_of

_LINE_TAG = re.compile(r"<(?:br|/p|/div|/li|/tr)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:p|div|span|b|i|u|em|strong|ul|ol|li|font|table|tr|td|html|body)\b[^<>]*>", re.IGNORECASE)
_SPACE = re.compile(r"[\r\f\v\u00a0\u2007\u202f]")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_ITEM = re.compile(r"(?:[-*+\u2022\u25cf\u25aa\u2023\u2013\u2014]|\(?\d{1,2}[.)]|\(?[a-z]\))\s", re.IGNORECASE)
"""Start of an item of a list."""
_LABEL = re.compile(r"[A-Z][\w /,&-]{0,40}:(?:\s|$)")
_CELL_GAP = re.compile(r"\s*\|\s*|\t+| {3,}")
_QUANTITY = re.compile(r"\d+(?:[.,]\d+)?\s*(?:x|mm|cm|ml|HU|%)(?!\w)", re.IGNORECASE)
MAX_CELL = 40
"""Characters of a table cell; longer ones are text with wide gaps."""
MIN_WIDTH, MAX_WIDTH = 50, 140
"""Range of the longest line, in characters, of a hard-wrapped text."""


class _Tables(NamedTuple):
    """Compiled patterns of a language."""

    heading: re.Pattern[str]
    signature: re.Pattern[str]
    not_given: re.Pattern[str]
    dictated: re.Pattern[str]


@cache
def _tables(language: Language) -> _Tables:
    names = "|".join(f"(?P<{section}>{'|'.join(patterns)})" for section, patterns in language.headings.items())
    words = "|".join(f"({word})" for word, _ in language.dictated_marks)
    before, after = r"(?P<before>^[ \t]*(?:\d{1,2}[.)][ \t]*)?\**|[ \t]+)", r"(?P<after>\**:\**|\**[ \t]*$|[ \t][-\u2013](?=\s))"
    flags = re.IGNORECASE | re.MULTILINE
    return _Tables(
        re.compile(rf"{before}(?:{names}){after}", flags),
        re.compile(rf"(?:^|(?<=[.!?]))[ \t]*(?:{'|'.join(language.signature_lines)})[ \t]*$", flags),
        re.compile("|".join(language.not_given), re.IGNORECASE),
        re.compile(rf"[ \t]+(?:{words})(?=\s|$)", re.IGNORECASE),
    )


def split_report(text: object) -> tuple[str | None, str | None]:
    """Clean findings and impression of a whole report. Sections are recognised by the headings of its language.

    Without headings, the text is the findings. Without a heading of the findings, they are the text before the impression and
    what follows the first paragraph (or else the first line) of the other sections. Other sections and what follows a signature
    are dropped.
    """
    if not isinstance(text, str):
        return None, None
    plain = _plain_text(text)
    language = language_of(plain)
    parts = [(section, _unsigned(part, language)) for section, part in _sections(plain, language)]
    findings = [part for section, part in parts if section == "findings"]
    impression = [part for section, part in parts if section == "impression"]
    for end in ("\n\n", "\n"):
        if not any(findings):
            findings = [part if section == "" else part.partition(end)[2] for section, part in parts if section != "impression"]
    return clean_section("\n\n".join(findings)), clean_section("\n\n".join(impression))


def clean_section(text: object) -> str | None:
    """A section with one paragraph, list item or table row per line; None for a missing or "not given" section.

    Hard-wrapped lines are joined, dictated marks ("period", "new paragraph") and HTML replaced, rules dropped. Double spaces are
    preserved: they separate the items of CT-RATE's impressions.
    """
    if not isinstance(text, str):
        return None
    plain = _plain_text(text)
    language = language_of(plain)
    if _tables(language).not_given.fullmatch(plain.strip(" \t\n.:;*_-\u2013\u2014")):
        return None
    lines = _format_rows([line.strip() for line in _replace_dictated(plain, language).split("\n")])
    while (joined := _join_wrapped(lines, language)) != lines:
        lines = joined
    lines = [re.sub(r" {3,}", "  ", line) for line in lines if _LETTER_OR_DIGIT.search(line)]
    return "\n".join(lines) or None


def _plain_text(text: str) -> str:
    """Without HTML and with "\\n" as the only line break."""
    text = _LINE_TAG.sub("\n", html.unescape(text).replace("\r\n", "\n").replace("\r", "\n"))
    return re.sub(r"\n[ \t]+\n", "\n\n", _SPACE.sub(" ", _TAG.sub("", text)))


def _sections(text: str, language: Language) -> Iterator[tuple[str, str]]:
    """(section, text) in order; the section of text before the first heading is empty, and so is a title without a sentence."""
    section, begin = "", 0
    for match in _tables(language).heading.finditer(text):
        if not _is_heading(text, match):
            continue
        part = text[begin : match.start()]
        if section or re.search(r"[a-z][.:]", part):
            yield section, part
        section, begin = next(name for name in language.headings if match[name]), match.end()
        if section == "signature" and not _LETTER_OR_DIGIT.search(text[: match.start()]):
            section = ""  # "Reported by ..." in the first line
    yield section, text[begin:].strip()


def _is_heading(text: str, match: re.Match[str]) -> bool:
    """Whether a heading is at the start of a line, or inside it with a colon: in capitals, or a used one after a sentence."""
    start = match.start()
    if start == 0 or text[start - 1] == "\n":
        return True
    is_set_off = text[start - 1] in ".!?;:)" or match["before"].startswith("  ")
    is_used = is_set_off and (match["findings"] or match["impression"] or "")[:1].isupper()
    return ":" in match["after"] and (match[0].isupper() or is_used)


def _unsigned(text: str, language: Language) -> str:
    """Without signature lines at the start, and without everything from a later one; "discussed with" continues in its line."""
    start = 0
    while match := _tables(language).signature.search(text, start):
        before = text[: match.start()].rstrip(" \t")
        if not _LETTER_OR_DIGIT.search(before):
            text = text[match.end() :]
        elif before.endswith("\n") and not before.endswith("\n\n") and _is_open(before.rstrip(), language):
            start = match.end()
        else:
            text = text[: match.start()]
    return text.strip("\n")


def _replace_dictated(text: str, language: Language) -> str:
    """With marks instead of dictated words, if the text has more dictated than typed full stops: "over a period of" is a word."""
    marks = [mark for _, mark in language.dictated_marks]
    pattern = _tables(language).dictated
    n_dictated = sum(marks[match.lastindex - 1] == "." for match in pattern.finditer(text))
    if n_dictated <= len(re.findall(r"[a-z]\.(?:\s|$)", text)):
        return text
    return re.sub(r"\n[ \t]*[.,]?[ \t]*", "\n", pattern.sub(lambda match: marks[match.lastindex - 1], text))


def _format_rows(lines: list[str]) -> list[str]:
    """With " | " between the cells of tables: at least two lines in succession with bars, tabs or wide gaps."""
    cells = [_CELL_GAP.split(line.strip("|").strip()) for line in lines]
    is_row = [len(row) > 1 and all(len(cell) <= MAX_CELL for cell in row) for row in cells]
    formatted = []
    for index, (line, row) in enumerate(zip(lines, cells)):
        has_neighbour = any(is_row[max(index - 1, 0) : index] + is_row[index + 1 : index + 2])
        item = re.sub(r"^o\s+(?=[A-Z])", "- ", line.replace("\t", " "))
        formatted.append(" | ".join(row) if is_row[index] and has_neighbour else item)
    return formatted


def _join_wrapped(lines: list[str], language: Language) -> list[str]:
    """With continued lines joined once."""
    text = "\n".join(lines)
    width = max((len(line) for line in lines if len(line) <= MAX_WIDTH), default=0)

    def is_full(line: str, following: str) -> bool:
        return width >= MIN_WIDTH and len(line) + 1 + len(following.split()[0]) > width

    has_sentences = re.search(r"[a-z]\.(?:\s|$)", text) is not None
    is_wrapped = any(
        is_full(line, following) and not _ends_sentence(line) and (following[0].islower() or _is_open(line, language))
        for line, following in pairwise(lines)
        if line and following
    )

    def continues(line: str, following: str) -> bool:
        is_separate = _ITEM.match(following) or _LABEL.match(following) or " | " in line + following
        if is_separate or not (_LETTER_OR_DIGIT.search(line) and _LETTER_OR_DIGIT.search(following)):
            return False
        if line.endswith(":") or _is_open(line, language) or (_QUANTITY.match(following) and not _ends_sentence(line)):
            return True
        if _ends_sentence(line):
            return False
        if following[0].islower() or following[0] in "(,;":
            return has_sentences or bool(_ITEM.match(line)) or is_full(line, following)
        return is_wrapped and is_full(line, following)

    joined = lines[:1]
    for previous, line in pairwise(lines):
        if previous and line and continues(previous, line):
            joined[-1] += f" {line}"
        else:
            joined.append(line)
    return joined


def _ends_sentence(line: str) -> bool:
    return line.endswith((".", "!", "?", ":", "\u2026"))


def _is_open(line: str, language: Language) -> bool:
    """Whether a line ends with a word or mark that no sentence ends with."""
    word = re.split(r"[\s(\[]", line)[-1].lower()
    if word.endswith("."):
        return word[:-1] in language.abbreviations | language.abbreviations_before_number
    return word in language.open_words or word.endswith((",", "(", "/")) or word == "-"
