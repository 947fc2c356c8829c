"""Tables as people write them. What cannot be read is refused by counts: no cell is ever repeated."""

import csv
import json

import pytest

from mg3d.preparation.sources.tables import by_key, decode, flag, match_columns, read_table

COLUMNS = {"volume": ("file",), "report": ("text",), "patient": ()}
SECRET = "Geheim"


def read(path, content, **choice):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, COLUMNS, **{"required": ["volume"], "advice": "mend it", "title": "custom", **choice})


@pytest.mark.parametrize("header", ["volume,report", "Volume, Report ", "FILE,Te-xt", " vol_ume ,TEXT", "report,volume\n,x"])
def test_columns_are_found_by_any_of_their_names(tmp_path, header):
    table = read(tmp_path / "t.csv", f"{header}\na,b\n")
    assert table.names == ("volume", "report")
    assert table.rows[-1] == (("b", "a") if header.startswith("report") else ("a", "b"))


def test_blank_lines_trailing_delimiters_quotes_and_line_breaks_in_cells(tmp_path):
    table = read(tmp_path / "t.csv", '\r\nvolume,report,other\r\n\r\na,"one,\r\n""two""",x,,\r\n b ,,\r\n')
    assert table.rows == [("a", 'one,\r\n"two"'), ("b", "")]


def test_cells_may_be_as_long_as_a_report_and_the_limit_is_put_back(tmp_path):
    before = csv.field_size_limit()
    long = "word " * 100_000
    assert read(tmp_path / "t.csv", f"volume,report\na,{long}\n").rows == [("a", long.strip())]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"volume,report\na,b\nc,{SECRET},d\n", "line 3 has 3 fields, the first has 2"),
        (f"volume,report\na\n{SECRET},b\n", "line 2 has 1 fields, the first has 2"),
        (f'volume,report\na,"{SECRET}\n', "Error"),
        (f"volume,report\na,{SECRET}\0\n", "lacks the columns"),
        (f"{SECRET},x\na,b\n", "its first line has 2 fields and none is such a name"),
        (f"report,{SECRET * 9}\na,b\n", "lacks the columns \\['volume'\\].*(a long one)"),
        (f"volumme,{SECRET}\na,b\n", "'volumme' may be meant for volume"),
        ("", "lacks the columns"),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused_without_its_cells(tmp_path, content, told):
    with pytest.raises(ValueError, match=told) as caught:
        read(tmp_path / "t.csv", content)
    assert SECRET not in str(caught.value)
    assert str(caught.value).endswith("mend it")
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "content", ["{", json.dumps({"volume": SECRET}), json.dumps([SECRET]), json.dumps([[SECRET]]), "[" * 100_000, "[]", "null"]
)
def test_a_json_that_is_no_list_of_objects_is_refused_without_its_cells(tmp_path, content):
    with pytest.raises(ValueError, match="mend it") as caught:
        read(tmp_path / "t.json", content)
    assert SECRET not in str(caught.value)


def test_objects_of_a_json_may_lack_keys(tmp_path):
    rows = [{"volume": "a", "patient": 7}, {"report": "R", "volume": "b"}, {"volume": "c", "report": None}]
    table = read(tmp_path / "t.json", json.dumps(rows))
    assert (table.names, table.rows) == (("volume", "report", "patient"), [("a", "", "7"), ("b", "R", ""), ("c", "", "")])


@pytest.mark.parametrize(
    ("content", "text", "encoding"),
    [
        ("ä–".encode("cp1252"), "ä–", "cp1252"),
        (b"\x81\xe4", "\x81ä", "latin-1"),
        ("aä".encode("utf-16-le"), "aä", "utf-16-le"),
        ("aä".encode("utf-16-be"), "aä", "utf-16-be"),
        ("aä".encode("utf-16"), "aä", "utf-16"),
        ("aä".encode("utf-8-sig"), "aä", "utf-8-sig"),
        (b"", "", "utf-8"),
    ],
)
def test_encodings_are_told_apart(content, text, encoding):
    assert decode(content) == (text, encoding)


def test_pictures_are_no_text():
    with pytest.raises(ValueError, match="no text"):
        decode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0")


def test_rows_of_one_key_that_differ_are_named_and_the_first_counts():
    rows = [("a", "1"), ("b", "1"), ("a", "1"), ("b", "2"), ("", "3")]
    assert by_key(rows) == ({"a": ("1",), "b": ("1",)}, {"b"})


def test_of_two_columns_for_one_name_the_first_name_wins():
    assert match_columns(["file", "Volume", "text"], COLUMNS) == {"volume": 1, "report": 2}


@pytest.mark.parametrize(("cell", "value"), [("1", 1), (" 1.0 ", 1), ("TRUE", 1), ("0", 0), ("false", 0), ("", -1), ("2", -1)])
def test_flags(cell, value):
    assert flag(cell) == value
