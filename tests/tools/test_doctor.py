import base64
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from small_arrow import write_split
from small_doctor import SETTINGS, RawSet
from small_raw import LPS, chest, write_nifti

from mg3d.phantom.generate import generate
from mg3d.preparation.sources.ctrg import read_annotation

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("doctor", ROOT / "tools/doctor.py")
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)
KEYS = {"code", "severity", "found", "expected", "action", "volumes", "values", "count"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A synthetic set with one head that leaks from train to valid."""
    root = tmp_path_factory.mktemp("raw")
    generate(root, SETTINGS, workers=1)
    tree = RawSet(root)
    shutil.copy(tree.path("train_3_a_1"), tree.path("valid_2_a_1"))
    for column in ("NumberofSlices", "Rows", "Columns"):
        tree.edit("metadata", "valid_2_a_1", column, "")
    return root


@pytest.fixture
def arrows(tmp_path):
    def voxels(number, shape):
        """A box of tissue with a hollow, at a place of its own."""
        volume = np.full(shape, -1000, np.int16)
        volume[:, 3:21, 4:28] = 40 + 7 * number
        volume[:, 7:17, 9 + number % 5 : 22] = -850 + np.arange(shape[0])[:, None, None]
        return volume

    for split, first, patients in (("train", 0, 7), ("val", 40, 3), ("test", 60, 3)):
        write_split(tmp_path, "ct_rate", split, patients=patients, first=first, shape=(32, 24, 32), voxels=voxels)
        edit(tmp_path, split, lambda rows: [{**row, "report_sha256": row["study_id"]} for row in rows])
    return tmp_path


def edit(root, split, change):
    path = root / f"clm_ct_rate_{split}.arrow"
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    rows, schema = change(table.to_pylist()), table.schema
    path.unlink()
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


class Structure(HTMLParser):
    """Checks that tags are closed in order, and collects pictures and headings."""

    def __init__(self):
        super().__init__()
        self.open, self.pictures, self.headings = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.pictures.append(dict(attributes))
        elif tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_table_json_and_page_say_the_same_and_no_word_of_a_report(raw, tmp_path, capsys):
    out = tmp_path
    words = [str(raw), "--workers", "1", "--json", str(out / "d.json"), "--html", str(out / "d.html")]
    assert TOOL.main(words) == 1
    said = capsys.readouterr().out
    content, page = json.loads((out / "d.json").read_text()), (out / "d.html").read_text()
    assert {"version", "path", "kind", "datasets", "synthetic", "verdict", "volumes", "read", "counts", "findings"} <= set(
        content
    )
    assert (content["verdict"], content["kind"], content["synthetic"]) == ("blocking", "raw", True)
    assert all(set(finding) == KEYS for finding in content["findings"])
    assert all(finding["count"] == len(finding["volumes"]) for finding in content["findings"])
    first = content["findings"][0]
    assert (first["code"], first["volumes"]) == ("duplicate_pixels", ["ct_rate/train_3_a_1", "ct_rate/valid_2_a_1"])
    for text in (said, page):
        assert "duplicate_pixels" in text.replace("\n", "")
        assert "synthetic" in text
    truths = [json.loads(path.read_text())["report"]["findings"] for path in (raw / "truth").glob("*/*.json")]
    sentences = {part for truth in truths for part in re.split(r"(?<=\.)\s", truth) if len(part) > 12}
    assert len(sentences) > 50
    folders = {path.name for path in (raw / "ctrg" / "Chest_New").iterdir()}
    everything = said + page + json.dumps(content)
    assert not [word for word in sentences | folders if word in everything]
    assert read_annotation(raw / "ctrg" / "chest_ctrg_jpg.json")["train"]


def test_the_page_is_whole_and_every_picture_has_words(raw, tmp_path):
    TOOL.main([str(raw), "--workers", "1", "--html", str(tmp_path / "d.html")])
    page = (tmp_path / "d.html").read_text()
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert structure.headings == [
        "Verdict", "Findings", "Counts", "Intensities", "Shares of labels", "Ordinary volumes", "Volumes to look at",
    ]  # fmt: skip
    told = [picture["alt"] for picture in structure.pictures]
    assert all(told)
    assert sum("ordinary" in words for words in told) == 3
    assert [words for words in told if "valid_2_a_1: duplicate_pixels" in words]
    assert any("Shares of labels in ct_rate valid" in words for words in told)
    for picture in structure.pictures:
        kind, encoded = picture["src"].split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).size[0] > 300
    assert "http" not in re.sub(r"src='[^']*'", "", page)


def test_clean_arrow_files_go_on_and_only_part_of_ct_rate_is_a_warning(arrows):
    words = [str(arrows), "--workers", "1", "--json", str(arrows / "d.json")]
    assert TOOL.main(words) == 0
    assert TOOL.main([*words, "--fail-on", "warning"]) == 1
    findings = json.loads((arrows / "d.json").read_text())["findings"]
    assert {found["code"] for found in findings if found["severity"] != "fact"} == {"partial"}
    assert findings[0]["values"] == {"found": [7, 7, 7], "published": [20_000, 24_128, 47_149]}


def codes(arrows, *more):
    report = arrows / "d.json"
    code = TOOL.main([str(arrows), "--workers", "1", "--json", str(report), *more])
    return code, {found["code"] for found in json.loads(report.read_text())["findings"] if found["severity"] == "blocking"}


def test_blocking_faults_of_arrow_files_give_exit_code_1(arrows):
    listed = arrows / "list.txt"
    listed.write_text("train_3\n")
    assert codes(arrows) == (0, set())
    assert codes(arrows, "--lists", str(listed)) == (1, {"in_evaluation_list"})
    (arrows / "shards" / "ct_rate" / "val.arrow").unlink()
    code, found = codes(arrows)
    assert code == 1
    assert {"missing_shard", "unreadable"} <= found
    edit(arrows, "test", lambda rows: [{**rows[0], "patient_id": "ct_rate/train_2"}, *rows[1:]])
    assert "patient_in_two_splits" in codes(arrows)[1]


def test_voxels_that_were_rescaled_twice_block(arrows):
    def air(number, shape):
        return np.full(shape, -1024, np.int16) + (np.arange(shape[2]) == number % 7).astype(np.int16) * 200

    write_split(arrows, "ct_rate", "train", patients=7, shape=(32, 24, 32), voxels=air)
    edit(arrows, "train", lambda rows: [{**row, "report_sha256": row["study_id"]} for row in rows])
    assert codes(arrows)[1] == {"double_rescaled"}


def test_a_prepared_folder_without_a_val_is_examined(arrows):
    edit(arrows, "val", lambda rows: [])
    assert codes(arrows)[0] == 0


def test_reports_of_an_own_folder_come_from_its_table(tmp_path, capsys):
    for number in range(2):
        write_nifti(tmp_path / "custom" / f"p{number}.nii.gz", chest(number).transpose(2, 1, 0), LPS)
    table = tmp_path / "reports.csv"
    table.write_text("volume,report,split\np0,Both lungs are clear of any nodule.,train\np1,Not given.,test\n")
    words = [str(tmp_path / "custom"), "--kind", "custom", "--workers", "1"]
    TOOL.main([*words, "--table", str(table), "--json", str(tmp_path / "d.json")])
    found = {finding["code"]: finding["count"] for finding in json.loads((tmp_path / "d.json").read_text())["findings"]}
    assert found["no_report"] == 1
    with pytest.raises(SystemExit):
        TOOL.main([str(tmp_path / "custom"), "--table", str(table)])
    assert "--kind custom" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["patient 1/series/0001.dcm", "scans/one.nii.gz"])
def test_a_folder_of_other_scans_is_told_to_be_of_kind_own_and_no_name_is_said(tmp_path, capsys, name):
    path = tmp_path / "clinic" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(128) + b"DICM")
    assert TOOL.main([str(tmp_path / "clinic")]) == 2
    told = capsys.readouterr().err
    assert "say --kind custom (and --table FILE" in told
    assert "patient 1" not in told


def test_what_is_set_aside_is_summed_up_by_reason(arrows):
    line = {"volume_id": "ct_rate/train_9_a_1", "dataset": "ct_rate", "stage": "volume", "code": "gzip_truncated", "detail": ""}
    (arrows / "quarantine.jsonl").write_text(json.dumps(line) + '\n{"torn')
    TOOL.main([str(arrows), "--workers", "1", "--json", str(arrows / "d.json")])
    findings = json.loads((arrows / "d.json").read_text())["findings"]
    assert [found["volumes"] for found in findings if found["code"] == "truncated_gzip"] == [["ct_rate/train_9_a_1"]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "there is no nowhere"),
        (["."], "looks like none of ct_rate, ctrg"),
        ([".", "--lists", "gone.txt"], "gone.txt"),
        (["cut.arrow"], "not a complete Arrow file"),
    ],
)
def test_what_cannot_be_examined_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    Path("cut.arrow").write_bytes(b"half")
    assert TOOL.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("doctor: ")
    assert told in error
    assert error.count("\n") == 1


def test_stopping_it_is_one_sentence_and_leaves_no_process(raw):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOW_EXAMINATION, str(raw)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "doctor: stopped\n"
    assert process.returncode == 130


SLOW_EXAMINATION = """
import importlib.util, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a program started in the background lacks
spec = importlib.util.spec_from_file_location("doctor", "tools/doctor.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
from mg3d.doctor import measure
def slowly(place, measure=measure.measure):
    print("begun", flush=True)
    time.sleep(30)
measure.measure = slowly
sys.exit(tool.main([sys.argv[1], "--workers", "1"]))
"""
