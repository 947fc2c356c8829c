"""The command line of the preparation: files, resume, quarantine, leaks, error messages."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from small_raw import SHAPE, chest, write_ctrg

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import INDEX_SCHEMA, index_path, volume_batch
from mg3d.finetune.prepared import prepare_dataset, read_prepared, read_prepared_cases
from mg3d.glossary import LABELS
from mg3d.preparation import shards

SCRIPT = Path(__file__).parents[2] / "prepro" / "prepro_pretraining_data.py"
spec = importlib.util.spec_from_file_location("prepro_pretraining_data", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def run(tree_root, out, *more):
    return script.main(["--ct-rate", str(tree_root), "--out", str(out), "--image-size", "32", "--val-patients", "1", *more])


def index(out, split, dataset="ct_rate"):
    return VolumeIndex(index_path(out, dataset, split))


def quarantined(out):
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    return {entry["volume_id"]: entry["code"] for entry in map(json.loads, lines)}


def test_indices_hold_every_volume_with_its_report_and_voxels(small_tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(small_tree.write(), out) == 0
    assert "excluded: none" in capsys.readouterr().out
    table = index(out, "test").table
    assert table.schema.names == INDEX_SCHEMA.names
    assert len(index(out, "train")) + len(index(out, "val")) == 8
    assert len(index(out, "test")) == 2
    patients = [set(index(out, split).table["patient_id"].to_pylist()) for split in ("train", "val", "test")]
    assert not patients[0] & patients[1]
    assert not patients[1] & patients[2]
    for row in table.to_pylist():
        clauses = [row["report"][span["start"] : span["end"]] for span in row["sentence_spans"] if span["kind"] == 1]
        assert clauses == [
            "The heart is normal.",
            "No effusion,",
            "mass,",
            "or node is seen.",
            "Lungs clear.",
            "Emphysema",
            "Hernia",
        ]
    volume = index(out, "test").volume(0).astype(int)
    assert volume.shape == (32, 24, 32)
    body = volume[:, 8:-8, 8:-8]
    assert body[-8].mean() > body[8].mean()  # superior is more
    assert body[:, -1].mean() > body[:, 0].mean()  # posterior is more
    assert body[..., -1].mean() > body[..., 0].mean()  # left is more


def test_a_second_run_writes_nothing_and_restores_a_lost_shard(small_tree, tmp_path, monkeypatch, capsys):
    root, out = small_tree.write(), tmp_path / "out"
    monkeypatch.setattr(shards, "SHARD_ROWS", 4, raising=True)
    assert run(root, out) == 0
    files = {path: path.read_bytes() for path in out.rglob("*.arrow")}
    stored = sorted((out / "shards" / "ct_rate").glob("*.arrow"))
    assert len(stored) > 1
    capsys.readouterr()
    assert run(root, out) == 0
    assert f"0 written, {len(stored)} up to date" in capsys.readouterr().out
    stored[0].write_bytes(stored[0].read_bytes()[:-50])
    stored[1].with_suffix(".json").unlink()
    assert run(root, out) == 0
    assert f"2 written, {len(stored) - 2} up to date" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*.arrow")} == files


def test_unusable_volumes_are_quarantined_with_their_reason(small_tree, tmp_path, capsys):
    small_tree.add("train_7_a_1", file=False)
    cut = small_tree.add("train_8_a_1")
    small_tree.add("train_9_a_1", stored=np.zeros((SHAPE[2], SHAPE[1]), np.int16) - 1000)
    small_tree.add("train_10_a_1", row={"Rows": 99})
    small_tree.add("train_11_a_1", hu=chest(3) + 500, row={"RescaleIntercept": -3000})
    small_tree.add("train_12_a_1", report={"Findings_EN": "Not given.", "Impressions_EN": ""})
    small_tree.add("train_13_a_1")
    small_tree.no_chest.append("train_13_a_1")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    root, out = small_tree.write(), tmp_path / "out"
    assert run(root, out) == 1
    said = capsys.readouterr()
    assert "excluded (4 of 14 volumes with raw files could not be used):" in said.out
    assert "28.6% of the volumes with raw files could not be used, allowed are 2.0% (--max-quarantine); see" in said.err
    codes = quarantined(out)
    assert codes["ct_rate/train_8_a_1"] == "gzip_truncated"
    assert codes["ct_rate/train_9_a_1"] == "not_3d"
    assert codes["ct_rate/train_10_a_1"] == "shape_mismatch"
    assert codes["ct_rate/train_11_a_1"] == "hu_ambiguous"
    assert codes["ct_rate/train_12_a_1"] == "report_missing"
    assert codes["ct_rate/train_13_a_1"] == "no_chest"
    assert Counter(codes.values())["unknown"] == 0
    assert len(index(out, "train")) + len(index(out, "val")) == 8
    assert run(root, out, "--max-quarantine", "0.3") == 0
    assert "The heart" not in (out / "quarantine.jsonl").read_text()


def test_a_missing_raw_file_is_reported_and_is_not_an_error(small_tree, tmp_path, capsys):
    small_tree.add("train_1_a_3", file=False)
    out = tmp_path / "out"
    assert run(small_tree.write(), out) == 0
    assert quarantined(out) == {"ct_rate/train_1_a_3": "missing_file"}
    assert "missing_file  1  listed in the tables, but the file is missing" in capsys.readouterr().out


def test_a_run_that_could_use_no_volume_fails_whatever_is_allowed(small_tree, tmp_path):
    root = small_tree.write()
    for path in root.rglob("*.nii.gz"):
        path.write_bytes(b"")
    assert run(root, tmp_path / "out", "--max-quarantine", "1") == 1


def test_an_image_in_two_splits_stops_the_preparation(small_tree, tmp_path, capsys):
    small_tree.add("valid_3_a_1", hu=chest(0))  # the same as train_1_a_1
    out = tmp_path / "out"
    assert run(small_tree.write(), out) == 1
    assert "images in more than one split" in capsys.readouterr().err
    assert not index_path(out, "ct_rate", "train").exists()


def test_ctrg_is_prepared_without_names(tmp_path, capsys):
    root, out = write_ctrg(tmp_path / "ctrg", 12), tmp_path / "out"
    arguments = ["--ctrg", str(root), "--out", str(out), "--image-size", "32", "--val-patients", "1", "--ctrg-split", "original"]
    assert script.main(arguments) == 0
    sizes = [len(index(out, split, "ctrg")) for split in ("train", "val", "test")]
    assert sizes == [10, 1, 1]  # i <= int(.8 n), i <= int(.9 n), rest
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"Person" not in everything
    assert "Person" not in capsys.readouterr().out
    volume = index(out, "train", "ctrg").volume(0)
    assert volume.dtype == np.uint8
    assert volume[-1].mean() < volume[0].mean()  # stored slices run from superior to inferior


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ct-rate", "nowhere"], "does not exist"),
        (["--ct-rate", "."], "has none of"),
        (["--ctrg", "."], "chest_ctrg_jpg.json"),
    ],
)
def test_invalid_folders_are_reported_in_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert script.main([*arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n\xff\xfe\x00", b'VolumeName,Findings_EN\n"a,b\nc'], ids=["empty", "binary", "cut"]
)
@pytest.mark.parametrize("table", ["radiology_text_reports/train_reports.csv", "metadata/validation_metadata.csv"])
def test_a_broken_table_is_reported_with_its_expected_columns(small_tree, tmp_path, capsys, table, content):
    root = small_tree.write()
    (root / "dataset" / table).write_bytes(content)
    assert run(root, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert str(root / "dataset" / table) in error
    assert "VolumeName" in error
    assert "download it again" in error
    assert error.count("\n") == 1


def test_a_binary_no_chest_list_is_reported(small_tree, tmp_path, capsys):
    root = small_tree.write()
    (root / "dataset/metadata/no_chest_train.txt").write_bytes(b"\xff\xfe\x00a")
    assert run(root, tmp_path / "out") == 2
    assert "no_chest_train.txt contains no volume name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"id": 1, "image_path": ["./Chest_New/Person', "is not valid JSON (JSONDecodeError)"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON (UnicodeDecodeError)"),
        (b'{"train": {}}', "neither a list of cases nor a dict"),
        (b'[{"image_path": "Person 0"}, {"image_path": [1]}]', "case 1 of train has no image_path"),
        (b'[{"image_path": "Person 0"}, {"image_path": {"Person 1": 2}}]', "case 1 of train has no image_path"),
        (b'[{"image_path": 5}]', "case 0 of train has no image_path"),
    ],
)
def test_a_broken_annotation_file_is_reported_with_its_expected_content(tmp_path, capsys, content, message):
    root = tmp_path / "ctrg"
    root.mkdir()
    (root / "chest_ctrg_jpg.json").write_bytes(content)
    assert script.main(["--ctrg", str(root), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(root / "chest_ctrg_jpg.json") in error
    assert message in error
    assert "Person" not in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_errors_below_ctrg_do_not_print_paths(tmp_path, monkeypatch, capsys, error):
    root = write_ctrg(tmp_path / "ctrg", 12)

    def broken(*arguments):
        error.filename = str(root / "Chest_New" / "Person 3" / "slice.jpg")
        raise error

    monkeypatch.setattr("mg3d.preparation.sources.ctrg.find_case", broken)
    monkeypatch.setattr("mg3d.preparation.sources.ctrg.Quarantined", broken)  # an error that the source itself does not catch
    assert script.main(["--ctrg", str(root), "--out", str(tmp_path / "out"), "--image-size", "32"]) in (1, 2)
    printed = capsys.readouterr()
    assert "Person" not in printed.out + printed.err
    assert error.strerror in printed.err
    assert printed.err.count("\n") == 1


def test_other_errors_print_the_path(small_tree, tmp_path, monkeypatch, capsys):
    blocked = tmp_path / "out"
    blocked.write_text("a file where a folder should be")
    assert run(small_tree.write(), blocked) in (1, 2)
    error = capsys.readouterr().err
    assert str(blocked) in error
    assert error.count("\n") == 1


def test_a_full_disk_is_reported_and_leaves_no_partial_file(small_tree, tmp_path, monkeypatch, capsys):
    root, out, room = small_tree.write(), tmp_path / "out", [5]

    def write(*arguments):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return volume_batch(*arguments)

    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    monkeypatch.setattr(shards, "volume_batch", write)
    assert run(root, out) == 1
    assert "disk" in capsys.readouterr().err
    assert [path.name for path in out.rglob("*.arrow*")] == ["shard-00000.arrow"]
    room[0] = 1000
    assert run(root, out) == 0
    assert room[0] == 1000 - 6
    assert "2 written, 1 up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ct-rate", ".", "--worker", "8/8"], "'8/8' is not I/N with I from 0 to N - 1"),
        (["--ct-rate", ".", "--worker", "1"], "'1' is not I/N"),
        (["--stream", "a/b", "--stream-budget", "0"], "'0' is not a positive number of gigabytes"),
        (["--stream", "a/b", "--stream-budget", "much"], "'much' is not a positive number"),
        (["--stream", "a/b", "--ct-rate", "."], "use either --stream or --ct-rate"),
        ([], "--stream OWNER/NAME"),
        (["--ct-rate", ".", "--limit", "0"], "--limit: '0' is not a positive integer"),
        (["--ct-rate", ".", "--max-quarantine", "3"], "--max-quarantine 3: expected a fraction between 0 and 1"),
        (["--ct-rate", ".", "--ray-address", "auto"], "--ray-address needs --engine ray"),
        (["--ct-rate", ".", "--crop", "mm"], "use --crop mm and --crop-mm Z Y X together"),
        (["--ct-rate", ".", "--image-size", "100"], "size 100: every side must be a positive multiple of 32"),
        (["--ct-rate", ".", "--size", "32", "48", "32"], "size (32, 48, 32): every side must be a positive multiple of 32"),
        (["--ct-rate", ".", "--table", "x.csv"], "--table needs --custom ROOT"),
    ],
)
def test_invalid_options_are_reported_with_the_fix(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("name", "out"), [("pretraining", "data/pretrain_arrows"), ("finetuning", "data/finetune_arrows")])
def test_each_script_has_its_own_help_within_a_second(name, out):
    start = time.monotonic()
    command = [sys.executable, SCRIPT.with_name(f"prepro_{name}_data.py"), "--help"]
    result = subprocess.run(command, env={"PYTHONPATH": str(SCRIPT.parents[1])}, capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 5  # 0.1 s on a quiet machine; importing torch alone takes longer
    text = " ".join(result.stdout.split())
    assert f"Arrow files for {name.replace('pretraining', 'pre-training').replace('finetuning', 'fine-tuning')}" in text
    assert f"output folder (default: {out})" in text
    assert "A worker holds one volume at a time" in text


def test_the_arrow_files_for_fine_tuning_hold_every_scan_with_labels_report_and_voxels(tiny_set, tmp_path):
    root, out = tiny_set("CT-RATE"), tmp_path / "out"
    command = [sys.executable, SCRIPT.with_name("prepro_finetuning_data.py"), "--ct-rate", root, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    more = ["--image-size", "32", "--resize", "trilinear", "--workers", "1"]
    subprocess.run([*command, *more], env=environment, capture_output=True, check=True)
    assert prepare_dataset(out, "ct_rate", tmp_path / "unused", shape=(32, 24, 32)) == out  # a data_root of the folder CT-RATE
    cases = {case.case_id: case for case in read_prepared_cases(out, "ct_rate", reports=True)}
    paths = {f"ct_rate/{path.name.removesuffix('.nii.gz')}": path for path in root.rglob("*.nii.gz")}
    assert cases.keys() == paths.keys()
    assert {name for name, case in cases.items() if case.split == "test"} == {name for name in paths if "/valid_" in name}
    folds = {case.patient_id: case.fold for case in cases.values() if case.split == "train"}
    assert Counter(folds.values()) == {0: 1, 1: 6}  # val gets at most a tenth of the patients, and at least one
    assert all(case.fold == folds[case.patient_id] for case in cases.values() if case.split == "train")
    tables = [pd.concat(map(pd.read_csv, root.rglob(name))).set_index("VolumeName") for name in ("*_labels.csv", "*_reports.csv")]
    for name, case in cases.items():
        labels, report = (table.loc[paths[name].name] for table in tables)
        assert case.target == tuple(labels[label] for label in LABELS)
        assert "".join(report["Findings_EN"].split()) in "".join(case.report.split())
        hu = np.asarray(nib.as_closest_canonical(nib.load(paths[name])).dataobj, np.float32).transpose(2, 1, 0)[:, ::-1, ::-1]
        sides = [round(length * share) for length, share in zip(hu.shape, (0.88, 0.65625, 0.875))]
        center = hu[tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(hu.shape, sides))].clip(-1024, 3071)
        expected = torch.nn.functional.interpolate(torch.tensor(center.copy())[None, None], (32, 24, 32), mode="trilinear")
        np.testing.assert_allclose(read_prepared(case.image)[0], expected[0, 0].numpy(), atol=0.51)  # stored as integers
