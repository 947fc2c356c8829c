"""Tables as people write them. A table that cannot be read is refused without repeating any of its cells."""

import json

import pandas as pd
import pytest

from mg3d.preparation.sources.tables import decode, flag, match_columns, read_table, rows_by_key

COLUMNS = {"volume": ("file",), "report": ("text",), "patient": ()}
SECRET = "Geheim"


def read(path, content, **choice):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table, notes = read_table(path, COLUMNS, **{"required": ["volume"], "advice": "fix it", **choice})
    return list(table.columns), [tuple(row) for row in table.to_numpy()], notes


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["volume,report", "Volume, Report ", "FILE,Te-xt", " vol_ume ,TEXT", "report,volume"])
def test_columns_match_by_any_name_in_any_spelling(tmp_path, header, separator):
    row = "b,a" if header.startswith("report") else "a,b"
    content = f"{header}\n{row}\n".replace(",", separator)
    assert read(tmp_path / "t.csv", content) == (["volume", "report"], [("a", "b")], [])


def test_blank_lines_trailing_separators_quotes_and_line_breaks_in_cells(tmp_path):
    content = '\r\nvolume,report,other\r\n\r\na,"one,\r\n""two""",x,,\r\n b ,,\r\n'
    assert read(tmp_path / "t.csv", content)[1] == [("a", 'one,\r\n"two"'), ("b", "")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"volume,report\na,b\nc,{SECRET},d\n", "line 3 has 3 fields, the header has 2"),
        (f"volume,report\na\n{SECRET},b\n", "line 2 has 1 fields, the header has 2"),
        (f'volume,report\na,"{SECRET}\n', "unexpected end of data"),
        (f"{SECRET},x\na,b\n", "has no column volume; none of the 2 names in its first line is known"),
        (f"report,{SECRET * 9}\na,b\n", r"has no column volume; it has report, \(a long name\)"),
        (f"volumme,{SECRET}\na,b\n", r"rename volumme to volume\?"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0", "not a text file"),
        ("", "it is empty"),
    ],
)
def test_unreadable_csv_is_refused_without_its_cells(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "t.csv", content)
    assert str(tmp_path / "t.csv") in str(caught.value)
    assert SECRET not in str(caught.value)
    assert str(caught.value).endswith("; fix it")
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "content", ["{", json.dumps({"volume": SECRET}), json.dumps([SECRET]), json.dumps([[SECRET]]), "[" * 100_000, "[]", "null"]
)
def test_json_that_is_not_a_list_of_objects_is_refused_without_its_cells(tmp_path, content):
    with pytest.raises(ValueError, match="fix it") as caught:
        read(tmp_path / "t.json", content)
    assert SECRET not in str(caught.value)


def test_json_objects_may_lack_keys_and_hold_any_value(tmp_path):
    rows = [{"volume": "a", "patient": 7}, {"report": "R", "volume": "b"}, {"volume": "c", "report": None, "patient": True}]
    expected = [("a", "", "7"), ("b", "R", ""), ("c", "", "True")]
    assert read(tmp_path / "t.json", json.dumps(rows)) == (["volume", "report", "patient"], expected, [])


@pytest.mark.parametrize(
    ("content", "text", "encoding"),
    [
        ("ä–".encode("cp1252"), "ä–", "cp1252"),
        (b"\x81\xe4", "\x81ä", "latin-1"),
        ("aä".encode("utf-16"), "aä", "utf-16"),
        ("aä".encode(), "aä", "utf-8-sig"),
        ("aä".encode("utf-8-sig"), "aä", "utf-8-sig"),
        (b"", "", "utf-8-sig"),
    ],
)
def test_encodings_are_detected(content, text, encoding):
    assert decode(content) == (text, encoding)


def test_contradicting_rows_of_a_key_are_reported_and_the_first_counts():
    table = pd.DataFrame([("a", "1"), ("b", "1"), ("a", "1"), ("b", "2"), ("", "3")], columns=["key", "value"])
    assert rows_by_key(table, "key") == ({"a": {"value": "1"}, "b": {"value": "1"}}, {"b"})


def test_of_two_columns_for_one_name_the_exact_name_wins():
    assert match_columns(["file", "Volume", "text"], COLUMNS) == {"volume": 1, "report": 2}


@pytest.mark.parametrize(("cell", "value"), [("1", 1), (" 1.0 ", 1), ("TRUE", 1), ("0", 0), ("false", 0), ("", -1), ("2", -1)])
def test_flags(cell, value):
    assert flag(cell) == value


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_rows_have_the_numbers_that_a_spreadsheet_shows(tmp_path, suffix):
    """Below the header in row 1 and an empty row 3."""
    path = tmp_path / f"reports.{suffix}"
    lines = [["volume", "report"], ["a", "Two\nlines."], ["", ""], ["b", "Clear."]]
    if suffix == "csv":
        path.write_text("".join(f'{volume},"{report}"\n' for volume, report in lines))
    else:
        book = pytest.importorskip("openpyxl").Workbook()
        for line in lines:
            book.active.append(line)
        book.save(path)
    table, _ = read_table(path, {"volume": (), "report": ()}, required=["volume"], advice="")
    assert table["volume"].to_dict() == {2: "a", 4: "b"}
