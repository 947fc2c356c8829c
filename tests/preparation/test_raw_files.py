"""What a later run notices of raw files that were exchanged for others at the same paths."""

import json
import os
import shutil

import pytest
from small_raw import LPS, chest, write_ctrg, write_nifti

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import SPLITS, index_path
from mg3d.preparation import shards
from mg3d.preparation.run import PrepareOptions, prepare
from mg3d.preparation.voxels import make_volume


def options(root, out, **more):
    return PrepareOptions(out=out, **{"roots": {"ct_rate": root}, "image_size": 32, "val_patients": 1, "shard_rows": 3, **more})


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def sums(out):
    tables = [VolumeIndex(index_path(out, "ct_rate", split)).table for split in SPLITS]
    return {row["volume_id"]: row["image_sha256"] for table in tables for row in table.to_pylist()}


@pytest.fixture
def read(monkeypatch):
    """Ids of the volumes that were made from raw files."""
    made = []

    def make(record, root, recipe):
        made.append(record.volume_id)
        return make_volume(record, root, recipe)

    monkeypatch.setattr(shards, "make_volume", make)
    return made


def put(path, hu, *, time_ns=None):
    """A volume that is written elsewhere and moved to `path`, with the time of last writing that a copy would keep."""
    new = path.with_name("new.nii.gz")
    write_nifti(new, hu.transpose(2, 1, 0), LPS)
    if time_ns:
        os.utime(new, ns=(time_ns, time_ns))
    new.replace(path)


def test_a_raw_file_that_another_took_the_place_of_is_read_anew_and_told(small_tree, tmp_path, read):
    out, root = tmp_path / "out", small_tree.write()
    prepare(options(root, out))
    before = sums(out)
    put(small_tree.path("train_2_a_1", "train_fixed"), chest(77))
    read.clear()
    summary = prepare(options(root, out))
    assert (read, summary.built, summary.skipped) == (["ct_rate/train_2_a_1"], 1, 3)
    assert "ct_rate: the raw files of 1 volumes are not those of the last run; these volumes are prepared anew" in summary.notes
    after = sums(out)
    assert {name for name in before if before[name] != after[name]} == {"ct_rate/train_2_a_1"}
    prepare(options(root, tmp_path / "fresh"))
    assert content(out) == content(tmp_path / "fresh")
    again = prepare(options(root, out))
    assert again.built == 0
    assert not any("the raw files of" in note for note in again.notes)


@pytest.mark.parametrize("kept_time", [False, True])
def test_other_bytes_in_as_many_are_noticed_even_where_the_time_is_the_old_files(small_tree, tmp_path, read, kept_time):
    out, root = tmp_path / "out", small_tree.write()
    path = small_tree.path("train_3_a_1", "train_fixed")
    prepare(options(root, out))
    time_ns, changed = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    changed[4] ^= 1  # the time in gzip's header: equal voxels in another file
    path.write_bytes(changed)
    if kept_time:
        os.utime(path, ns=(time_ns, time_ns))
    read.clear()
    assert prepare(options(root, out)).built == 1
    assert read == ["ct_rate/train_3_a_1"]


def test_files_that_were_touched_or_copied_are_the_same_files(small_tree, tmp_path, read):
    out, root = tmp_path / "out", small_tree.write()
    prepare(options(root, out))
    before = content(out)
    os.utime(small_tree.path("train_2_a_1", "train_fixed"))
    path = small_tree.path("train_3_a_1", "train_fixed")
    shutil.copyfile(path, path.with_name("copy"))
    path.with_name("copy").replace(path)
    read.clear()
    summary = prepare(options(root, out))
    assert (read, summary.built) == ([], 0)
    assert content(out) == before
    shutil.copytree(root, tmp_path / "elsewhere")
    prepare(options(tmp_path / "elsewhere", tmp_path / "fresh"))
    assert content(tmp_path / "fresh") == before


def test_old_files_are_told_by_size_and_time_without_being_opened(small_tree, tmp_path, monkeypatch):
    out, root = tmp_path / "out", small_tree.write()
    prepare(options(root, out))
    opened = []
    monkeypatch.setattr("mg3d.preparation.raw_files._pieces", lambda files, stats: opened.append(files))
    assert prepare(options(root, out)).built == 0
    assert opened == []


def test_a_set_that_says_nothing_of_its_raw_files_is_kept(small_tree, tmp_path, read, monkeypatch):
    out, root = tmp_path / "out", small_tree.write()
    monkeypatch.setattr(shards, "fingerprint", lambda record, root: None)  # as programs before this one wrote
    prepare(options(root, out))
    monkeypatch.undo()
    before = content(out)
    assert b'"raw"' not in before["shards/ct_rate/shard-00000.json"]
    put(small_tree.path("train_2_a_1", "train_fixed"), chest(77))
    assert prepare(options(root, out)).built == 0
    assert content(out) == before


def test_a_file_that_was_still_being_copied_is_tried_again_once_it_has_grown(small_tree, tmp_path):
    path = small_tree.path("train_2_a_1", "train_fixed")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    out, root = tmp_path / "out", small_tree.write()
    assert [entry.code for entry in prepare(options(root, out)).quarantined] == ["gzip_truncated"]
    assert prepare(options(root, out)).built == 0
    path.write_bytes(whole)
    summary = prepare(options(root, out))
    assert (summary.built, summary.quarantined) == (1, [])


def test_rows_of_a_shard_that_was_cut_off_are_not_taken_over_for_an_exchanged_file(small_tree, tmp_path, read):
    out, root = tmp_path / "out", small_tree.write()
    prepare(options(root, out))
    (out / "shards/ct_rate/shard-00000.json").unlink()  # as after a kill between shard and sidecar
    put(small_tree.path("train_1_a_2", "train_fixed"), chest(77), time_ns=10**18)
    read.clear()
    assert prepare(options(root, out)).built == 1
    assert read == ["ct_rate/train_1_a_2"]


def test_a_slice_in_the_middle_of_a_case_counts_and_files_that_are_gone_do_not(tmp_path, read):
    root, out = write_ctrg(tmp_path / "ctrg", 6), tmp_path / "out"
    asked = options(root, out, roots={"ctrg": root})
    prepare(asked)
    case = sorted((root / "Chest_New" / "Person 3").iterdir())
    size, other = case[7].stat().st_size, (root / "Chest_New" / "Person 4" / case[11].name.replace("Person 3", "Person 4"))
    changed = bytearray(case[7].read_bytes())
    changed[-12] ^= 1
    case[7].write_bytes(changed)
    assert case[7].stat().st_size == size
    other.unlink()
    read.clear()
    prepare(asked)
    assert len(read) == 1
    sidecars = [json.loads(path.read_text()) for path in sorted((out / "shards/ctrg").glob("shard-*.json"))]
    rows = [facts for sidecar in sidecars for facts in sidecar["volumes"].values() if "row" in facts]
    assert len(rows) == 6
    assert {facts["raw"]["files"] for facts in rows} == {20}


def test_a_smaller_limit_takes_nothing_away_from_what_is_prepared(small_tree, tmp_path):
    out, root = tmp_path / "out", small_tree.write()
    assert prepare(options(root, out, limit=5)).built == 3
    prepare(options(root, out))
    before = content(out)
    with pytest.raises(ValueError, match=r"holds 10 volumes of ct_rate, and --limit 4 would take 4 of them away; use another"):
        prepare(options(root, out, limit=4))
    with pytest.raises(ValueError, match="--limit 4 would take"):
        prepare(options(root, out, limit=4, image_size=64))
    assert content(out) == before
    assert prepare(options(root, out, limit=8)).built == 0
    assert sums(out).keys() == {f"ct_rate/{name}" for name in small_tree.rows}
