"""Tables: CSV with any usual separator and encoding, Excel or JSON, and any spelling of column names."""

import codecs
import csv
import difflib
import importlib
import io
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

_BOMS_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
EXCEL_SUFFIXES = (".xlsx", ".xlsm")
_MAX_HEADER_LINE = 20
"""Lines of an Excel sheet among which its header is."""
_MAX_NAME = 48
_FLAGS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


def read_table(
    path: Path, columns: Mapping[str, Sequence[str]], *, required: Collection[str], advice: str
) -> tuple[pd.DataFrame, list[str]]:
    """Cells as stripped strings ("" if missing), indexed by the row of the spreadsheet, and notes for the user.

    The header is in row 1 unless lines are above it. Objects of JSON are numbered from 1.

    Args:
        path: a `.json` list of objects, an Excel file (its first sheet; lines above the header are skipped), or a CSV file
            with a header.
        columns: column name -> other names for it; case, spaces and punctuation are ignored. Other columns are dropped.
        required: columns that must be present.
        advice: what to do if the table cannot be read; ends the error message.

    Raises:
        ValueError: not such a table, or a required column is missing. The message contains no cell.
    """
    try:
        table, encoding = _parse(path, columns)
    except (ValueError, RecursionError, csv.Error) as error:
        expected = f"expected a header with {', '.join(list(required)[:3])}"
        raise ValueError(f"{path} cannot be read as a table: {_reason(error)}; {expected}; {advice}") from None
    positions = match_columns(list(table.columns), columns)
    missing = [name for name in required if name not in positions]
    if missing:
        found = _describe_columns(list(table.columns), columns)
        raise ValueError(f"{path} has no column {', '.join(missing)}; {found}; {advice}")
    table = table.iloc[:, [positions[name] for name in columns if name in positions]]
    table = table.set_axis([name for name in columns if name in positions], axis=1).map(str.strip)
    unusual = f"{path.name} is not UTF-8 and was read as {encoding}; check its special characters"
    return table, [] if encoding == "utf-8-sig" else [unusual]


def _parse(path: Path, columns: Mapping[str, Sequence[str]]) -> tuple[pd.DataFrame, str]:
    """The table and the encoding of its text."""
    suffix = path.suffix.lower()
    if suffix in EXCEL_SUFFIXES:
        return _parse_excel(path, columns), "utf-8-sig"
    if suffix == ".xls":
        raise ValueError("it is in Excel's old format; save it as .xlsx or CSV")
    text, encoding = decode(path.read_bytes())
    return _parse_json(text) if suffix == ".json" else _parse_csv(text, columns), encoding


def decode(content: bytes) -> tuple[str, str]:
    """The text of a file and its encoding: UTF-16 if it has a byte order mark, else the first of UTF-8, cp1252, Latin-1.

    Raises:
        ValueError: not a text file.
    """
    for encoding in ("utf-16",) if content.startswith(_BOMS_UTF16) else ("utf-8-sig", "cp1252", "latin-1"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, encoding
    raise ValueError("it is not a text file")


def match_columns(found: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Column name -> position of the first column in `found` with that name or one of its other names."""
    plain = [_plain(name) for name in found]
    positions = {}
    for name, aliases in columns.items():
        hit = next((plain.index(alias) for alias in map(_plain, (name, *aliases)) if alias in plain), None)
        if hit is not None:
            positions[name] = hit
    return positions


def rows_by_key(table: pd.DataFrame, key: str) -> tuple[dict[str, dict[str, str]], set[str]]:
    """Key -> its first row, and the keys whose rows differ. Rows without a key are dropped."""
    table = table[table[key] != ""].drop_duplicates()
    conflicts = set(table.loc[table[key].duplicated(), key])
    return table.drop_duplicates(key).set_index(key).to_dict("index"), conflicts


def flag(cell: str) -> int:
    """1 or 0 for a label as people and programs write it, -1 for anything else."""
    return _FLAGS.get(cell.strip().lower(), -1)


def _parse_csv(text: str, columns: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    header = text.lstrip().partition("\n")[0]
    separator = max(",;\t|", key=lambda mark: (len(match_columns(header.split(mark), columns)), header.count(mark)))
    # Not pandas.read_csv, which fills or cuts rows of another length: an unquoted comma would silently cut a report.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    for number, row in enumerate(reader, start=1):
        if not any(cell.strip() for cell in row):
            continue
        while rows and len(row) > len(rows[0]) and not row[-1].strip():
            row.pop()
        if rows and len(row) != len(rows[0]):
            raise ValueError(f"line {reader.line_num} has {len(row)} fields, the header has {len(rows[0])}")
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise ValueError("it is empty")
    return pd.DataFrame(rows[1:], columns=rows[0], index=numbers[1:], dtype=object)


def _parse_excel(path: Path, columns: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The first sheet; its header is the line among the first ones with most of `columns`."""
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError:
        raise ValueError("openpyxl is not installed: pip install -e '.[excel]', or save the file as CSV") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            lines = [[_cell_text(value) for value in line] for line in book.worksheets[0].iter_rows(values_only=True)]
        except Exception as error:  # a damaged archive raises anything, and the message may quote a cell
            raise ValueError(f"it is not an Excel file ({type(error).__name__})") from None
    if not lines:
        raise ValueError("it is empty")
    header = max(range(min(len(lines), _MAX_HEADER_LINE)), key=lambda line: len(match_columns(lines[line], columns)))
    names, rows = lines[header], {number: line for number, line in enumerate(lines[header + 1 :], header + 2) if any(line)}
    width = len(names)
    rows = {number: [*line[:width], *[""] * (width - len(line))] for number, line in rows.items()}
    return pd.DataFrame(list(rows.values()), columns=names, index=list(rows), dtype=object)


def _cell_text(value: Any) -> str:
    """A cell as text: numbers such as accessions without a decimal point, dates as YYYY-MM-DD."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.date().isoformat() if isinstance(value, datetime) else str(value).strip()


def _parse_json(text: str) -> pd.DataFrame:
    items = json.loads(text)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("a list of objects is expected")
    table = pd.DataFrame(items, dtype=object, index=range(1, len(items) + 1))
    return table.map(lambda cell: "" if cell is None or cell != cell else str(cell))


def _reason(error: Exception) -> str:
    """What is wrong, without any cell."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON (line {error.lineno}: {error.msg})"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _describe_columns(found: Sequence[str], columns: Mapping[str, Sequence[str]]) -> str:
    """The columns of a file. A header without any known name may be a patient's data and is not shown."""
    positions = match_columns(found, columns)
    others = {_plain(name): name for position, name in enumerate(found) if position not in positions.values()}
    close = {name: difflib.get_close_matches(_plain(name), others, n=1, cutoff=0.7) for name in columns if name not in positions}
    similar = {name: others[match[0]] for name, match in sorted(close.items()) if match}
    if not positions and not similar:
        return f"none of the {len(found)} names in its first line is known"
    shown = [name if len(name) <= _MAX_NAME else "(a long name)" for name in found[:50]] if positions else [*similar.values()]
    return f"it has {', '.join(shown)}" + "".join(f"; rename {there} to {name}?" for name, there in similar.items())


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", str(name).lower())
