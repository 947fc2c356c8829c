import numpy as np
import pyarrow as pa
import pytest
from small_arrow import edit_index, first_with, read_index, with_distinct_reports, write_split

from mg3d.datasets import integrity
from mg3d.datasets.integrity import check_arrow_files, find_leaks, require_valid, shared_values


@pytest.fixture
def arrows(tmp_path):
    """Files without problems."""
    for split, patients, first in (("train", 6, 0), ("val", 3, 20), ("test", 2, 30)):
        write_split(tmp_path, "ct_rate", split, patients=patients, first=first, reconstructions=2)
        edit_index(tmp_path, split, with_distinct_reports)
    return tmp_path


def test_valid_files_have_no_problem(arrows):
    assert check_arrow_files(arrows, ["ct_rate"]) == []


@pytest.mark.parametrize(
    ("column", "code", "is_error"),
    [
        ("patient_id", "patient_in_two_splits", True),
        ("study_id", "study_in_two_splits", True),
        ("image_sha256", "duplicate_pixels", True),
        ("report_sha256", "duplicate_report_other_patient", False),
    ],
)
def test_a_value_in_two_splits_is_reported_with_its_volumes(arrows, column, code, is_error):
    train = read_index(arrows, "train").to_pylist()
    edit_index(arrows, "test", first_with(column, train[3][column]))
    (problem,) = check_arrow_files(arrows, ["ct_rate"])
    first = next(row["volume_id"] for row in train if row[column] == train[3][column])
    assert (problem.code, problem.is_error) == (code, is_error)
    assert problem.volumes == (first, "ct_rate/test_30_0_0")


def test_leaks_between_data_sets_are_found(arrows):
    for split, first in (("train", 50), ("val", 60)):
        write_split(arrows, "ctrg", split, patients=2, first=first, unit="uint8_unknown_window")
    image = read_index(arrows, "val").to_pylist()[0]["image_sha256"]
    edit_index(arrows, "train", first_with("image_sha256", image), dataset="ctrg")
    assert [problem.code for problem in check_arrow_files(arrows, ["ct_rate", "ctrg"])] == ["duplicate_pixels"]


def test_one_table_can_have_several_leaks():
    rows = [{"volume_id": f"v{k}", "patient_id": f"p{k}", "study_id": f"s{k}", "split": "train"} for k in range(6)]
    assert find_leaks(pa.Table.from_pylist(rows)) == []
    rows[1] |= {"patient_id": "p0", "split": "val"}
    rows[3] |= {"study_id": "s2", "split": "test"}
    patients, studies = find_leaks(pa.Table.from_pylist(rows))
    assert (patients.volumes, studies.volumes) == (("v0", "v1"), ("v2", "v3"))
    assert patients.message == "patients in more than one split: 1, e.g. v0 and v1"


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
        ("val", first_with("intensity_unit", "uint8_unknown_window"), None, "mixed_units"),
        ("val", lambda rows: rows, {b"mg3d.shape": b"[16, 12, 9]"}, "shape_disagreement"),
        ("test", lambda rows: rows, {b"mg3d.preproc_hash": b'"other"'}, "recipe_disagreement"),
        ("train", lambda rows: [*rows, rows[2]], None, "duplicate_ids"),
        ("train", first_with("shard", "shards/ct_rate/gone.arrow"), None, "missing_shard"),
    ],
)
def test_each_error_is_reported_by_its_code(arrows, split, change, metadata, code):
    edit_index(arrows, split, change, metadata=metadata)
    (problem,) = check_arrow_files(arrows, ["ct_rate"])
    assert (problem.code, problem.is_error) == (code, True)


def test_outdated_sentence_spans_are_a_warning_with_the_command_that_updates_them(arrows, monkeypatch):
    edit_index(arrows, "val", lambda rows: rows, metadata={b"mg3d.sentence_spans_version": b"1"})
    edit_index(arrows, "test", lambda rows: rows, metadata={b"mg3d.sentence_spans_version": b"2"})
    monkeypatch.setattr(integrity, "SPANS_VERSION", 2)
    (problem,) = check_arrow_files(arrows, ["ct_rate"])
    assert (problem.code, problem.is_error) == ("outdated_sentence_spans", False)
    (warning,) = require_valid(arrows, ["ct_rate"])
    assert "(version val 1; mg3d now uses 2)" in warning
    assert f"`python prepro/prepro_pretraining_data.py --ct-rate ROOT --out {arrows}`" in warning


def test_missing_reports_are_not_a_leak(arrows):
    for split in ("train", "val"):
        edit_index(arrows, split, lambda rows: [{**row, "report": "", "report_sha256": integrity.NO_REPORT} for row in rows])
    assert check_arrow_files(arrows, ["ct_rate"]) == []


def test_urls_are_not_checked():
    assert require_valid("memory://bucket/arrows", ["ct_rate"]) == []


def test_an_empty_val_split_and_a_missing_test_split_are_valid(arrows):
    edit_index(arrows, "val", lambda rows: [])
    (arrows / "clm_ct_rate_test.arrow").unlink()
    assert check_arrow_files(arrows, ["ct_rate"]) == []


def test_training_is_refused_with_the_first_error_and_continues_with_warnings(arrows):
    train = read_index(arrows, "train").to_pylist()
    edit_index(arrows, "test", first_with("report_sha256", train[0]["report_sha256"]))
    (warning,) = require_valid(arrows, ["ct_rate"])
    assert "reports in more than one split: 1" in warning
    edit_index(arrows, "test", first_with("patient_id", train[0]["patient_id"]))
    with pytest.raises(ValueError, match=r"patients in more than one split: 1.*rerun the preparation$"):
        require_valid(arrows, ["ct_rate"])
    edit_index(arrows, "test", first_with("image_sha256", train[0]["image_sha256"]))
    with pytest.raises(ValueError, match=r"1 more: python tools/doctor\.py"):
        require_valid(arrows, ["ct_rate"])
