"""What a later run does: new volumes, deleted or replaced raw files, another storage format, damaged shards."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import SimpleITK
import small_prepare
from small_dicom import write_series
from small_prepare import files, hashes, volumes
from small_raw import LPS, CtRateTree, chest, write_ctrg, write_nifti

from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import prepare

ZSTD = replace(small_prepare.SMALL, compression="zstd")


def options(root, out, **more):
    return small_prepare.options(root, out, **{"val_patients": 2, "shard_rows": 3, **more})


@pytest.fixture
def large_tree(tmp_path):
    tree = CtRateTree(tmp_path / "ct_rate")
    for number in range(1, 25):
        tree.add(f"train_{number}_a_1")
    for number in range(1, 4):
        tree.add(f"valid_{number}_a_1")
    tree.write()
    return tree


def move(tree, numbers, away, *, back=False):
    """Moves the folders of training patients out of the tree, or back."""
    away.mkdir(exist_ok=True)
    for number in numbers:
        here, there = tree.root / "dataset" / "train_fixed" / f"train_{number}", away / f"train_{number}"
        shutil.move(*((there, here) if back else (here, there)))


def replace_file(path, hu):
    """A volume that is written elsewhere and moved to `path`."""
    new = path.with_name("new.nii.gz")
    write_nifti(new, hu.transpose(2, 1, 0), LPS)
    new.replace(path)


def test_later_downloads_rebuild_only_their_shards_and_read_only_new_volumes(large_tree, tmp_path, read):
    out, away, late = tmp_path / "out", tmp_path / "away", (10, 11, 3)
    move(large_tree, late, away)
    first = prepare(options(large_tree.root, out))
    assert (first.built, first.not_downloaded, first.quarantined, first.failed_fraction) == (9, 3, [], 0.0)
    before = volumes(out)
    assert len(before) == 24
    read.clear()
    move(large_tree, late, away, back=True)
    second = prepare(options(large_tree.root, out))
    # Sorted as text, train_10 and train_11 are in the first shard (10, 11, 12) and train_3 is in the sixth (24, 2, 3).
    assert (second.built, second.skipped, second.not_downloaded) == (2, 7, 0)
    assert sorted(read) == ["ct_rate/train_10_a_1", "ct_rate/train_11_a_1", "ct_rate/train_3_a_1"]
    after = volumes(out)
    for name, (split, voxels) in before.items():
        assert after[name][0] == split
        np.testing.assert_array_equal(after[name][1], voxels)
    prepare(options(large_tree.root, tmp_path / "at_once"))
    assert files(out) == files(tmp_path / "at_once")


def test_a_patient_keeps_its_split_when_others_are_added(large_tree, tmp_path):
    away = tmp_path / "away"
    move(large_tree, range(1, 13), away)
    prepare(options(large_tree.root, tmp_path / "half"))
    move(large_tree, range(1, 13), away, back=True)
    prepare(options(large_tree.root, tmp_path / "all"))
    half, everything = volumes(tmp_path / "half"), volumes(tmp_path / "all")
    assert len(half) == 15
    assert all(everything[name][0] == split for name, (split, _) in half.items())


def test_shards_without_downloads_are_not_written(large_tree, tmp_path):
    out = tmp_path / "out"
    move(large_tree, (10, 11, 12), tmp_path / "away")
    assert prepare(options(large_tree.root, out)).built == 8
    assert not (out / "shards/ct_rate/shard-00000.arrow").exists()
    manifest = json.loads((out / "shards/ct_rate/manifest.json").read_text())
    assert [shard["shard"] for shard in manifest["shards"]] == [f"shard-{number:05d}.arrow" for number in range(1, 9)]
    assert manifest["rows"] == 24


def test_raw_files_may_be_deleted_after_the_preparation(large_tree, tmp_path, read):
    out = tmp_path / "out"
    prepare(options(large_tree.root, out))
    before = files(out)
    read.clear()
    for folder in ("train_fixed", "valid_fixed"):
        shutil.rmtree(large_tree.root / "dataset" / folder)
    summary = prepare(options(large_tree.root, out))
    assert (summary.built, summary.not_downloaded, read, files(out)) == (0, 0, [], before)
    (out / "shards/ct_rate/shard-00000.json").unlink()  # as after a kill between shard and sidecar
    summary = prepare(options(large_tree.root, out))
    assert (summary.built, read) == (1, [])
    assert files(out, "*.arrow") == {name: content for name, content in before.items() if name.endswith(".arrow")}
    before = files(out)
    with pytest.raises(ValueError, match="27 stored volumes would have to be prepared again, but their raw files are gone"):
        prepare(options(large_tree.root, out, recipe=Recipe()))
    assert files(out) == before


def test_a_longer_list_reads_only_new_volumes_and_never_loses_one_whose_raw_file_is_gone(large_tree, tmp_path, read):
    out = tmp_path / "out"
    prepare(options(large_tree.root, out))
    before = volumes(out)
    read.clear()
    large_tree.add("valid_9_a_1")
    summary = prepare(options(large_tree.write(), out))
    assert any("(27 -> 28 volumes)" in note for note in summary.notes)
    assert (summary.built, read) == (1, ["ct_rate/valid_9_a_1"])
    move(large_tree, range(13, 20), tmp_path / "away")
    large_tree.add("train_12_b_1")  # 15 and 18 would move into the next shard
    with pytest.raises(ValueError, match="2 stored volumes would have to be prepared again"):
        prepare(options(large_tree.write(), out))
    del large_tree.rows["train_12_b_1"]
    prepare(options(large_tree.write(), out))
    assert volumes(out).keys() == {*before, "ct_rate/valid_9_a_1"}


def test_a_smaller_limit_does_not_drop_prepared_volumes(small_tree, tmp_path):
    out, root = tmp_path / "out", small_tree.write()
    assert prepare(options(root, out, limit=5)).built == 3
    prepare(options(root, out))
    before = files(out)
    for more in ({}, {"recipe": Recipe()}):
        with pytest.raises(ValueError, match=r"holds 10 volumes, and --limit 4 would drop 4 of them; use another --out"):
            prepare(options(root, out, limit=4, **more))
    assert files(out) == before
    assert prepare(options(root, out, limit=8)).built == 0


def test_verify_finds_a_damaged_shard_and_repairs_it(large_tree, tmp_path, read):
    out = tmp_path / "out"
    prepare(options(large_tree.root, out))
    before, shard = files(out), out / "shards/ct_rate/shard-00002.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    shard.write_bytes(damaged)
    assert prepare(options(large_tree.root, out)).built == 0
    read.clear()
    summary = prepare(options(large_tree.root, out, verify=True))
    assert (summary.built, summary.skipped) == (1, 8)
    assert len(read) == 1  # the other two rows are intact
    assert files(out) == before
    assert prepare(options(large_tree.root, out, verify=True)).built == 0
    shard.write_bytes(damaged)
    move(large_tree, range(1, 25), tmp_path / "away")
    (entry,) = prepare(options(large_tree.root, out, verify=True)).quarantined
    assert (entry.code, entry.detail) == ("missing_file", "the stored row is damaged and the raw file is gone")


def test_zstd_holds_the_same_volumes_and_needs_no_raw_files(large_tree, tmp_path, read):
    plain, out = tmp_path / "plain", tmp_path / "out"
    for folder in (plain, out):
        prepare(options(large_tree.root, folder))
    read.clear()
    assert prepare(options(large_tree.root, out, recipe=ZSTD)).built == 9
    assert read == []
    expected, found = volumes(plain), volumes(out)
    assert expected.keys() == found.keys()
    for name, (split, voxels) in expected.items():
        assert found[name][0] == split
        np.testing.assert_array_equal(found[name][1], voxels)
    shard = "shards/ct_rate/shard-00001.arrow"
    assert (out / shard).stat().st_size < 0.9 * (plain / shard).stat().st_size
    assert pa.ipc.open_file(out / shard).num_record_batches == 3
    prepare(options(large_tree.root, tmp_path / "direct", recipe=ZSTD))
    assert files(out) == files(tmp_path / "direct")
    assert prepare(options(large_tree.root, out)).built == 9
    assert files(out) == files(plain)


def test_a_missing_file_of_a_downloaded_patient_counts_and_a_patient_that_is_not_downloaded_does_not(large_tree, tmp_path):
    large_tree.add("train_2_a_2", file=False)
    large_tree.write()
    move(large_tree, (4, 5), tmp_path / "away")
    summary = prepare(options(large_tree.root, tmp_path / "out"))
    assert [(entry.volume_id, entry.code) for entry in summary.quarantined] == [("ct_rate/train_2_a_2", "missing_file")]
    lines = "\n".join(summary.lines())
    assert "not_downloaded  2  listed" in lines
    assert "missing_file    1  listed" in lines


@pytest.mark.parametrize("lost_sidecar", [False, True])
def test_a_replaced_raw_file_is_read_again(small_tree, tmp_path, read, lost_sidecar):
    out, root = tmp_path / "out", small_tree.write()
    prepare(options(root, out))
    before = hashes(out)
    if lost_sidecar:  # as after a kill between shard and sidecar
        (out / "shards/ct_rate/shard-00001.json").unlink()
    replace_file(small_tree.path("train_2_a_1", "train_fixed"), chest(77))
    read.clear()
    summary = prepare(options(root, out))
    assert summary.built == 1
    assert lost_sidecar or read == ["ct_rate/train_2_a_1"]
    after = hashes(out)
    assert {name for name in before if before[name] != after[name]} == {"ct_rate/train_2_a_1"}
    prepare(options(root, tmp_path / "fresh"))
    assert files(out) == files(tmp_path / "fresh")
    assert prepare(options(root, out)).built == 0


def test_a_copy_of_the_raw_files_gives_the_same_shards(small_tree, tmp_path):
    root = small_tree.write()
    prepare(options(root, tmp_path / "out"))
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    prepare(options(tmp_path / "copy", tmp_path / "fresh"))
    assert files(tmp_path / "fresh", "*.arrow") == files(tmp_path / "out", "*.arrow")


def test_a_file_that_was_incomplete_is_read_again_once_it_has_grown(small_tree, tmp_path):
    path = small_tree.path("train_2_a_1", "train_fixed")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    out, root = tmp_path / "out", small_tree.write()
    assert [entry.code for entry in prepare(options(root, out)).quarantined] == ["gzip_truncated"]
    assert prepare(options(root, out)).built == 0
    path.write_bytes(whole)
    summary = prepare(options(root, out))
    assert (summary.built, summary.quarantined) == (1, [])


@pytest.mark.parametrize(("header", "voxels"), [("a.mhd", "a.raw"), ("a.nhdr", "a.raw"), ("a.hdr", "a.img")])
def test_a_changed_file_of_voxels_beside_its_header_is_noticed(tmp_path, read, header, voxels):
    root, out = tmp_path / "clinic", tmp_path / "out"
    root.mkdir()
    image = SimpleITK.GetImageFromArray(chest(7))
    image.SetSpacing((2.5, 3.0, 5.0))
    SimpleITK.WriteImage(image, str(root / header), useCompression=False)
    chosen = options(None, out, roots={"custom": root}, val_patients=0)
    prepare(chosen)
    assert prepare(chosen).built == 0
    os.utime(root / voxels, ns=(0, 0))
    read.clear()
    prepare(chosen)
    assert len(read) == 1


def test_a_changed_slice_of_a_case_is_noticed(tmp_path, read):
    root, out = write_ctrg(tmp_path / "ctrg", 6), tmp_path / "out"
    chosen = options(None, out, roots={"ctrg": root})
    prepare(chosen)
    case = sorted((root / "Chest_New" / "Person 3").iterdir())
    time_ns = case[7].stat().st_mtime_ns
    os.utime(case[7], ns=(time_ns, time_ns - 10**9))
    read.clear()
    prepare(chosen)
    assert len(read) == 1
    sidecars = [json.loads(path.read_text()) for path in sorted((out / "shards/ctrg").glob("shard-*.json"))]
    rows = [facts for sidecar in sidecars for facts in sidecar["volumes"].values() if "row" in facts]
    assert [facts["raw_files"]["files"] for facts in rows] == [20] * 6


@pytest.mark.parametrize("cell", ["Anna", "Anna/IM0003.dcm"])
def test_a_changed_slice_of_a_dicom_series_is_noticed_and_a_series_in_a_subfolder_is_not(tmp_path, read, cell):
    root, out = tmp_path / "clinic", tmp_path / "out"
    write_series(root / "Anna")
    table = tmp_path / "reports.csv"
    table.write_text(f"volume,findings\n{cell},Clear.\n")
    chosen = options(None, out, roots={"custom": root}, table=table, val_patients=0)
    prepare(chosen)
    write_series(root / "Anna" / "later", chest(5), SeriesInstanceUID="1.2.3.2")
    assert prepare(chosen).built == 0
    os.utime(root / "Anna" / "IM0007.dcm", ns=(0, 0))
    read.clear()
    prepare(chosen)
    assert len(read) == 1
