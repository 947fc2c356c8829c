import pyarrow as pa
from mg3d.preparation.leaks import find_leaks


def row(volume_id, **more):
    return {
        "volume_id": volume_id, "patient_id": f"p{volume_id}", "study_id": f"s{volume_id}",
        "image_sha256": f"i{volume_id}", "report_sha256": f"r{volume_id}", **more,
    }  # fmt: skip


def tables(rows, splits):
    """Two data sets, one row in the first."""
    table = pa.Table.from_pylist([{**row, "split": split} for row, split in zip(rows, splits, strict=True)])
    return table[:1], table[1:]


def test_separate_splits_have_no_leak():
    leaks = find_leaks(tables([row("1"), row("2"), row("3", patient_id="p2", image_sha256="i2")], ["train", "val", "val"]))
    assert not leaks.blocking
    assert not leaks.warnings


def test_each_shared_thing_is_found_and_an_equal_report_is_a_note_only():
    rows = [row("1", patient_id="A"), row("2", patient_id="A"), row("3", image_sha256="X"), row("4", image_sha256="X")]
    rows += [row("5", study_id="S", report_sha256="R"), row("6", study_id="S", report_sha256="R")]
    leaks = find_leaks(tables(rows, ["train", "test"] * 3))
    assert leaks.blocking == {"patient_id": {"A": ["1", "2"]}, "study_id": {"S": ["5", "6"]}, "image_sha256": {"X": ["3", "4"]}}
    assert leaks.warnings == {"report_sha256": {"R": ["5", "6"]}}
    assert len(leaks.lines()) == 4
