"""Tables as people write them: several encodings and delimiters, names of columns in any case, rows that come twice."""

import codecs
import csv
import difflib
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

DELIMITERS = (",", ";", "\t")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_LONGEST_CELL = 1 << 24
_LONGEST_NAME = 48


class Table(NamedTuple):
    """The columns that were asked for and found."""

    names: tuple[str, ...]
    """As they were asked for, in that order."""
    rows: list[tuple[str, ...]]
    """Cells in the order of `names`, stripped; a missing one is empty."""
    notes: list[str]
    """What a person should know of how it was read."""


def read_table(
    path: Path, columns: Mapping[str, Sequence[str]], *, required: Collection[str], advice: str, title: str = ""
) -> Table:
    """A CSV file (comma, semicolon or tab) or a JSON list of objects.

    Args:
        path: `.json` is read as JSON, all else as CSV.
        columns: wanted name -> other names under which it may be found; case, spaces and underscores do not count.
        required: the wanted names that must be there.
        advice: what to do when the table cannot be read, the end of a sentence.
        title: of the data set, begins the notes.

    Raises:
        ValueError: the file is no such table, or lacks a required column. No cell is ever repeated.
    """
    with _long_cells():
        return _read_table(path, columns, required=required, advice=advice, title=title)


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lets the `csv` module read cells as long as a report may be, for this while."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_table(path: Path, columns: Mapping[str, Sequence[str]], *, required: Collection[str], advice: str, title: str) -> Table:
    try:
        text, encoding = decode(path.read_bytes())
        rows = _json_rows(text) if path.suffix.lower() == ".json" else _csv_rows(text, columns)
        found = next(rows, None) or []
    except _ERRORS as error:
        raise _unreadable(path, error, required, advice) from None
    places = match_columns(found, columns)
    missing = [name for name in required if name not in places]
    if missing:
        told = found_columns(found, columns)
        raise ValueError(f"{path} lacks the columns {missing}; {told}; expected are {', '.join(required)}; {advice}")
    names = tuple(name for name in columns if name in places)
    try:
        cells = [tuple(row[places[name]].strip() for name in names) for row in rows]
    except _ERRORS as error:
        raise _unreadable(path, error, required, advice) from None
    plain = encoding in {"utf-8", "utf-8-sig"}
    told = f"{title}: {path.name} is no UTF-8 and was read as {encoding}; look at its special letters"
    return Table(names, cells, [] if plain else [told.removeprefix(": ")])


def decode(content: bytes) -> tuple[str, str]:
    """The text of a file and its encoding: that of its mark, else the first that fits of UTF-8, UTF-16, Windows-1252, Latin-1.

    Raises:
        ValueError: it is no text.
    """
    marked = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)
    zeros = [content[start:2000:2].count(0) for start in (0, 1)]
    wide = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    for encoding in (marked,) if marked else ("utf-8", *([wide] if any(zeros) else []), "cp1252", "latin-1"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, encoding
    raise ValueError("no text in any known encoding")


def match_columns(found: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Wanted name -> place of the first column that carries it or one of its other names."""
    places: dict[str, int] = {}
    plain = [_plain(name) for name in found]
    for name, others in columns.items():
        wanted = [_plain(word) for word in (name, *others)]
        hit = next((plain.index(word) for word in wanted if word in plain), None)
        if hit is not None:
            places[name] = hit
    return places


def found_columns(found: Sequence[str], columns: Mapping[str, Sequence[str]]) -> str:
    """What columns there are, for people. A first line that holds none of the wanted ones may be a patient's: it is not told."""
    places = match_columns(found, columns)
    rest = {_plain(name): name for place, name in enumerate(found) if place not in places.values()}
    near = {}
    for name in columns.keys() - places.keys():
        close = difflib.get_close_matches(_plain(name), rest, n=1, cutoff=0.7)
        near |= {name: rest[close[0]]} if close else {}
    hint = "".join(f"; {there!r} may be meant for {name}" for name, there in sorted(near.items()))
    if not places and not near:
        return f"its first line has {len(found)} fields and none is such a name"
    shown = [name if len(name) <= _LONGEST_NAME else "(a long one)" for name in found[:50]] if places else list(near.values())
    return f"it has {shown}{hint}"


def by_key(rows: Iterable[tuple[str, ...]]) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """First cell -> the others, and the keys with rows that differ; of these the first counts. Rows without a key are left."""
    table: dict[str, tuple[str, ...]] = {}
    conflicts = set()
    for key, *cells in rows:
        if key and table.setdefault(key, tuple(cells)) != tuple(cells):
            conflicts.add(key)
    return table, conflicts


def flag(cell: str) -> int:
    """1 or 0 as people and programs write them, -1 for what is neither."""
    return {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}.get(cell.strip().lower(), -1)


_ERRORS = (csv.Error, ValueError, KeyError, IndexError, AttributeError, RecursionError)


def _unreadable(path: Path, error: Exception, required: Collection[str], advice: str) -> ValueError:
    told = str(error) if isinstance(error, _BrokenRow) else type(error).__name__
    expected = f"it should be a table with the names of its columns first, among them {', '.join(list(required)[:3])}"
    return ValueError(f"{path} cannot be read as a table ({told}); {expected}; {advice}")


class _BrokenRow(ValueError):
    """Holds counts only."""


def _csv_rows(text: str, columns: Mapping[str, Sequence[str]]) -> Iterable[list[str]]:
    """The fields of the first line, then of every row."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, columns), strict=True)
    header: list[str] | None = None
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [cell.strip() for cell in row]
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        if len(row) != len(header):
            raise _BrokenRow(f"line {rows.line_num} has {len(row)} fields, the first has {len(header)}")
        yield row


def _delimiter(text: str, columns: Mapping[str, Sequence[str]]) -> str:
    first = io.StringIO(text.lstrip()[:_LONGEST_CELL])

    def score(delimiter: str) -> tuple[int, int]:
        first.seek(0)
        header = next(csv.reader(first, delimiter=delimiter), [])
        return len(match_columns(header, columns)), len(header)

    return max(DELIMITERS, key=score)


def _json_rows(text: str) -> Iterable[list[str]]:
    items: Any = json.loads(text)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _BrokenRow("no list of objects")
    names = list(dict.fromkeys(name for item in items for name in item))
    yield names
    for item in items:
        yield ["" if (cell := item.get(name)) is None else str(cell) for name in names]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())
