"""What a later run finds: more volumes, fewer raw files, another storage, damaged shards."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from small_raw import CtRateTree

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import SPLITS, index_path
from mg3d.preparation import shards
from mg3d.preparation.run import PrepareOptions, prepare
from mg3d.preparation.voxels import make_volume


def options(root, out, **more):
    return PrepareOptions(out=out, roots={"ct_rate": root}, **{"image_size": 32, "val_patients": 2, "shard_rows": 3, **more})


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def volumes(out):
    found = {}
    for split in SPLITS:
        index = VolumeIndex(index_path(out, "ct_rate", split))
        found |= {name: (split, index.volume(row)) for row, name in enumerate(index.table["volume_id"].to_pylist())}
    return found


@pytest.fixture
def read(monkeypatch):
    """Ids of the volumes that were made from raw files."""
    made = []

    def make(record, root, recipe):
        made.append(record.volume_id)
        return make_volume(record, root, recipe)

    monkeypatch.setattr(shards, "make_volume", make)
    return made


@pytest.fixture
def large_tree(tmp_path):
    tree = CtRateTree(tmp_path / "ct_rate")
    for number in range(1, 25):
        tree.add(f"train_{number}_a_1")
    for number in range(1, 4):
        tree.add(f"valid_{number}_a_1")
    tree.write()
    return tree


def take_away(tree, numbers, away):
    """Moves the folders of patients of train out of the tree."""
    for number in numbers:
        (away / f"train_{number}").parent.mkdir(exist_ok=True)
        shutil.move(tree.root / "dataset" / "train_fixed" / f"train_{number}", away / f"train_{number}")


def bring_back(tree, numbers, away):
    for number in numbers:
        shutil.move(away / f"train_{number}", tree.root / "dataset" / "train_fixed" / f"train_{number}")


def test_volumes_that_arrive_later_rebuild_only_their_shards(large_tree, tmp_path, read):
    out, away = tmp_path / "out", tmp_path / "away"
    late = (10, 11, 3)
    take_away(large_tree, late, away)
    first = prepare(options(large_tree.root, out))
    assert (first.built, first.absent, first.share) == (9, 3, 0.0)
    assert not first.quarantined
    before = volumes(out)
    assert len(before) == 24
    read.clear()
    bring_back(large_tree, late, away)
    second = prepare(options(large_tree.root, out))
    # Sorted as text, train_10 and train_11 are in the first shard (10, 11, 12) and train_3 is in the sixth (24, 2, 3).
    assert (second.built, second.skipped, second.absent) == (2, 7, 0)
    assert sorted(read) == ["ct_rate/train_10_a_1", "ct_rate/train_11_a_1", "ct_rate/train_3_a_1"]
    after = volumes(out)
    for name, (split, voxels) in before.items():
        assert after[name][0] == split
        np.testing.assert_array_equal(after[name][1], voxels)
    prepare(options(large_tree.root, tmp_path / "at_once"))
    assert content(out) == content(tmp_path / "at_once")


def test_a_patient_stays_in_its_split_when_others_arrive(large_tree, tmp_path):
    away = tmp_path / "away"
    take_away(large_tree, range(1, 13), away)
    prepare(options(large_tree.root, tmp_path / "half"))
    bring_back(large_tree, range(1, 13), away)
    prepare(options(large_tree.root, tmp_path / "all"))
    half, everything = volumes(tmp_path / "half"), volumes(tmp_path / "all")
    assert len(half) == 15
    assert all(everything[name][0] == split for name, (split, _) in half.items())


def test_shards_of_which_nothing_is_there_are_not_written(large_tree, tmp_path):
    out, away = tmp_path / "out", tmp_path / "away"
    take_away(large_tree, (10, 11, 12), away)
    assert prepare(options(large_tree.root, out)).built == 8
    assert not (out / "shards/ct_rate/shard-00000.arrow").exists()
    manifest = json.loads((out / "shards/ct_rate/manifest.json").read_text())
    assert [shard["shard"] for shard in manifest["shards"]] == [f"shard-{number:05d}.arrow" for number in range(1, 9)]
    assert manifest["rows"] == 24


def test_raw_files_may_go_when_they_are_prepared(large_tree, tmp_path, read):
    out, away = tmp_path / "out", tmp_path / "away"
    prepare(options(large_tree.root, out))
    before = content(out)
    read.clear()
    take_away(large_tree, range(1, 20), away)
    summary = prepare(options(large_tree.root, out))
    assert (summary.built, summary.absent, read) == (0, 0, [])
    assert content(out) == before
    (out / "shards/ct_rate/shard-00000.json").unlink()  # as after a kill between shard and sidecar
    summary = prepare(options(large_tree.root, out))
    assert (summary.built, read) == (1, [])
    assert content(out) == before
    with pytest.raises(ValueError, match="19 volumes of ct_rate are stored, but their raw files are gone"):
        prepare(options(large_tree.root, out, image_size=64))
    assert {name: part for name, part in content(out).items() if "plan" not in name} == {
        name: part for name, part in before.items() if "plan" not in name
    }


def test_what_was_written_before_a_kill_is_taken_over(large_tree, tmp_path, read):
    out = tmp_path / "out"
    prepare(options(large_tree.root, out, shard_rows=27))
    before, shard = content(out), out / "shards/ct_rate/shard-00000.arrow"
    whole = shard.read_bytes()
    shard.with_suffix(".json").unlink()
    shard.unlink()
    shard.with_name("shard-00000.arrow.tmp-1-abc").write_bytes(whole[: int(len(whole) * 0.5)])
    shard.with_name("shard-00000.arrow.tmp-2-abc").write_bytes(b"")
    read.clear()
    prepare(options(large_tree.root, out, shard_rows=27))
    assert 13 <= len(read) <= 15
    assert content(out) == before


def test_a_damaged_shard_is_found_by_verify_and_mended(large_tree, tmp_path, read):
    out = tmp_path / "out"
    prepare(options(large_tree.root, out))
    before, shard = content(out), out / "shards/ct_rate/shard-00002.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    shard.write_bytes(damaged)
    assert prepare(options(large_tree.root, out)).built == 0
    read.clear()
    summary = prepare(options(large_tree.root, out, verify=True))
    assert (summary.built, summary.skipped) == (1, 8)
    assert len(read) == 1  # the other two rows are sound
    assert content(out) == before
    assert prepare(options(large_tree.root, out, verify=True)).built == 0


def test_zstd_holds_the_same_volumes_in_fewer_bytes_and_is_made_without_raw_files(large_tree, tmp_path, read):
    plain, out = tmp_path / "plain", tmp_path / "out"
    prepare(options(large_tree.root, plain))
    prepare(options(large_tree.root, out))
    read.clear()
    assert prepare(options(large_tree.root, out, compression="zstd")).built == 9
    assert read == []
    expected, found = volumes(plain), volumes(out)
    assert expected.keys() == found.keys()
    for name, (split, voxels) in expected.items():
        assert found[name][0] == split
        np.testing.assert_array_equal(found[name][1], voxels)
    shard = "shards/ct_rate/shard-00001.arrow"
    assert (out / shard).stat().st_size < 0.9 * (plain / shard).stat().st_size
    assert pa.ipc.open_file(out / shard).num_record_batches == 3
    prepare(options(large_tree.root, tmp_path / "direct", compression="zstd"))
    assert content(out) == content(tmp_path / "direct")
    assert prepare(options(large_tree.root, out)).built == 9
    assert content(out) == content(plain)


def test_a_longer_list_is_told_and_keeps_what_stays_in_its_shard(large_tree, tmp_path, read):
    out = tmp_path / "out"
    prepare(options(large_tree.root, out))
    read.clear()
    large_tree.add("valid_9_a_1")
    large_tree.write()
    summary = prepare(options(large_tree.root, out))
    assert any("27 then, 28 now" in note for note in summary.notes)
    assert (summary.built, read) == (1, ["ct_rate/valid_9_a_1"])


def test_a_list_that_would_move_rows_whose_raw_files_are_gone_is_refused(large_tree, tmp_path):
    out = tmp_path / "out"
    prepare(options(large_tree.root, out))
    before = volumes(out)
    take_away(large_tree, range(13, 20), tmp_path / "away")
    large_tree.add("train_12_b_1")  # 15 and 18 would move into the next shard
    large_tree.write()
    with pytest.raises(ValueError, match=r"2 volumes of ct_rate are stored, but their raw files are gone.*tables of before"):
        prepare(options(large_tree.root, out))
    del large_tree.rows["train_12_b_1"]
    prepare(options(large_tree.write(), out))
    assert volumes(out).keys() == before.keys()


def test_tables_alone_are_enough_when_all_is_prepared(large_tree, tmp_path, read):
    out = tmp_path / "out"
    prepare(options(large_tree.root, out))
    before = content(out)
    read.clear()
    for folder in ("train_fixed", "valid_fixed"):
        shutil.rmtree(large_tree.root / "dataset" / folder)
    assert prepare(options(large_tree.root, out)).built == 0
    assert (content(out), read) == (before, [])


def test_a_missing_file_of_a_downloaded_patient_counts_and_an_absent_patient_does_not(large_tree, tmp_path):
    large_tree.add("train_2_a_2", file=False)
    large_tree.write()
    take_away(large_tree, (4, 5), tmp_path / "away")
    summary = prepare(options(large_tree.root, tmp_path / "out"))
    assert [(entry.volume_id, entry.code) for entry in summary.quarantined] == [("ct_rate/train_2_a_2", "missing_file")]
    assert summary.absent == 2
    lines = "\n".join(summary.lines())
    assert "not_downloaded  2  listed" in lines
    assert "missing_file    1  listed" in lines


def test_the_summary_tells_speed_and_memory(large_tree, tmp_path):
    summary = prepare(options(large_tree.root, tmp_path / "out"))
    assert summary.raw_bytes == sum(path.stat().st_size for path in large_tree.root.rglob("*.nii.gz"))
    assert summary.peak_bytes > 2**20
    assert "volumes/s" in summary.lines()[-1]
    assert f"at most {summary.peak_bytes / 2**20:.0f} MiB in a worker" in summary.lines()[-1]
