"""A hospital's own folder: tables as people write them, ids that tell no name and stay the same, volumes without reports."""

import csv
import io
import json
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from small_dicom import write_series
from small_raw import LPS, chest, write_nifti

from mg3d.glossary import LABELS
from mg3d.preparation.readers.dicom import read_dicom
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.sources.custom import Naming, list_custom, read_listing
from mg3d.preparation.voxels import make_volume

SALT = b"0123456789abcdef"
FINDINGS = "Ödeme beidseits – kein Erguss."
LONG = "The lungs are clear and nothing else is seen in them. " * 6


def volumes(root, *names):
    for number, name in enumerate(names):
        write_nifti(root / name, chest(number).transpose(2, 1, 0), LPS)
    return root


def table(root, rows, *, encoding="utf-8", delimiter=",", name="reports.csv"):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path = root.parent / name
    path.write_bytes(stream.getvalue().encode(encoding))
    return path


def scan(root, path=None, *, keep=True, salt=SALT, val_patients=0, limit=None):
    naming = Naming(b"", keep=True) if keep else Naming(salt)
    return list_custom(root, read_listing(root, path), naming=naming, val_patients=val_patients, seed=0, limit=limit)


@pytest.fixture
def root(tmp_path):
    return volumes(tmp_path / "clinic", "Anna/a.nii.gz", "Anna/b.nii.gz", "Bernd/a.nii", "c.nii.gz")


ROWS = [
    {"volume": "Anna/a.nii.gz", "findings": FINDINGS, "impression": "", "Cardiomegaly": "1", "Emphysema": "0"},
    {"volume": "Anna/b.nii.gz", "findings": "", "impression": "Not given.", "Cardiomegaly": "", "Emphysema": "yes"},
    {"volume": "Bernd/a.nii", "findings": "Clear.", "impression": 'As "clear", ok.', "Cardiomegaly": "0.0", "Emphysema": "1.0"},
]  # fmt: skip


def told(record):
    labels = {label: value for label, value in zip(LABELS, record.labels) if value >= 0}
    return record.volume_id, record.findings, record.impression, labels


EXPECTED = [
    ("custom/Anna/a", FINDINGS, None, {"Cardiomegaly": 1, "Emphysema": 0}),
    ("custom/Anna/b", None, None, {}),
    ("custom/Bernd/a", "Clear.", 'As "clear", ok.', {"Cardiomegaly": 0, "Emphysema": 1}),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_in_any_usual_encoding_and_delimiter(root, encoding, delimiter):
    found = scan(root, table(root, ROWS, encoding=encoding, delimiter=delimiter))
    assert [told(record) for record in found.records] == EXPECTED
    assert {record.label_source for record in found.records} == {"table"}
    assert any("no UTF-8" in note for note in found.notes) == (not encoding.startswith("utf-8"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_json_list_says_the_same(root, encoding):
    rows = [dict(row) for row in ROWS]
    rows[0] |= {"impression": None, "Cardiomegaly": 1, "Emphysema": 0}
    rows[1] |= {"findings": float("nan"), "Cardiomegaly": None}
    rows[2] |= {"Cardiomegaly": 0.0, "Emphysema": True}
    path = root.parent / "reports.json"
    path.write_bytes(json.dumps(rows, ensure_ascii=False).encode(encoding))
    assert [told(record) for record in scan(root, path).records] == EXPECTED


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("true", "FALSE"), ("1.0", "0")])
def test_labels_may_be_words_of_a_program(root, yes, no):
    rows = [{"volume": "c", "Cardiomegaly": yes, "Emphysema": no}]
    assert told(scan(root, table(root, rows)).records[0])[3] == {"Cardiomegaly": 1, "Emphysema": 0}


def test_cells_of_labels_that_say_neither_are_counted(root):
    found = scan(root, table(root, ROWS))
    assert any("1 cells of labels are neither 1, 0 nor empty" in note for note in found.notes)
    assert not any("cells of labels" in note for note in scan(root, table(root, ROWS[::2])).notes)


@pytest.mark.parametrize("text", ["Lungs clear.", LONG, "/" + LONG, "clear\0lungs", "n" * 5000])
def test_swapped_columns_are_refused_without_a_word_of_the_report(root, text):
    rows = [{"volume": text + str(number), "findings": row["volume"]} for number, row in enumerate(ROWS)]
    path = table(root, rows) if "\0" not in text else root.parent / "reports.json"
    path.write_text(json.dumps(rows)) if "\0" in text else None
    with pytest.raises(ValueError, match=r"0 of 3 rows") as caught:
        scan(root, path)
    message = str(caught.value)
    assert text[:12] not in message
    assert ("columns seem swapped" in message) == text.startswith(("The", "/The"))
    assert caught.value.__cause__ is None


def test_one_report_in_the_place_of_a_path_is_one_missing_file(root):
    found = scan(root, table(root, [*ROWS, {**ROWS[0], "volume": LONG}]), keep=False)
    assert [(entry.code, entry.detail) for entry in found.refused] == [("missing_file", "row 4")]
    assert len(found.records) == 3


@pytest.mark.parametrize("cell", ["../out/x.nii.gz", "/etc/passwd", "", "Anna/none", "Anna/a.nii.gz/x"])
def test_a_cell_that_names_nothing_below_the_folder_is_a_missing_file(root, cell):
    volumes(root.parent, "out/x.nii.gz")
    found = scan(root, table(root, [*ROWS, {**ROWS[0], "volume": cell}]))
    assert Counter(entry.code for entry in found.refused) == {"missing_file": 1}
    assert len(found.records) == 3


@pytest.mark.parametrize(
    "cell", ["Anna/a.nii.gz", "Anna/a", "Anna\\a.nii.gz", "./Anna/a.nii.gz", "Anna//a", "{root}/Anna/a.nii.gz"]
)
def test_a_volume_may_be_named_in_many_ways(root, cell):
    found = scan(root, table(root, [{"volume": cell.format(root=root), "report": "Clear."}]))
    assert [(record.files, record.findings) for record in found.records] == [(("Anna/a.nii.gz",), "Clear.")]


def test_two_equal_rows_count_once_and_different_ones_set_the_volume_aside(root):
    rows = [ROWS[0], dict(ROWS[0], volume="Anna/a"), ROWS[2], dict(ROWS[2], findings="Not clear.")]
    found = scan(root, table(root, rows))
    assert [record.volume_id for record in found.records] == ["custom/Anna/a"]
    assert [(entry.volume_id, entry.code) for entry in found.refused] == [("custom/Bernd/a", "duplicate_row")]
    assert any("2 rows name a volume once more" in note for note in found.notes)


def test_a_volume_the_table_does_not_name_is_left_out_with_a_note(root):
    found = scan(root, table(root, ROWS))
    assert [record.volume_id for record in found.records] == [line[0] for line in EXPECTED]
    assert any("1 volumes of the folder are not in the table" in note for note in found.notes)


def test_volumes_without_a_report_are_kept_and_counted(root):
    found = scan(root, table(root, ROWS))
    assert any("1 of 3 volumes have no report" in note for note in found.notes)
    assert (found.records[1].findings, found.records[1].impression) == (None, None)


def test_ids_are_hashed_the_same_in_every_run_and_by_the_salt(root):
    path = table(root, [{"volume": row["volume"], "patient": "P 1", "study": "S 1"} for row in ROWS])

    def ids(**choice):
        return [(r.volume_id, r.study_id, r.patient_id, r.source) for r in scan(root, path, keep=False, **choice).records]

    first = ids()
    assert first == ids()
    assert not {word for line in first for word in line} & {word for line in ids(salt=SALT[::-1]) for word in line}
    assert len({patient for _, _, patient, _ in first}) == len({study for _, study, _, _ in first}) == 1
    assert len({volume for volume, *_ in first}) == 3
    everything = repr(scan(root, path, keep=False)) + repr(read_listing(root, path))
    assert not any(word in everything.replace(str(root), "") for word in ("Anna", "Bernd", "P 1", "S 1"))


def test_an_id_stays_when_volumes_are_added_or_the_table_is_sorted_otherwise(root):
    before = {r.files: r.volume_id for r in scan(root, table(root, ROWS), keep=False).records}
    volumes(root, "Aa/0.nii.gz")
    more = table(root, [{**ROWS[0], "volume": "Aa/0"}, *ROWS[::-1]])
    after = {r.files: r.volume_id for r in scan(root, more, keep=False).records}
    assert before.items() < after.items()


def test_without_a_table_each_top_folder_is_a_patient(root):
    found = scan(root, keep=True)
    assert [(r.volume_id, r.patient_id) for r in found.records] == [
        ("custom/Anna/a", "custom/Anna"), ("custom/Anna/b", "custom/Anna"),
        ("custom/Bernd/a", "custom/Bernd"), ("custom/c", "custom/c"),
    ]  # fmt: skip
    assert any("each of 3 folders or files at the top counts as a patient" in note for note in found.notes)
    assert all(record.labels == (-1,) * 18 and record.label_source == "none" for record in found.records)


def test_a_folder_and_files_of_one_name_have_ids_of_their_own(tmp_path):
    root = volumes(tmp_path / "clinic", "Anna/a.nii", "Anna/a.nii.gz", "Bernd/a.nii", "Bernd/a.nii.gz", "c.nii")
    write_series(root / "Anna" / "a", chest()[:2])
    ids = {record.files[0]: record.volume_id for record in scan(root).records}
    assert ids == {
        "Anna/a": "custom/Anna/a", "Anna/a.nii": "custom/Anna/a.nii", "Anna/a.nii.gz": "custom/Anna/a.nii.gz",
        "Bernd/a.nii": "custom/Bernd/a.nii", "Bernd/a.nii.gz": "custom/Bernd/a", "c.nii": "custom/c",
    }  # fmt: skip
    assert len({record.study_id for record in scan(root).records}) == 3


@pytest.mark.parametrize(("word", "split"), [("Training", "train"), ("dev", "val"), ("TEST", "test"), ("", "train")])
def test_words_for_splits(root, word, split):
    rows = [{"volume": "c", "set": word, "report": "Clear."}]
    assert [record.split for record in scan(root, table(root, rows)).records] == [split]


def test_an_unknown_split_and_a_patient_in_two_are_refused_by_number(root):
    with pytest.raises(ValueError, match="row 2 of the table has another split") as caught:
        scan(root, table(root, [{**ROWS[0], "split": ""}, {**ROWS[1], "split": "Geheim"}]))
    assert "Geheim" not in str(caught.value)
    with pytest.raises(ValueError, match="1 patients lie in more than one split") as caught:
        scan(root, table(root, [{**ROWS[0], "split": "train"}, {**ROWS[1], "split": "test"}]))
    assert "Anna" not in str(caught.value)


def test_val_is_carved_by_patient_where_no_row_says_val(tmp_path):
    names = [f"p{number}/{letter}.nii.gz" for number in range(8) for letter in "ab"]
    for name in names:
        (tmp_path / "clinic" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clinic" / name).write_bytes(b"")
    records = scan(tmp_path / "clinic", val_patients=1).records
    assert Counter(record.split for record in records) == {"train": 14, "val": 2}
    assert all(one.split == two.split for one, two in pairwise(records) if one.patient_id == two.patient_id)


def test_limit_counts_volumes_of_each_split(root):
    rows = [{**row, "split": split} for row, split in zip(ROWS, ("train", "train", "test"))]
    assert [r.volume_id for r in scan(root, table(root, rows), limit=1).records] == ["custom/Anna/a", "custom/Bernd/a"]


def test_reconstructions_of_a_study_are_numbered(root):
    rows = [{**row, "study": "7", "patient": "x"} for row in ROWS]
    assert [r.reconstruction for r in scan(root, table(root, rows)).records] == [1, 2, 3]


def test_dicom_folders_are_found_with_and_without_a_table(tmp_path):
    root = volumes(tmp_path / "clinic", "a.nii.gz")
    write_series(root / "Anna" / "1")
    write_series(root / "Anna" / "2", chest(5))
    (root / "Anna" / "notes.txt").write_text("no volume")
    found = scan(root)
    assert [(r.files, r.reader, r.patient_id) for r in found.records] == [
        (("Anna/1",), "dicom", "custom/Anna"), (("Anna/2",), "dicom", "custom/Anna"), (("a.nii.gz",), "nifti", "custom/a"),
    ]  # fmt: skip
    assert any("axial one with most slices" in note for note in found.notes)
    one_slice = sorted((root / "Anna" / "2").iterdir())[3].relative_to(root)
    rows = [{"volume": "Anna/1", "report": "Clear."}, {"volume": one_slice.as_posix(), "report": "Two."}]
    records = scan(root, table(root, rows)).records
    assert [(r.files, r.findings) for r in records] == [(("Anna/1",), "Clear."), ((one_slice.as_posix(),), "Two.")]
    recipe = Recipe(shape=(32, 24, 16))
    np.testing.assert_array_equal(*(make_volume(r, root, recipe)[0] for r in (found.records[1], records[1])))


@pytest.mark.parametrize("name", ["p1.mha", "C.NII.GZ", "p3.nrrd", "notes.txt"])
def test_row_naming_a_file_of_another_format_is_refused_and_never_stores_its_neighbour(tmp_path, name):
    root = tmp_path / "clinic"
    write_series(root, chest(5), PatientName="Somebody^Else")
    (root / name).write_bytes(b"ObjectType = Image")
    found = scan(root, table(root, [{"volume": name, "report": "Of another patient."}, {"volume": ".", "report": "Clear."}]))
    assert [(entry.code, entry.detail) for entry in found.refused] == [("unknown_format", "row 1")]
    assert [record.findings for record in found.records] == ["Clear."]


def test_row_naming_a_slice_reads_the_series_of_that_slice(tmp_path):
    root = tmp_path / "clinic"
    write_series(root / "Anna", chest(5), SeriesInstanceUID="1.2.3.1", start="A")
    write_series(root / "Anna", chest(9)[:22], SeriesInstanceUID="1.2.3.2", start="B")  # a folder row would read series 1
    write_series(root / "Anna" / "deeper", chest(11), SeriesInstanceUID="1.2.3.2", start="C")
    by_series = {start: sorted((root / "Anna").glob(f"{start}*.dcm")) for start in "AB"}
    names = [path.relative_to(root).as_posix() for path in (*by_series["B"][3:5], by_series["A"][8])]
    found = scan(root, table(root, [{"volume": name, "report": "Clear."} for name in names]))
    assert [record.files for record in found.records] == [(names[2],), (names[0],)]
    assert any("1 rows name a volume once more" in note for note in found.notes)
    assert not any("are not in the table" in note for note in found.notes)
    volumes_read = [read_dicom(record, root).voxels for record in found.records]
    np.testing.assert_array_equal(volumes_read[0], chest(5))
    np.testing.assert_array_equal(volumes_read[1], chest(9)[:22])


def test_slices_of_one_series_with_different_reports_are_refused_as_duplicate_rows(tmp_path):
    root = tmp_path / "clinic"
    names = [path.relative_to(root).as_posix() for path in sorted(write_series(root / "Anna", chest(5)).iterdir())[:2]]
    found = scan(root, table(root, [{"volume": name, "report": f"Report {name[-5]}."} for name in names]))
    assert [(entry.code, entry.detail) for entry in found.refused] == [("duplicate_row", "row 1")]


def test_a_folder_whose_files_may_not_be_read_is_a_volume_that_is_set_aside_later(tmp_path, monkeypatch):
    root = volumes(tmp_path / "clinic", "a.nii.gz")
    write_series(root / "Anna", chest()[:2])

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mg3d.preparation.sources.custom.is_dicom", refused)
    assert [record.files for record in scan(root).records] == [("Anna",), ("a.nii.gz",)]


def test_without_pydicom_a_folder_of_dicom_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    write_series(tmp_path / "clinic" / "Anna")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"needs more packages: pip install -e '\.\[dicom\]'") as caught:
        scan(tmp_path / "clinic")
    assert "Anna" not in str(caught.value)


def test_a_folder_of_nothing_and_a_table_that_is_not_there(tmp_path):
    (tmp_path / "clinic").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither files \.nii, \.nii\.gz nor DICOM series"):
        scan(tmp_path / "clinic")
    with pytest.raises(FileNotFoundError, match=r"there is no table .*; name a CSV or JSON file"):
        scan(tmp_path / "clinic", tmp_path / "none.csv")
