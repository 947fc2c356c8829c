"""Custom folders: tables as people write them, stable hashed ids, volumes without reports, and rows that are refused."""

import csv
import io
import json
import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from small_dicom import NAME, write_series
from small_raw import LPS, chest, source_options, write_nifti

from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom import read_dicom
from mg3d.preparation.sources.custom import list_custom
from mg3d.preparation.sources.listing import read_listing

SALT = b"0123456789abcdef"
FINDINGS = "Ödeme beidseits – kein Erguss."
LONG = "The lungs are clear and nothing else is seen in them. " * 6
ROWS = [
    {"volume": "Anna/a.nii.gz", "findings": FINDINGS, "impression": "", "Cardiomegaly": "1", "Emphysema": "0"},
    {"volume": "Anna/b.nii.gz", "findings": "", "impression": "Not given.", "Cardiomegaly": "", "Emphysema": "yes"},
    {"volume": "Bernd/a.nii", "findings": "Clear.", "impression": 'As "clear", ok.', "Cardiomegaly": "0.0", "Emphysema": "1.0"},
]
EXPECTED = [
    ("custom/Anna/a", FINDINGS, None, {"Cardiomegaly": 1, "Emphysema": 0}),
    ("custom/Anna/b", None, None, {}),
    ("custom/Bernd/a", "Clear.", 'As "clear", ok.', {"Cardiomegaly": 0, "Emphysema": 1}),
]


def write_volumes(root, *names):
    for number, name in enumerate(names):
        write_nifti(root / name, chest(number).transpose(2, 1, 0), LPS)
    return root


def write_table(root, rows, *, encoding="utf-8", delimiter=","):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path = root.parent / "reports.csv"
    path.write_bytes(stream.getvalue().encode(encoding))
    return path


def listed(root, table=None, *, keep=True, salt=SALT, **changes):
    (root.parent / "custom_salt.txt").write_bytes(salt)
    table = write_table(root, table) if isinstance(table, list) else table
    return list_custom(root, source_options(out=root.parent, table=table, keep_ids=keep, **changes))


def content(record):
    labels = {label: value for label, value in zip(LABELS, record.labels) if value >= 0}
    return record.volume_id, record.findings, record.impression, labels


def noted(inventory, text):
    return any(text in note for note in inventory.notes)


@pytest.fixture
def root(tmp_path):
    return write_volumes(tmp_path / "clinic", "Anna/a.nii.gz", "Anna/b.nii.gz", "Bernd/a.nii", "c.nii.gz")


# Tables


@pytest.mark.parametrize(("encoding", "delimiter"), [("utf-8", ","), ("utf-8-sig", "\t"), ("cp1252", ";"), ("utf-16", ",")])
def test_csv_in_usual_encodings_and_delimiters(root, encoding, delimiter):
    inventory = listed(root, write_table(root, ROWS, encoding=encoding, delimiter=delimiter))
    assert [content(record) for record in inventory.records] == EXPECTED
    assert {record.label_source for record in inventory.records} == {"table"}
    assert noted(inventory, "is not UTF-8") == (not encoding.startswith("utf-8"))
    assert noted(inventory, "1 label cells are neither 1, 0 nor empty")
    assert noted(inventory, "1 volumes of the folder are not in the table")
    assert noted(inventory, "1 of 3 volumes have no report")


def test_a_whole_report_in_one_column_gives_findings_and_impression(root):
    report = "HISTORY: Cough.\nFINDINGS:\nThe lungs are\nclear.\nIMPRESSION: Normal.\nSigned by A"
    [record] = listed(root, [{"volume": "c", "report": report}]).records
    assert (record.findings, record.impression) == ("The lungs are clear.", "Normal.")


def test_json_gives_the_same(root):
    rows = [dict(row) for row in ROWS]
    rows[0] |= {"impression": None, "Cardiomegaly": 1, "Emphysema": 0}
    rows[1] |= {"findings": float("nan"), "Cardiomegaly": None}
    rows[2] |= {"Cardiomegaly": 0.0, "Emphysema": True}
    path = root.parent / "reports.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert [content(record) for record in listed(root, path).records] == EXPECTED


@pytest.mark.parametrize("text", ["Lungs clear.", LONG, "/" + LONG, "clear\0lungs", "n" * 5000])
def test_swapped_columns_are_refused_without_any_text_of_the_report(root, text):
    rows = [{"volume": text + str(number), "findings": row["volume"]} for number, row in enumerate(ROWS)]
    path = root.parent / "reports.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"in 0 of 3 rows") as caught:
        listed(root, path)
    assert text[:12] not in str(caught.value)
    assert ("columns seem swapped" in str(caught.value)) == text.startswith(("The", "/The"))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("cell", ["../out/x.nii.gz", "/etc/passwd", "", "Anna/none", "Anna/a.nii.gz/x", LONG])
def test_cell_that_names_nothing_below_the_folder_is_a_missing_file(root, cell):
    write_volumes(root.parent, "out/x.nii.gz")
    inventory = listed(root, [*ROWS, {**ROWS[0], "volume": cell}])
    assert [(entry.code, entry.row) for entry in inventory.quarantined] == [("missing_file", 5)]
    assert len(inventory.records) == 3


@pytest.mark.parametrize(
    "cell", ["Anna/a.nii.gz", "Anna/a", "Anna\\a.nii.gz", "./Anna/a.nii.gz", "Anna//a", "{root}/Anna/a.nii.gz"]
)
def test_volume_may_be_named_in_many_ways(root, cell):
    inventory = listed(root, [{"volume": cell.format(root=root), "report": "Clear."}])
    assert [(record.files, record.findings) for record in inventory.records] == [(("Anna/a.nii.gz",), "Clear.")]


def test_equal_rows_count_once_and_contradicting_rows_are_refused(root):
    rows = [ROWS[0], dict(ROWS[0], volume="Anna/a"), ROWS[2], dict(ROWS[2], Emphysema="0")]
    inventory = listed(root, rows)
    assert [record.volume_id for record in inventory.records] == ["custom/Anna/a"]
    assert [(entry.volume_id, entry.code) for entry in inventory.quarantined] == [("custom/Bernd/a", "duplicate_row")]
    assert noted(inventory, "2 rows repeat a volume")


@pytest.mark.parametrize("name", ["p1.minc", "notes.txt", "C.NII.GZ.part"])
def test_row_naming_a_file_of_another_format_is_refused_and_never_stores_its_neighbor(tmp_path, name):
    root = tmp_path / "clinic"
    write_series(root, chest(5), PatientName="Somebody^Else")
    (root / name).write_bytes(b"ObjectType = Image")
    inventory = listed(root, [{"volume": name, "report": "Of another patient."}, {"volume": ".", "report": "Clear."}])
    assert [(entry.code, entry.row) for entry in inventory.quarantined] == [("unknown_format", 2)]
    assert [record.findings for record in inventory.records] == ["Clear."]


def test_files_are_read_by_their_suffix_in_any_case_and_never_by_their_folder(tmp_path):
    root = tmp_path / "clinic"
    write_series(root, chest(5))
    for name in ("p1.mha", "C.NII.GZ"):
        (root / name).write_bytes(b"")
    inventory = listed(root, [{"volume": "p1.mha"}, {"volume": "C.NII.GZ"}])
    assert [(record.files, record.reader) for record in inventory.records] == [(("C.NII.GZ",), "nifti"), (("p1.mha",), "itk")]


def test_row_naming_a_slice_reads_the_series_of_that_slice(tmp_path):
    root = tmp_path / "clinic"
    write_series(root / "Anna", chest(5), SeriesInstanceUID="1.2.3.1", start="A")
    write_series(root / "Anna", chest(9)[:22], SeriesInstanceUID="1.2.3.2", start="B")  # a folder row would read series 1
    write_series(root / "Anna" / "deeper", chest(11), SeriesInstanceUID="1.2.3.2", start="C")
    slices = {start: sorted((root / "Anna").glob(f"{start}*.dcm")) for start in "AB"}
    names = [path.relative_to(root).as_posix() for path in (*slices["B"][3:5], slices["A"][8])]
    inventory = listed(root, [{"volume": name, "report": "Clear."} for name in names])
    assert [record.files for record in inventory.records] == [(names[2],), (names[0],)]
    assert noted(inventory, "1 rows repeat a volume")
    assert noted(inventory, "1 volumes of the folder are not in the table")
    volumes = [read_dicom(record, root).voxels for record in inventory.records]
    np.testing.assert_array_equal(volumes[0], chest(5))
    np.testing.assert_array_equal(volumes[1], chest(9)[:22])


def test_second_text_of_a_volume_is_an_addendum(root):
    rows = [{"volume": "c", "report": "Clear."}, {"volume": "Anna/a", "report": "x."}, {"volume": "c", "report": "Addendum: no."}]
    inventory = listed(root, rows)
    assert [(record.findings, record.impression) for record in inventory.records] == [("x.", None), ("Clear.", "no.")]
    assert inventory.quarantined == []


def test_rows_that_are_not_used_are_left_out_and_counted_by_their_verdict(root):
    rows = [
        {"volume": "c", "use": "1", "verdict": "usable"}, {"volume": "Anna/a", "use": "", "verdict": ""},
        {"volume": "Anna/b", "use": "0", "verdict": "rule: mip"}, {"volume": "Bernd/a", "use": "0", "verdict": "not_ct: MR"},
        {"volume": "gone", "use": "0", "verdict": "not_ct: SR"},
    ]  # fmt: skip
    inventory = listed(root, rows)
    assert [record.row for record in inventory.records] == [3, 2]
    assert inventory.quarantined == []
    assert noted(inventory, "3 rows with use = 0 are left out, 2 not_ct, 1 rule: mip")
    assert not noted(inventory, "not in the table")
    with pytest.raises(ValueError, match="every row has use = 0"):
        listed(root, rows[2:])
    with pytest.raises(ValueError, match="1 cells of the column `use` are neither 1 nor 0"):
        listed(root, [*rows, rows[0] | {"use": "yes"}])


def test_patients_come_from_the_dicom_header_unless_the_table_names_them(tmp_path):
    root = tmp_path / "clinic"
    for number, accession in enumerate(("A1", "A2", "A3")):
        tags = {"PatientID": f"P{number // 2}", "StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.3.{number}"}
        write_series(root / accession / "CT", chest(), **tags)
    table = [{"volume": "A1/CT/IM0001.dcm"}, {"volume": "A2/CT"}, {"volume": "A3/CT"}]
    for rows in (None, table):
        assert [r.patient_id for r in listed(root, rows).records] == ["custom/P0", "custom/P0", "custom/P1"]
    named = listed(root, [{**row, "patient": f"X{number}"} for number, row in enumerate(table)])
    assert [r.patient_id for r in named.records] == ["custom/X0", "custom/X1", "custom/X2"]


@pytest.mark.parametrize("first", [{"PatientID": None}, {"PatientID": None, "SeriesInstanceUID": None}])
def test_the_patient_is_that_of_the_first_file_with_a_patient_id(tmp_path, first):
    root = tmp_path / "clinic"
    write_series(root / "A1" / "CT", chest(), PatientID="P1")
    write_series(root / "A1" / "CT", chest()[:1], start="A", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **first)
    assert [record.patient_id for record in listed(root).records] == ["custom/P1"]


def test_a_folder_with_a_localizer_of_another_patient_is_refused(tmp_path):
    root = tmp_path / "clinic"
    write_series(root / "CT", chest(), PatientID="P1")
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.9"}
    write_series(root / "CT", chest()[:1], start="A", PatientID="P2", **scout)
    (record,) = listed(root).records
    with pytest.raises(Refusal, match="several_studies"):
        read_dicom(record, root)


def test_slices_of_one_series_with_different_labels_are_contradicting_rows(tmp_path):
    root = tmp_path / "clinic"
    names = [path.relative_to(root).as_posix() for path in sorted(write_series(root / "Anna", chest(5)).iterdir())[:2]]
    inventory = listed(root, [{"volume": name, "Emphysema": f"{row}"} for row, name in enumerate(names)])
    assert [(entry.code, entry.row) for entry in inventory.quarantined] == [("duplicate_row", 2)]


@pytest.mark.parametrize("outer", [".", "Anna", "Anna/CT"])
def test_folder_row_around_another_series_is_refused_because_the_series_would_be_stored_twice(tmp_path, outer):
    root = write_volumes(tmp_path / "clinic", "b.nii.gz")
    write_series(root / "Anna" / "CT", chest(5))
    inner = ("Anna/CT/IM0003.dcm",) if outer == "Anna/CT" else ("Anna/CT/IM0003.dcm", "b.nii.gz")
    inventory = listed(root, [{"volume": name, "patient": "x", "report": "Clear."} for name in (outer, *inner)])
    assert [(entry.code, entry.row) for entry in inventory.quarantined] == [("nested_series", 2)]
    assert [record.files[0] for record in inventory.records] == [*inner]


@pytest.mark.parametrize("table", [None, [{"volume": "Anna/CT"}, {"volume": "Anna"}]])
def test_series_in_a_folder_and_in_its_subfolder_are_two_volumes(tmp_path, table):
    root = tmp_path / "clinic"
    write_series(root / "Anna", chest(5)[:22])
    write_series(root / "Anna" / "CT", chest(9), SeriesInstanceUID="1.2.3.2")  # larger: the folder row would choose it
    inventory = listed(root, table)
    assert inventory.quarantined == []
    assert [record.files for record in inventory.records] == [("Anna",), ("Anna/CT",)]
    for record, expected in zip(inventory.records, (chest(5)[:22], chest(9))):
        np.testing.assert_array_equal(read_dicom(record, root).voxels, expected)


@pytest.mark.parametrize("above", [".", "Anna"])
def test_stray_slice_above_a_series_is_counted_and_the_series_is_read_once(tmp_path, above):
    root = tmp_path / "clinic"
    write_series(root / "Anna" / "CT", chest(5))
    shutil.copy(root / "Anna" / "CT" / "IM0003.dcm", root / above / "stray.dcm")
    inventory = listed(root)
    (series,) = inventory.records
    assert series.files == ("Anna/CT",)
    np.testing.assert_array_equal(read_dicom(series, root).voxels, chest(5))
    assert noted(inventory, "passed over: 1 DICOM files above folders of series")


@pytest.mark.parametrize("same_uid", [True, False])
def test_slices_of_two_patients_in_one_folder_are_never_mixed(tmp_path, same_uid):
    root = tmp_path / "clinic"
    series = {f"P{number}": chest(number)[: 20 + number] for number in (1, 2)}
    for patient, hu in series.items():
        uid = "1.2.3" if same_uid else f"1.2.3.{patient[1]}"  # one UID for all: programs that remove names do this
        write_series(root, hu, start=patient, PatientID=patient, SeriesInstanceUID=uid)
    for patient, hu in series.items():
        (record,) = listed(root, [{"volume": f"{patient}0003.dcm", "patient": patient}]).records
        np.testing.assert_array_equal(read_dicom(record, root).voxels, hu)
    (record,) = listed(root, [{"volume": ".", "patient": "P1"}]).records
    with pytest.raises(Refusal, match="several_studies"):
        read_dicom(record, root)


# Ids


def test_ids_are_stable_and_depend_on_the_salt(root):
    rows = [{"volume": row["volume"], "patient": "P 1", "study": "S 1"} for row in ROWS]

    def ids(**changes):
        return [(r.volume_id, r.study_id, r.patient_id, r.source) for r in listed(root, rows, keep=False, **changes).records]

    first = ids()
    assert first == ids()
    assert not {name for row in first for name in row} & {name for row in ids(salt=SALT[::-1]) for name in row}
    assert [len(set(column)) for column in zip(*first)] == [3, 1, 1, 3]
    everything = repr(listed(root, rows, keep=False)) + repr(read_listing(root, write_table(root, rows)))
    assert not any(name in everything.replace(str(root), "") for name in ("Anna", "Bernd", "P 1", "S 1"))


def test_ids_stay_when_volumes_are_added_or_the_table_is_sorted(root):
    before = {r.files: r.volume_id for r in listed(root, ROWS, keep=False).records}
    write_volumes(root, "Aa/0.nii.gz")
    after = {r.files: r.volume_id for r in listed(root, [{**ROWS[0], "volume": "Aa/0"}, *ROWS[::-1]], keep=False).records}
    assert before.items() < after.items()


def test_folder_and_files_of_one_name_get_different_ids(tmp_path):
    root = write_volumes(tmp_path / "clinic", "Anna/a.nii", "Anna/a.nii.gz", "Bernd/a.nii", "Bernd/a.nii.gz", "c.nii")
    write_series(root / "Anna" / "a", chest()[:2])
    records = listed(root).records
    assert {record.files[0]: record.volume_id for record in records} == {
        "Anna/a": "custom/Anna/a", "Anna/a.nii": "custom/Anna/a.nii", "Anna/a.nii.gz": "custom/Anna/a.nii.gz",
        "Bernd/a.nii": "custom/Bernd/a.nii", "Bernd/a.nii.gz": "custom/Bernd/a", "c.nii": "custom/c",
    }  # fmt: skip
    assert len({record.study_id for record in records}) == 4  # the series has a study of its own


def test_without_a_table_each_top_level_folder_is_a_patient(root):
    inventory = listed(root)
    assert [(r.volume_id, r.patient_id) for r in inventory.records] == [
        ("custom/Anna/a", "custom/Anna"), ("custom/Anna/b", "custom/Anna"),
        ("custom/Bernd/a", "custom/Bernd"), ("custom/c", "custom/c"),
    ]  # fmt: skip
    assert noted(inventory, "3 patients: DICOM by PatientID, each other top-level folder or file as one patient")
    assert all(record.labels == (-1,) * 18 and record.label_source == "none" for record in inventory.records)


# Splits


@pytest.mark.parametrize(("name", "split"), [("Training", "train"), ("dev", "val"), ("TEST", "test"), ("", "train")])
def test_names_of_splits(root, name, split):
    assert [record.split for record in listed(root, [{"volume": "c", "set": name, "report": "Clear."}]).records] == [split]


@pytest.mark.parametrize(
    ("splits", "message"),
    [(("", "Geheim"), "row 3 of the table has a split other than"), (("train", "test"), "1 patients are in more than one split")],
)
def test_unknown_split_and_patient_in_two_splits_are_refused(root, splits, message):
    with pytest.raises(ValueError, match=message) as caught:
        listed(root, [{**row, "split": split} for row, split in zip(ROWS, splits)])
    assert not any(name in str(caught.value) for name in ("Geheim", "Anna"))


def test_val_is_drawn_by_patient_if_no_row_has_val(tmp_path):
    root = tmp_path / "clinic"
    for name in (f"p{number}/{letter}.nii.gz" for number in range(8) for letter in "ab"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    records = listed(root, val_patients=1).records
    assert Counter(record.split for record in records) == {"train": 14, "val": 2}
    assert all(one.split == two.split for one, two in pairwise(records) if one.patient_id == two.patient_id)


def test_limit_counts_volumes_of_each_split_and_reconstructions_are_numbered(root):
    rows = [{**row, "split": split} for row, split in zip(ROWS, ("train", "train", "test"))]
    assert [r.volume_id for r in listed(root, rows, limit=1).records] == ["custom/Anna/a", "custom/Bernd/a"]
    rows = [{**row, "study": "7", "patient": "x"} for row in ROWS]
    assert [r.reconstruction for r in listed(root, rows).records] == [1, 2, 3]


# Folders


def test_dicom_folders_are_found_without_a_table(tmp_path):
    root = write_volumes(tmp_path / "clinic", "a.nii.gz")
    write_series(root / "Anna" / "1")
    write_series(root / "Anna" / "2", chest(5))
    (root / "Anna" / "notes.txt").write_text("not a volume")
    inventory = listed(root)
    assert [(r.files, r.reader, r.patient_id) for r in inventory.records] == [
        (("Anna/1",), "dicom", f"custom/{NAME}"), (("Anna/2",), "dicom", f"custom/{NAME}"), (("a.nii.gz",), "nifti", "custom/a"),
    ]  # fmt: skip
    assert noted(inventory, "the axial series with most slices is used")


def test_folder_of_unreadable_files_is_listed_so_that_its_reader_reports_it(tmp_path, monkeypatch):
    root = write_volumes(tmp_path / "clinic", "a.nii.gz")
    write_series(root / "Anna", chest()[:2])

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mg3d.preparation.sources.scan_walk.is_dicom", refuse)
    assert [record.files for record in listed(root).records] == [("Anna",), ("a.nii.gz",)]


def test_empty_folder_and_missing_table_are_refused(tmp_path):
    (tmp_path / "clinic").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no \.nii, \.nii\.gz, \.hdr, \.mha, \.mhd, .*files or DICOM series"):
        listed(tmp_path / "clinic")
    with pytest.raises(FileNotFoundError, match=r"the table .* does not exist; give a CSV, Excel or JSON file"):
        listed(tmp_path / "clinic", tmp_path / "none.csv")
