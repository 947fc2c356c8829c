"""One run: workers, interruption, quarantine, required splits."""

import json
import shutil

import pytest
from small_prepare import files, options
from small_raw import write_ctrg

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import index_path
from mg3d.preparation import shards
from mg3d.preparation.quarantine import Quarantined, Refusal, write_quarantine
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import prepare
from mg3d.preparation.voxels import make_volume


def test_two_workers_write_the_same_bytes_as_one_and_share_a_progress_bar(small_tree, tmp_path, capfd):
    root = small_tree.write()
    assert prepare(options(root, tmp_path / "one")).built == 3
    capfd.readouterr()
    assert prepare(options(root, tmp_path / "two", workers=2)).built == 3
    assert "ct_rate: 100%" in capfd.readouterr().err.replace("\r", "\n")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def stop_after(count):
    def engine(work, tasks):
        for task in tasks[:count]:
            yield work(task)
        tasks[count].path.with_name(f"{tasks[count].path.name}.tmp-1").write_bytes(b"half")
        raise KeyboardInterrupt

    return engine


def test_an_interrupted_run_keeps_its_shards_and_leaves_no_partial_file(small_tree, tmp_path):
    root, out = small_tree.write(), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(options(root, out), engine=stop_after(2))
    assert not list(out.rglob("*.tmp-*"))
    again = prepare(options(root, out))
    assert (again.built, again.skipped) == (1, 2)
    prepare(options(root, tmp_path / "uninterrupted"))
    assert files(out) == files(tmp_path / "uninterrupted")


def test_the_index_is_deleted_before_shards_change(small_tree, tmp_path):
    root, out = small_tree.write(), tmp_path / "out"
    prepare(options(root, out))
    with pytest.raises(KeyboardInterrupt):
        prepare(options(root, out, recipe=Recipe()), engine=stop_after(1))
    assert not index_path(out, "ct_rate", "train").exists()


def test_only_shards_with_a_changed_table_row_are_rebuilt_and_a_new_split_rebuilds_none(small_tree, tmp_path):
    out, rebuilt = tmp_path / "out", []
    prepare(options(small_tree.write(), out))
    small_tree.rows["train_2_a_1"][0]["RescaleIntercept"] = -8192

    def engine(work, tasks):
        rebuilt.extend(task.path.stem for task in tasks)
        yield from map(work, tasks)

    root = small_tree.write()
    prepare(options(root, out), engine=engine)
    assert rebuilt == ["shard-00000"]
    assert {prepare(options(root, out, seed=seed)).built for seed in range(3)} == {0}


def test_quarantined_volumes_are_retried_on_request(small_tree, tmp_path, monkeypatch):
    def too_little_memory(record, root, recipe):
        if record.volume_id == "ct_rate/train_8_a_1":
            raise Refusal("oom")
        return make_volume(record, root, recipe)

    small_tree.add("train_8_a_1")
    root, out = small_tree.write(), tmp_path / "out"
    monkeypatch.setattr(shards, "make_volume", too_little_memory)
    first = prepare(options(root, out))
    assert [entry.code for entry in first.quarantined] == ["oom"]
    assert first.failed_fraction == pytest.approx(1 / 11)
    monkeypatch.undo()
    assert prepare(options(root, out)).built == 0
    retried = prepare(options(root, out, retry_quarantine=True))
    assert (retried.built, retried.quarantined) == (1, [])
    assert (out / "quarantine.jsonl").read_text() == ""


def test_ids_of_cases_depend_on_the_salt_alone(tmp_path):
    def prepared(name):
        prepare(options(None, tmp_path / name, roots={"ctrg": root}))
        return files(tmp_path / name)

    root = write_ctrg(tmp_path / "ctrg", 6)
    first, other = prepared("first"), prepared("other")
    assert first.keys() == other.keys()
    assert first["shards/ctrg/manifest.json"] != other["shards/ctrg/manifest.json"]  # another salt gives other ids
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "first" / "ctrg_salt.txt", tmp_path / "copy")
    assert prepared("copy") == first
    assert not any(b"Person" in content for content in first.values())


def test_quarantine_keeps_other_data_sets_and_drops_invalid_lines(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    write_quarantine(path, [Quarantined("ctrg/1", "ctrg", "scan", "missing_file")], {"ctrg"})
    write_quarantine(path, [Quarantined("ct_rate/1", "ct_rate", "scan", "no_chest")], {"ct_rate"})
    path.write_text(path.read_text() + '{"volume_id": "ct_r')
    write_quarantine(path, [Quarantined("ct_rate/2", "ct_rate", "volume", "oom")], {"ct_rate"})
    assert [json.loads(line)["volume_id"] for line in path.read_text().splitlines()] == ["ct_rate/2", "ctrg/1"]


def test_volumes_excluded_by_the_tables_do_not_count_as_failed(small_tree, tmp_path):
    small_tree.no_chest.append("train_3_a_1")
    small_tree.add("train_4_a_2", file=False)
    summary = prepare(options(small_tree.write(), tmp_path / "out"))
    assert sorted(entry.code for entry in summary.quarantined) == ["missing_file", "no_chest"]
    assert (summary.failed, summary.failed_fraction) == (0, 0.0)
    assert "excluded (0 of 9 volumes with raw files could not be used):" in summary.lines()


def test_two_data_sets_in_one_folder_and_the_limit_per_official_split(small_tree, tmp_path):
    ctrg = write_ctrg(tmp_path / "ctrg", 20)
    summary = prepare(options(small_tree.write(), tmp_path / "out", {"ctrg": ctrg}, limit=4))
    assert sum(summary.rows["ct_rate"].values()) == 4 + 2
    assert summary.rows["ctrg"] == {"train": 3, "val": 1, "test": 3}


def test_an_empty_test_split_is_an_error_and_an_empty_val_is_not(tree, tmp_path):
    tree.add("train_1_a_1")
    tree.add("valid_1_a_1")
    summary = prepare(options(tree.write(), tmp_path / "out", val_patients=0))
    assert summary.rows["ct_rate"] == {"train": 1, "val": 0, "test": 1}
    assert len(VolumeIndex(index_path(tmp_path / "out", "ct_rate", "val"))) == 0
    tree.no_chest.append("valid_1_a_1")
    with pytest.raises(ValueError, match="no usable volume for test"):
        prepare(options(tree.write(), tmp_path / "out"))


def test_exclusions_are_listed_even_if_no_volume_is_usable(small_tree, tmp_path):
    for name in small_tree.rows:
        small_tree.rows[name] = (small_tree.rows[name][0], {"Findings_EN": "Not given.", "Impressions_EN": ""})
    small_tree.no_chest.append("train_3_a_1")
    out = tmp_path / "out"
    write_quarantine(out / "quarantine.jsonl", [Quarantined("ctrg/1", "ctrg", "scan", "missing_file")], {"ctrg"})
    with pytest.raises(ValueError, match=r"for train and test \(usable: none\).* report_missing 9, no_chest 1, see .*quarantine"):
        prepare(options(small_tree.write(), out))
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 10 + 1
    assert not list(out.rglob("*.arrow"))


def test_an_empty_split_without_exclusions_is_an_incomplete_download(tree, tmp_path):
    tree.add("train_1_a_1")
    tree.add("valid_1_a_1")
    root = tree.write()
    shutil.rmtree(root / "dataset" / "valid_fixed")
    with pytest.raises(ValueError, match=r"\(usable: train 1\); nothing was excluded, so the download is incomplete"):
        prepare(options(root, tmp_path / "out"))


def test_an_unexpected_error_quarantines_the_volume_with_its_type_only(small_tree, tmp_path, monkeypatch):
    def broken(record, root, recipe):
        raise RuntimeError("the name of a person")

    monkeypatch.setattr(shards, "make_volume", broken)
    summary = prepare(options(small_tree.write(), tmp_path / "out"))
    assert {(entry.code, entry.detail) for entry in summary.quarantined} == {("unknown", "RuntimeError")}


def test_the_summary_reports_speed_and_memory(small_tree, tmp_path):
    summary = prepare(options(small_tree.write(), tmp_path / "out"))
    assert summary.peak_bytes > 2**20
    assert "volumes/s" in summary.lines()[-1]
    assert f"peak memory of a worker {summary.peak_bytes / 2**20:.0f} MiB" in summary.lines()[-1]
