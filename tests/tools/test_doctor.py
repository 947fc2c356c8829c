import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from planted_faults import FaultySet
from small_arrow import edit_index, first_with, with_distinct_reports, write_split
from small_doctor import SETTINGS
from small_raw import LPS, chest, write_nifti

from mg3d.doctor import statistics
from mg3d.phantom.generate import generate
from mg3d.preparation.sources.ctrg import read_annotation
from tools import doctor

KEYS = {"code", "severity", "message", "expected", "action", "volumes", "values", "count"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A synthetic set with one head that leaks from train to valid."""
    root = tmp_path_factory.mktemp("raw")
    generate(root, SETTINGS, workers=1)
    tree = FaultySet(root, SETTINGS)
    shutil.copy(tree.path("train_3_a_1"), tree.path("valid_2_a_1"))
    tree.set_cells("metadata", "valid_2_a_1", **dict.fromkeys(("NumberofSlices", "Rows", "Columns"), ""))
    return root


@pytest.fixture
def arrows(tmp_path):
    def voxels(number, shape):
        """A box of tissue with a hollow at a different position for each patient."""
        volume = np.full(shape, -1000, np.int16)
        volume[:, 3:21, 4:28] = 40 + 7 * number
        volume[:, 7:17, 9 + number % 5 : 22] = -850 + np.arange(shape[0])[:, None, None]
        return volume

    for split, first, patients in (("train", 0, 7), ("val", 40, 3), ("test", 60, 3)):
        write_split(tmp_path, "ct_rate", split, patients=patients, first=first, shape=(32, 24, 32), voxels=voxels)
        edit_index(tmp_path, split, with_distinct_reports)
    return tmp_path


def test_table_json_and_page_agree_and_contain_no_report_text(raw, tmp_path, capsys):
    out = tmp_path
    arguments = [str(raw), "--workers", "1", "--json", str(out / "d.json"), "--html", str(out / "d.html")]
    assert doctor.main(arguments) == 1
    printed = capsys.readouterr().out
    content, page = json.loads((out / "d.json").read_text()), (out / "d.html").read_text()
    assert {"version", "path", "kind", "datasets", "synthetic", "verdict", "volumes", "volumes_read", "counts", "results"} <= set(
        content
    )
    assert (content["verdict"], content["kind"], content["synthetic"]) == ("error", "raw", True)
    assert all(set(finding) == KEYS for finding in content["results"])
    assert all(finding["count"] == len(finding["volumes"]) for finding in content["results"])
    first = content["results"][0]
    assert (first["code"], first["volumes"]) == ("duplicate_pixels", ["ct_rate/train_3_a_1", "ct_rate/valid_2_a_1"])
    for text in (printed, page):
        assert "duplicate_pixels" in text.replace("\n", "")
        assert "synthetic" in text
    assert re.findall("<h2>(.*?)</h2>", page) == ["Verdict", "Results", "Counts", "Intensities", "Label prevalence"]
    assert "<img alt='Histogram of HU per source: " in page
    truths = [json.loads(path.read_text())["report"]["findings"] for path in (raw / "truth").glob("*/*.json")]
    sentences = {part for truth in truths for part in re.split(r"(?<=\.)\s", truth) if len(part) > 12}
    assert len(sentences) > 50
    folders = {path.name for path in (raw / "ctrg" / "Chest_New").iterdir()}
    everything = printed + page + json.dumps(content)
    assert not [word for word in sentences | folders if word in everything]
    assert read_annotation(raw / "ctrg" / "chest_ctrg_jpg.json")["train"]


def test_incomplete_ct_rate_is_a_warning(arrows):
    arguments = [str(arrows), "--workers", "1", "--json", str(arrows / "d.json")]
    assert doctor.main(arguments) == 0
    assert doctor.main([*arguments, "--fail-on", "warning"]) == 1
    findings = json.loads((arrows / "d.json").read_text())["results"]
    assert {found["code"] for found in findings if found["severity"] != "info"} == {"partial"}
    assert findings[0]["values"] == {"found": [7, 7, 7], "published": [20_000, 24_128, 47_149]}


def codes(arrows, *more):
    report = arrows / "d.json"
    code = doctor.main([str(arrows), "--workers", "1", "--json", str(report), *more])
    return code, {found["code"] for found in json.loads(report.read_text())["results"] if found["severity"] == "error"}


def test_errors_of_arrow_files_give_exit_code_1(arrows):
    listed = arrows / "list.txt"
    listed.write_text("train_3\n")
    assert codes(arrows) == (0, set())
    assert codes(arrows, "--lists", str(listed)) == (1, {"in_evaluation_list"})
    (arrows / "shards" / "ct_rate" / "val.arrow").unlink()
    code, found = codes(arrows)
    assert code == 1
    assert {"missing_shard", "unreadable"} <= found
    edit_index(arrows, "test", first_with("patient_id", "ct_rate/train_2"))
    assert "patient_in_two_splits" in codes(arrows)[1]


def test_reports_of_a_custom_folder_come_from_its_table(tmp_path, capsys):
    for number in range(2):
        write_nifti(tmp_path / "custom" / f"p{number}.nii.gz", chest(number).transpose(2, 1, 0), LPS)
    table = tmp_path / "reports.csv"
    table.write_text("volume,report,split\np0,Both lungs are clear of any nodule.,train\np1,Not given.,test\n")
    arguments = [str(tmp_path / "custom"), "--dataset", "custom", "--workers", "1"]
    doctor.main([*arguments, "--table", str(table), "--json", str(tmp_path / "d.json")])
    found = {finding["code"]: finding["count"] for finding in json.loads((tmp_path / "d.json").read_text())["results"]}
    assert found["no_report"] == 1
    with pytest.raises(SystemExit):
        doctor.main([str(tmp_path / "custom"), "--table", str(table)])
    assert "--dataset custom" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["patient 1/series/0001.dcm", "scans/one.nii.gz"])
def test_unknown_layout_suggests_custom_and_no_name_is_printed(tmp_path, capsys, name):
    path = tmp_path / "clinic" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(128) + b"DICM")
    assert doctor.main([str(tmp_path / "clinic")]) == 2
    message = capsys.readouterr().err
    assert "give --dataset custom (and --table FILE" in message
    assert "patient 1" not in message


def test_quarantined_volumes_are_summarized_by_reason(arrows):
    line = {"volume_id": "ct_rate/train_9_a_1", "dataset": "ct_rate", "stage": "volume", "code": "gzip_truncated", "detail": ""}
    (arrows / "quarantine.jsonl").write_text(json.dumps(line) + '\n{"torn')
    doctor.main([str(arrows), "--workers", "1", "--json", str(arrows / "d.json")])
    findings = json.loads((arrows / "d.json").read_text())["results"]
    assert [found["volumes"] for found in findings if found["code"] == "gzip_truncated"] == [["ct_rate/train_9_a_1"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "looks like none of ct_rate, ctrg"),
        ([".", "--lists", "gone.txt"], "gone.txt"),
        (["cut.arrow"], "not a complete Arrow file"),
    ],
)
def test_data_that_cannot_be_checked_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("cut.arrow").write_bytes(b"half")
    assert doctor.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("doctor: ")
    assert message in error
    assert error.count("\n") == 1


def test_interrupt_prints_one_sentence(arrows, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(statistics, "voxel_statistics", interrupt)
    assert doctor.main([str(arrows), "--workers", "1"]) == 130
    assert capsys.readouterr().err == "doctor: interrupted\n"
