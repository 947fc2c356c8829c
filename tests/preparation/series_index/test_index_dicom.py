"""A DICOM export of every kind of series -> a table with a verdict for each, and one chosen series per study."""

import csv
import importlib.util
import json
import stat
from collections import Counter
from pathlib import Path

import pytest
from pydicom.uid import RLELossless
from small_dicom import write_series
from small_export import Export, accession, marked, name_of, patient_id, write_export, write_reports
from small_raw import chest

from mg3d.preparation.series_index import read
from mg3d.preparation.series_index.choose import RULES, read_rules
from mg3d.preparation.series_index.read import read_series
from mg3d.preparation.series_index.words import BODY_PARTS, KINDS, find_words, kernel_class

PROGRAM = Path(__file__).parents[3] / "prepro" / "index_dicom.py"


def index(root, out, *arguments):
    spec = importlib.util.spec_from_file_location("index_dicom", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program.main([str(argument) for argument in (root, "--out", out, "--workers", 1, *arguments)])


def read_rows(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def out(tmp_path):
    (tmp_path / "table").mkdir()
    return tmp_path / "table" / "series.csv"


def test_every_series_has_the_right_verdict_and_one_per_study_is_used(tmp_path, out, capsys):
    expected = write_export(tmp_path / "export")
    assert index(tmp_path / "export", out, "--choose") == 0
    rows = {row["series"]: row for row in read_rows(out)}
    assert rows.keys() == expected.keys()
    for uid, (used, verdict) in expected.items():
        assert (rows[uid]["use"], rows[uid]["verdict"].startswith(verdict)) == (str(int(used)), True), (uid, rows[uid])
    studies = Counter(row["study"] for row in rows.values() if row["use"] == "1")
    assert set(studies.values()) == {1}
    printed = capsys.readouterr().out
    assert "33 series of 12 studies of 8 patients" in printed
    assert "12 series are used; the others:" in printed
    assert "passed over: 1 .txt files, 1 DICOMDIR" in printed


def test_without_choose_every_usable_series_is_used(tmp_path, out):
    expected = write_export(tmp_path / "export")
    assert index(tmp_path / "export", out) == 0
    unusable = ("not_ct", "no_axial_series", "too_few_slices", "missing_slices")
    assert {row["series"] for row in read_rows(out) if row["use"] == "0"} == {
        uid for uid, (_, verdict) in expected.items() if set(verdict if isinstance(verdict, tuple) else [verdict]) & set(unusable)
    }


def test_columns_of_a_series_are_those_of_its_headers(tmp_path, out):
    export = Export(tmp_path / "export")
    export.add(3, 2, "Thorax", chest(), ContrastBolusAgent="Iodine", ConvolutionKernel="Br40d", SliceThickness="5.0")
    index(export.root, out)
    (row,) = read_rows(out)
    expected = {
        "volume": "0302/001/S1-0000.dcm", "study": "1.2.8.3.2", "series": "1.2.9.1", "accession": "0302", "modality": "CT",
        "body_part": "chest", "kind": "", "kernel": "Br40d", "thickness_mm": "5.0", "spacing_mm": "5.0", "pixel_mm": "3.0",
        "files": "26", "slices": "26", "rows": "22", "columns": "24",
        "image_type": "ORIGINAL\\PRIMARY\\AXIAL", "contrast": "True",
        "orientation": "axial", "use": "1", "verdict": "usable",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


# Privacy


def test_no_name_or_patient_id_is_in_the_table_or_printed_and_files_are_private(tmp_path, out, capsys):
    export = Export(tmp_path / "export")
    for patient, study in ((1, 1), (1, 3), (2, 1)):
        export.add(patient, study, f"Thorax of {name_of(patient)}")
    assert index(export.root, out) == 0
    printed = capsys.readouterr()
    text = out.read_text() + printed.out + printed.err
    assert not any(name in text for name in ("Muster", "Erika", "MRN0"))
    key = {row["patient"]: row for row in read_rows(out.with_suffix(".key.csv"))}
    assert sorted(row["patient_id"] for row in key.values()) == [patient_id(1), patient_id(2)]
    rows = read_rows(out)
    assert [key[row["patient"]]["patient_id"] for row in rows if row["accession"].startswith("01")] == [patient_id(1)] * 2
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.parent.iterdir()} == dict.fromkeys(
        ("series.csv", "series.key.csv", "series.salt.txt", "series.cache.jsonl"), 0o600
    )


def test_dates_of_a_patient_move_by_the_same_days(tmp_path, out):
    from datetime import date

    export = Export(tmp_path / "export")
    for patient, study in ((1, 1), (1, 3), (2, 1)):
        export.add(patient, study, "Thorax")
    index(export.root, out)
    shift = {row["patient"]: int(row["date_shift_days"]) for row in read_rows(out.with_suffix(".key.csv"))}
    for row in read_rows(out):
        moved = date(2021, int(row["accession"][-2:]), 15) - date.fromisoformat(row["date"])
        assert 1 <= moved.days == shift[row["patient"]] <= 365


def test_path_with_a_patients_name_has_a_warning(tmp_path, out, capsys):
    Export(tmp_path / "export").add(1, 1, "Thorax", folder="MUSTERMANN1/CT")
    index(tmp_path / "export", out)
    assert "warning: the paths of 1 series contain the patient's name or PatientID" in capsys.readouterr().out


# Large exports


def test_a_stopped_run_continues_and_new_folders_are_added(tmp_path, out):
    export, totals = Export(tmp_path / "export"), []
    for patient in (1, 2, 3):
        export.add(patient, 1, "Thorax")

    def stop_after(limit):
        def track(results, total):
            totals.append(total)
            for number, result in enumerate(results):
                if number == limit:
                    raise KeyboardInterrupt
                yield result

        return track

    cache = tmp_path / "cache.jsonl"
    with pytest.raises(KeyboardInterrupt):
        read_series(export.root, cache, workers=1, track=stop_after(5))
    cache.write_text(cache.read_text() + '{"version": 1, "folder": "01')  # a killed run
    first, _ = read_series(export.root, cache, workers=1, track=stop_after(None))
    export.add(4, 1, "Thorax")
    second, _ = read_series(export.root, cache, workers=1, track=stop_after(None))
    assert totals == [7, 2, 3]  # the root and both folders of patient 4 are new
    assert [len(first), len(second)] == [3, 4]
    assert second == read_series(export.root, tmp_path / "other.jsonl", workers=1, track=stop_after(None))[0]


def test_a_folder_is_read_again_while_a_file_was_incomplete_or_a_decoder_was_missing(tmp_path, monkeypatch):
    export = Export(tmp_path / "export")
    export.add(1, 1, "Thorax", folder="CT")
    path = next((export.root / "CT").iterdir())
    content, cache = path.read_bytes(), tmp_path / "cache.jsonl"

    def found():
        (series,), passed_over = read_series(export.root, cache, workers=1, track=lambda items, _: iter(items))
        return series.files, series.code, passed_over.total()

    path.write_bytes(content[:500])
    assert found() == (39, "", 1)
    path.write_bytes(content)  # does not change the folder's modification time
    assert found() == (40, "", 0)
    export.add(1, 1, "Thorax", folder="CT2", syntax=RLELossless)
    (export.root / "CT").rename(tmp_path / "away")
    monkeypatch.setattr(read, "can_decode", lambda syntax: False)
    assert found()[1] == "codec_missing"
    monkeypatch.undo()
    assert found() == (40, "", 0)


@pytest.mark.parametrize("name", ["AccessionNumber", "ConvolutionKernel", "StudyDescription"])
def test_a_tag_of_an_unknown_type_counts_as_missing_and_nothing_is_printed(tmp_path, out, name, recwarn):
    export = Export(tmp_path / "export")
    export.add(1, 1, "Thorax", folder="CT", **{name: "MARK"})
    for path in (export.root / "CT").iterdir():
        content = path.read_bytes()
        start = content.index(b"MARK") - 4
        path.write_bytes(content[:start] + b"Q9" + content[start + 2 :])
    assert index(export.root, out) == 0
    assert [row["slices"] for row in read_rows(out)] == ["40"]
    assert not list(recwarn)


@pytest.mark.slow
def test_worker_processes_give_the_series_of_one_process(tmp_path):
    write_export(tmp_path / "export")
    results = [
        read_series(tmp_path / "export", tmp_path / f"{workers}.jsonl", workers=workers, track=lambda items, _: iter(items))
        for workers in (1, 2)
    ]
    assert results[0] == results[1]


def test_damaged_and_foreign_files_are_counted_and_the_series_is_still_listed(tmp_path, out, capsys):
    export = Export(tmp_path / "export")
    export.add(1, 1, "Thorax", folder="CT")
    (export.root / "CT" / "damaged.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 90)
    for name in ("scan.nii.gz", "series.ZIP"):
        (export.root / "CT" / name).write_bytes(b"")
    assert index(export.root, out) == 0
    formats = "1 scan files of other formats, 1 zip files (unpack those with DICOM files)"
    assert f"passed over: 1 DICOM files without a SeriesInstanceUID, {formats}" in capsys.readouterr().out
    assert [row["files"] for row in read_rows(out)] == ["40"]


def test_copies_count_once_and_a_series_in_several_folders_is_named_by_their_parent(tmp_path, out):
    root = tmp_path / "export"
    for folder in ("a", "b"):
        write_series(root / "copies" / folder, chest(), SeriesInstanceUID="1.1")
    for part, slices in (("1", slice(0, 13)), ("2", slice(13, 26))):
        write_series(root / "split" / part, chest()[slices], SeriesInstanceUID="1.2", StudyInstanceUID="1", PatientID=part * 0)
        shift = 0.0 if part == "1" else 13 * 5.0
        for path in (root / "split" / part).iterdir():
            _move(path, shift)
    index(root, out)
    rows = {row["series"]: row for row in read_rows(out)}
    assert [rows[uid]["volume"] for uid in ("1.1", "1.2")] == ["copies/a/IM0000.dcm", "split"]
    assert [(rows[uid]["files"], rows[uid]["use"]) for uid in ("1.1", "1.2")] == [("26", "1"), ("26", "1")]


def test_a_localizer_in_several_folders_is_not_usable(tmp_path, out):
    for part in ("1", "2"):
        slices = chest()[:1] if part == "1" else chest()[1:3]
        image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        write_series(tmp_path / "export" / part, slices, SeriesInstanceUID="1.1", ImageType=image_type)
    for path in (tmp_path / "export" / "1").iterdir():
        _move(path, 50.0)
    index(tmp_path / "export", out)
    (row,) = read_rows(out)
    assert (row["volume"], row["use"], row["verdict"].split(":")[0]) == (".", "0", "no_axial_series")


def _move(path, mm):
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.ImagePositionPatient[2] += mm
    dataset.save_as(path)


# Rules


def test_a_rule_file_changes_the_choice(tmp_path, out):
    export = Export(tmp_path / "export")
    soft, sharp = (export.add(1, 1, "Thorax", ConvolutionKernel=kernel) for kernel in ("B30f", "B70f"))
    rules = tmp_path / "rules.toml"
    for best, chosen in (("soft", soft), ("sharp", sharp)):
        rules.write_text(f'[points]\nbest_kernel = "{best}"\n')
        assert index(export.root, out, "--choose", rules) == 0
        assert [row["series"] for row in read_rows(out) if row["use"] == "1"] == [chosen]


@pytest.mark.parametrize("text", ["[points]\nbeauty = 3", "[wishes]\n", "points = 3", "no toml"])
def test_an_unknown_rule_is_refused(tmp_path, text):
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(ValueError, match=r"rules\.toml"):
        read_rules(tmp_path / "rules.toml")
    assert read_rules(RULES)["points"]["chest"] == 40


@pytest.mark.parametrize(
    ("text", "table", "expected"),
    [
        ("CHESTABDPELVIS", BODY_PARTS, ["chest", "abdomen", "pelvis"]), ("Low dose thorax", BODY_PARTS, ["chest"]),
        ("Behandlung", BODY_PARTS, []), ("CAP with contrast", BODY_PARTS, ["chest", "abdomen", "pelvis"]),
        ("capsule", BODY_PARTS, []), ("thorax coronal", BODY_PARTS, ["chest"]), ("Low dose thorax", KINDS, []),
        ("Dose Report", KINDS, ["dose report"]), ("ORIGINAL\\PRIMARY\\LOCALIZER", KINDS, ["localizer"]),
        ("COR 3x3", KINDS, ["mpr"]),
        ("Coronary CTA", KINDS, []), ("chest protocol", KINDS, []), ("AX MinIP", KINDS, ["minip"]), ("MIP 10/5", KINDS, ["mip"]),
    ],
)  # fmt: skip
def test_words_of_descriptions(text, table, expected):
    assert find_words([text], table) == expected


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [("B30f", "soft"), ("Br40d\\3", "soft"), ("B70f", "sharp"), ("Bl57", "sharp"), ("I31s", "soft"),
     ("FC08", "soft"), ("FC51", "sharp"),
     ("LUNG", "sharp"), ("STANDARD", "soft"), ("YB", "sharp"), ("B", "soft"), ("", ""), ("XYZ", "")],
)  # fmt: skip
def test_kernels_are_soft_or_sharp(kernel, expected):
    assert kernel_class(kernel) == expected


# Reports


def join(root, out, rows, *arguments):
    path = write_reports(root.parent / "reports.xlsx", rows)
    return index(root, out, "--reports", path, "--key", "accession=Accession No", "--text", "Report text", *arguments)


def test_reports_are_joined_by_accession_though_excel_dropped_the_zeros(tmp_path, out, capsys):
    write_export(tmp_path / "export")
    rows = [(accession(patient, 1), f"Chest of {patient}.") for patient in range(1, 7)]
    rows += [(accession(1, 1), "ADDENDUM: also this."), ("9999", "Nobody."), ("", "No key."), (accession(2, 2), "No study.")]
    assert join(tmp_path / "export", out, [rows[6], *rows[:6], *rows[7:], rows[0]], "--choose") == 0
    texts = {row["accession"]: row["report"] for row in read_rows(out) if row["use"] == "1"}
    assert texts[accession(1, 1)] == "Chest of 1.\n\nADDENDUM: also this."
    assert [texts[accession(patient, 1)] for patient in range(2, 7)] == [f"Chest of {patient}." for patient in range(2, 7)]
    assert [texts[accession(*key)] for key in ((7, 1), (8, 1), (4, 2), (5, 2))] == [""] * 4
    printed = capsys.readouterr().out
    assert "8 of 11 rows joined to 6 studies (1 addenda); 3 rows, and 6 of 12 studies with a used series, have no" in printed
    assert "Chest of" not in printed
    unmatched = read_rows(out.with_suffix(".unmatched.csv"))
    assert Counter(entry["reason"] for entry in unmatched if entry["what"] == "row") == {
        "no study has this key": 2, "no Accession No": 1,
    }  # fmt: skip
    assert sorted(entry["name"] for entry in unmatched if entry["what"] == "study") == [
        "1.2.8.4.2", "1.2.8.5.2", "1.2.8.6.2", "1.2.8.7.1", "1.2.8.8.1", "1.2.8.8.2",
    ]  # fmt: skip


def test_a_number_that_two_accessions_share_but_for_zeros_joins_neither(tmp_path, out):
    export = Export(tmp_path / "export")
    for patient, number in ((1, "7"), (2, "007"), (3, "0008")):
        export.add(patient, 1, "Thorax", AccessionNumber=number)
    assert join(tmp_path / "export", out, [("007", "Whose?"), ("08", "Of the third.")]) == 0  # Excel stores 7 and 8
    assert {row["accession"]: row["report"] for row in read_rows(out)} == {"7": "", "007": "", "0008": "Of the third."}


@pytest.mark.parametrize(("encoding", "separator"), [("utf-8", ","), ("cp1252", ";"), ("utf-16", "\t"), ("utf-8-sig", "|")])
def test_reports_of_csv_files_in_any_encoding_are_joined_by_study_uid(tmp_path, out, encoding, separator):
    export = Export(tmp_path / "export")
    export.add(1, 1, "Thorax")
    lines = ["StudyInstanceUID,Befund,Findings,Impression", "1.2.8.1.1,Größe,Clear.,Normal."]
    path = tmp_path / "reports.csv"
    path.write_bytes("\r\n".join(lines).replace(",", separator).encode(encoding))
    text = ("--text", "Befund", "Findings", "Impression")
    assert index(export.root, out, "--reports", path, "--key", "study_uid", *text) == 0
    (row,) = read_rows(out)
    assert [row[name] for name in ("report", "findings", "impression")] == ["Größe", "Clear.", "Normal."]


def test_a_patient_id_joins_only_where_it_names_one_study_and_one_report(tmp_path, out):
    export = Export(tmp_path / "export")
    for patient, study in ((1, 1), (2, 1), (2, 2), (3, 1)):
        export.add(patient, study, "Thorax")
    rows = [(patient_id(1), "One."), (patient_id(1), "Addendum: x."), (patient_id(2), "Which?"), (patient_id(3), "A."),
            (patient_id(3), "B.")]  # fmt: skip
    path = write_reports(tmp_path / "reports.xlsx", rows)
    assert index(export.root, out, "--reports", path, "--key", "patient_id=Accession No", "--text", "Report text") == 0
    assert sorted(row["report"] for row in read_rows(out)) == ["", "", "", "One.\n\nAddendum: x."]
    reasons = Counter(entry["reason"].split(":")[0] for entry in read_rows(out.with_suffix(".unmatched.csv")))
    assert reasons == {"the patient has several studies": 1, "the patient has several reports": 2, "no report": 3}
    assert "MRN" not in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--key", "name"), "expected one of accession, study_uid, patient_id"),
        (("--key", "accession=Nothing"), "has no column Nothing"),
        (("--text", "Befund"), "has no column Befund"),
    ],
)
def test_wrong_columns_are_named_before_any_header_is_read(tmp_path, out, capsys, arguments, message):
    (tmp_path / "export").mkdir()
    path = write_reports(tmp_path / "reports.xlsx", [("1", "Secret text.")])
    assert index(tmp_path / "export", out, "--reports", path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Secret" not in error


def test_a_folder_without_dicom_is_refused_with_what_it_has(tmp_path, out, capsys):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "a.txt").touch()
    assert index(tmp_path / "export", out) == 2
    assert "has no DICOM series; passed over: 1 .txt files" in capsys.readouterr().err


def test_the_cache_holds_one_line_per_folder(tmp_path, out):
    export = Export(tmp_path / "export")
    export.add(1, 1, "Thorax", marked(1))
    index(export.root, out)
    lines = [json.loads(line) for line in out.with_suffix(".cache.jsonl").read_text().splitlines()]
    assert [line["folder"] for line in lines] == [".", "0101", "0101/001"]
