import json

import numpy as np
import pyarrow as pa
import pytest
from small_arrow import write_split

from mg3d.datasets import integrity
from mg3d.datasets.integrity import CACHE, check_arrow_files, require_valid, shared_values


def edit(root, split, change, metadata=None):
    """Rewrites an index with `change(rows)`."""
    path = root / f"clm_ct_rate_{split}.arrow"
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    schema = table.schema if metadata is None else table.schema.with_metadata({**table.schema.metadata, **metadata})
    changed = pa.Table.from_pylist(change(table.to_pylist()), schema=schema)
    path.unlink()
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_table(changed)


def read(root, split):
    with pa.memory_map(str(root / f"clm_ct_rate_{split}.arrow")) as source:
        return pa.ipc.open_file(source).read_all().to_pylist()


@pytest.fixture
def arrows(tmp_path):
    """Clean files; the small reports repeat every seven patients, so that each study gets a report of its own."""
    for split, patients, first in (("train", 6, 0), ("val", 3, 20), ("test", 2, 30)):
        write_split(tmp_path, "ct_rate", split, patients=patients, first=first, reconstructions=2)
        edit(tmp_path, split, lambda rows: [{**row, "report_sha256": f"of {row['study_id']}"} for row in rows])
    return tmp_path


def copied(column, value):
    return lambda rows: [{**rows[0], column: value}, *rows[1:]]


def test_clean_files_have_no_problem(arrows):
    assert check_arrow_files(arrows, ["ct_rate"]) == []


@pytest.mark.parametrize(
    ("column", "code", "blocking"),
    [
        ("patient_id", "patient_in_two_splits", True),
        ("study_id", "study_in_two_splits", True),
        ("image_sha256", "duplicate_pixels", True),
        ("report_sha256", "duplicate_report_other_patient", False),
    ],
)
def test_a_value_in_two_splits_is_told_with_the_volumes_that_have_it(arrows, column, code, blocking):
    theirs = read(arrows, "train")[3]
    edit(arrows, "test", copied(column, theirs[column]))
    (problem,) = check_arrow_files(arrows, ["ct_rate"])
    first_with_it = next(row["volume_id"] for row in read(arrows, "train") if row[column] == theirs[column])
    assert (problem.code, problem.blocking) == (code, blocking)
    assert problem.volumes == (first_with_it, "ct_rate/test_30_0_0")


def test_leaks_between_data_sets_count_too(arrows):
    for split in ("train", "val"):
        write_split(arrows, "ctrg", split, patients=2, first=50 if split == "train" else 60, unit="uint8_unknown_window")
    image = read(arrows, "val")[0]["image_sha256"]
    path = arrows / "clm_chest_ctrg_train.arrow"
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    rows = table.to_pylist()
    rows[0]["image_sha256"] = image
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=table.schema))
    assert [problem.code for problem in check_arrow_files(arrows, ["ct_rate", "ctrg"])] == ["duplicate_pixels"]


def test_shared_values_agree_with_a_slow_count():
    generator = np.random.default_rng(0)
    values, parts = generator.integers(0, 60, 150), generator.integers(0, 3, 150)
    table = pa.table(
        {"v": [str(v) for v in values], "split": [str(p) for p in parts], "volume_id": [f"n{k}" for k in range(150)]}
    )
    slow = {}
    for value in sorted(set(values)):
        first = [next(k for k in range(150) if values[k] == value and parts[k] == p) for p in set(parts[values == value])]
        if len(first) > 1:
            slow[str(value)] = [f"n{k}" for k in sorted(first)]
    assert shared_values(table, "v") == slow
    assert 0 < len(slow) < 60


@pytest.mark.parametrize(
    ("split", "change", "metadata", "code"),
    [
        ("train", lambda rows: [], None, "empty_train"),
        ("val", copied("intensity_unit", "uint8_unknown_window"), None, "mixed_units"),
        ("val", lambda rows: rows, {b"mg3d.shape": b"[16, 12, 9]"}, "shape_disagreement"),
        ("test", lambda rows: rows, {b"mg3d.preproc_hash": b'"other"'}, "recipe_disagreement"),
        ("train", lambda rows: [*rows, rows[2]], None, "duplicate_ids"),
        ("train", copied("shard", "shards/ct_rate/gone.arrow"), None, "missing_shard"),
    ],
)
def test_each_fault_of_the_files_is_told_by_its_code(arrows, split, change, metadata, code):
    edit(arrows, split, change, metadata)
    (problem,) = check_arrow_files(arrows, ["ct_rate"])
    assert (problem.code, problem.blocking) == (code, True)


def test_sentences_cut_by_other_rules_are_told_with_the_command_that_cuts_them_anew(arrows, monkeypatch):
    edit(arrows, "val", lambda rows: rows, {b"mg3d.units_version": b"1"})
    edit(arrows, "test", lambda rows: rows, {b"mg3d.units_version": b"2"})
    monkeypatch.setattr(integrity, "UNITS_VERSION", 2)
    (problem,) = check_arrow_files(arrows, ["ct_rate"])
    assert (problem.code, problem.blocking) == ("old_units", False)
    (told,) = require_valid(arrows, ["ct_rate"])
    assert "(val 1)" in told
    assert f"python prepro/prepro_pretraining_data.py --ct-rate ROOT --out {arrows}`" in told
    monkeypatch.setattr(integrity, "UNITS_VERSION", 1)  # what was kept of the check holds for the rules of before
    assert "(test 2)" in require_valid(arrows, ["ct_rate"])[0]


def test_volumes_without_a_report_share_nothing(arrows):
    for split in ("train", "val"):
        edit(arrows, split, lambda rows: [{**row, "report": "", "report_sha256": integrity.NO_REPORT} for row in rows])
    assert check_arrow_files(arrows, ["ct_rate"]) == []


def test_what_lies_behind_a_url_is_not_looked_for():
    assert require_valid("memory://bucket/arrows", ["ct_rate"]) == []


def test_an_empty_val_is_no_fault_and_test_may_be_missing(arrows):
    edit(arrows, "val", lambda rows: [])
    (arrows / "clm_ct_rate_test.arrow").unlink()
    assert check_arrow_files(arrows, ["ct_rate"]) == []


def test_a_check_is_not_made_twice_until_a_file_changes(arrows, monkeypatch):
    edit(arrows, "test", copied("report_sha256", read(arrows, "train")[0]["report_sha256"]))
    calls = []
    monkeypatch.setattr(integrity, "check_arrow_files", lambda *given: calls.append(given) or check_arrow_files(*given))
    first = require_valid(arrows, ["ct_rate"])
    assert require_valid(arrows, ["ct_rate"]) == first
    assert "1 reports lie in more than one split" in first[0]
    assert len(calls) == 1
    edit(arrows, "test", copied("patient_id", read(arrows, "train")[0]["patient_id"]))
    for _ in range(2):  # what refuses is never taken from the cache
        with pytest.raises(ValueError, match=r"1 patients lie in more than one split.*prepare the data anew"):
            require_valid(arrows, ["ct_rate"])
    assert len(calls) == 3


def test_a_damaged_or_unwritable_cache_costs_only_time(arrows, monkeypatch):
    (arrows / CACHE).write_text('{"version": 1, "files": ')
    assert require_valid(arrows, ["ct_rate"]) == []
    assert json.loads((arrows / CACHE).read_text())["problems"] == []
    (arrows / CACHE).unlink()

    def refuse(*given, **more):
        raise PermissionError(13, "no")

    monkeypatch.setattr(integrity, "write_json", refuse)
    assert require_valid(arrows, ["ct_rate"]) == []
    assert not (arrows / CACHE).exists()
