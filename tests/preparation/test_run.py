"""A run as a whole: workers, stopping, going on, what is listed."""

import json
import shutil

import pytest
from small_raw import write_ctrg

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import index_path
from mg3d.preparation import shards
from mg3d.preparation.quarantine import Quarantined, Refusal, write_quarantine
from mg3d.preparation.run import PrepareOptions, prepare
from mg3d.preparation.voxels import make_volume


def options(root, out, others=(), **more):
    return PrepareOptions(out=out, roots={"ct_rate": root, **dict(others)}, **{"image_size": 32, "val_patients": 1, **more})


def content(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*.arrow")}


def test_two_workers_write_the_same_bytes_as_one(small_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    root = small_tree.write()
    assert prepare(options(root, tmp_path / "one")).built == 3
    assert prepare(options(root, tmp_path / "two", workers=2)).built == 3
    assert content(tmp_path / "one") == content(tmp_path / "two")


def stop_after(count):
    def engine(work, tasks):
        for task in tasks[:count]:
            yield work(task)
        tasks[count].path.with_name(f"{tasks[count].path.name}.tmp-1").write_bytes(b"half")
        raise KeyboardInterrupt

    return engine


def test_a_stopped_run_keeps_its_shards(small_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    root, out = small_tree.write(), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(options(root, out), engine=stop_after(2))
    again = prepare(options(root, out))
    assert (again.built, again.skipped) == (1, 2)
    prepare(options(root, tmp_path / "unbroken"))
    assert not list(out.rglob("*.tmp-*"))
    assert content(out) == content(tmp_path / "unbroken")


def test_old_rows_are_never_read_with_new_shards(small_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    root, out = small_tree.write(), tmp_path / "out"
    prepare(options(root, out))
    with pytest.raises(KeyboardInterrupt):
        prepare(options(root, out, image_size=64), engine=stop_after(1))
    assert not index_path(out, "ct_rate", "train").exists()


def test_another_size_or_a_corrected_table_rebuilds_what_it_touches(small_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    out = tmp_path / "out"
    prepare(options(small_tree.write(), out))
    small_tree.rows["train_2_a_1"][0]["RescaleIntercept"] = -8192
    touched = []

    def engine(work, tasks):
        touched.extend(record.volume_id for task in tasks for record in task.records)
        yield from map(work, tasks)

    prepare(options(small_tree.write(), out), engine=engine)
    assert len(touched) == 4
    assert "ct_rate/train_2_a_1" in touched
    assert prepare(options(small_tree.root, out, image_size=64)).built == 3
    assert VolumeIndex(index_path(out, "ct_rate", "train")).shape == (64, 48, 64)


def test_a_seed_moves_patients_without_touching_voxels(small_tree, tmp_path):
    root, out = small_tree.write(), tmp_path / "out"
    prepare(options(root, out))
    assert {prepare(options(root, out, seed=seed)).built for seed in range(3)} == {0}


def test_quarantined_volumes_are_tried_again_on_demand(small_tree, tmp_path, monkeypatch):
    def too_little_memory(record, root, recipe):
        if record.volume_id == "ct_rate/train_8_a_1":
            raise Refusal("oom")
        return make_volume(record, root, recipe)

    small_tree.add("train_8_a_1")
    root, out = small_tree.write(), tmp_path / "out"
    monkeypatch.setattr(shards, "make_volume", too_little_memory)
    first = prepare(options(root, out))
    assert [entry.code for entry in first.quarantined] == ["oom"]
    assert first.share == pytest.approx(1 / 11)
    monkeypatch.undo()
    assert prepare(options(root, out)).built == 0
    retried = prepare(options(root, out, retry_quarantine=True))
    assert (retried.built, retried.quarantined) == (1, [])
    assert (out / "quarantine.jsonl").read_text() == ""


def test_ids_of_cases_hang_on_the_salt_alone_so_that_its_copy_gives_the_same_bytes(tmp_path):
    def prepared(name):
        prepare(PrepareOptions(out=tmp_path / name, roots={"ctrg": root}, image_size=32, val_patients=1))
        return {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}

    root = write_ctrg(tmp_path / "ctrg", 6)
    first, other = prepared("first"), prepared("other")
    assert first.keys() == other.keys()
    assert first["plan.json"] != other["plan.json"]  # a guessed name cannot be looked up with another salt
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "first" / "ctrg_salt.txt", tmp_path / "copy")
    assert prepared("copy") == first
    assert not any(b"Person" in content for content in first.values())


def test_quarantine_keeps_other_data_sets_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    write_quarantine(path, [Quarantined("ctrg/1", "ctrg", "scan", "missing_file")], {"ctrg"})
    write_quarantine(path, [Quarantined("ct_rate/1", "ct_rate", "scan", "no_chest")], {"ct_rate"})
    path.write_text(path.read_text() + '{"volume_id": "ct_r')
    write_quarantine(path, [Quarantined("ct_rate/2", "ct_rate", "volume", "oom")], {"ct_rate"})
    assert [json.loads(line)["volume_id"] for line in path.read_text().splitlines()] == ["ct_rate/2", "ctrg/1"]


def test_volumes_without_a_chest_do_not_count_as_faults(small_tree, tmp_path):
    small_tree.no_chest.append("train_3_a_1")
    summary = prepare(options(small_tree.write(), tmp_path / "out"))
    assert [entry.code for entry in summary.quarantined] == ["no_chest"]
    assert summary.share == 0


def test_both_data_sets_lie_side_by_side_and_limit_counts_per_official_split(small_tree, tmp_path):
    ctrg = write_ctrg(tmp_path / "ctrg", 20)
    summary = prepare(options(small_tree.write(), tmp_path / "out", {"ctrg": ctrg}, limit=4))
    assert sum(summary.rows["ct_rate"].values()) == 4 + 2
    assert summary.rows["ctrg"] == {"train": 3, "val": 1, "test": 3}


def test_an_empty_split_is_an_error_and_no_val_is_a_note(tree, tmp_path):
    tree.add("train_1_a_1")
    tree.add("valid_1_a_1")
    summary = prepare(options(tree.write(), tmp_path / "out", val_patients=0))
    assert summary.rows["ct_rate"] == {"train": 1, "val": 0, "test": 1}
    assert len(VolumeIndex(index_path(tmp_path / "out", "ct_rate", "val"))) == 0
    tree.no_chest.append("valid_1_a_1")
    with pytest.raises(ValueError, match="no usable volume for test"):
        prepare(options(tree.write(), tmp_path / "out"))


def test_what_was_set_aside_is_listed_when_nothing_is_left(small_tree, tmp_path):
    for name in small_tree.rows:
        small_tree.rows[name] = (small_tree.rows[name][0], {"Findings_EN": "Not given.", "Impressions_EN": ""})
    small_tree.no_chest.append("train_3_a_1")
    out = tmp_path / "out"
    write_quarantine(out / "quarantine.jsonl", [Quarantined("ctrg/1", "ctrg", "scan", "missing_file")], {"ctrg"})
    with pytest.raises(ValueError, match=r"for train and test \(usable: none\).* report_missing 9, no_chest 1, see .*quarantine"):
        prepare(options(small_tree.write(), out))
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert len(entries) == 10 + 1
    assert not list(out.rglob("*.arrow"))


def test_an_empty_split_from_which_nothing_was_set_aside_is_a_matter_of_the_download(tree, tmp_path):
    tree.add("train_1_a_1")
    tree.add("valid_1_a_1")
    root = tree.write()
    shutil.rmtree(root / "dataset" / "valid_fixed")
    with pytest.raises(ValueError, match=r"\(usable: train 1\); nothing was set aside, so .* complete; add a volume for test"):
        prepare(options(root, tmp_path / "out"))


def test_an_error_without_a_code_names_its_type_only(small_tree, tmp_path, monkeypatch):
    def broken(record, root, shape):
        raise RuntimeError("the name of a person")

    monkeypatch.setattr(shards, "make_volume", broken)
    summary = prepare(options(small_tree.write(), tmp_path / "out"))
    assert {(entry.code, entry.detail) for entry in summary.quarantined} == {("unknown", "RuntimeError")}
