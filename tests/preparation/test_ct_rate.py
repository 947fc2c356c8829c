import pytest
from small_raw import REPORT, chest, write_csv

from mg3d.glossary import LABELS
from mg3d.preparation.sources.ct_rate import list_ct_rate


def scan(tree, **choice):
    return list_ct_rate(tree.write(), **{"val_patients": 1, "seed": 0, **choice})


def test_ids_sections_labels_and_geometry(small_tree):
    by_id = {record.volume_id: record for record in scan(small_tree).records}
    record = by_id["ct_rate/train_1_a_2"]
    assert (record.study_id, record.patient_id, record.reconstruction) == ("ct_rate/train_1_a", "ct_rate/train_1", 2)
    assert record.source == "train_fixed/train_1/train_1_a/train_1_a_2.nii.gz"
    assert (record.findings, record.impression) == (REPORT["Findings_EN"], REPORT["Impressions_EN"])
    assert [LABELS[k] for k, value in enumerate(record.labels) if value == 1] == ["Cardiomegaly"]
    assert record.table.spacing_zyx_mm == (5.0, 3.0, 3.0)
    assert record.table.intercept == -1024
    assert list(by_id) == sorted(by_id)


def test_splits_are_by_patient_and_valid_is_test(small_tree):
    records = scan(small_tree).records
    splits = {}
    for record in records:
        splits.setdefault(record.patient_id, set()).add(record.split)
    assert all(len(found) == 1 for found in splits.values())
    assert sorted(found.pop() for found in splits.values()) == ["test"] * 2 + ["train"] * 5 + ["val"]
    assert {record.split for record in records if record.official_split == "valid"} == {"test"}


def test_val_depends_on_the_seed_only(small_tree):
    def val(seed):
        return {record.patient_id for record in scan(small_tree, seed=seed).records if record.split == "val"}

    assert val(3) == val(3)
    assert len({frozenset(val(seed)) for seed in range(12)}) > 2


def test_val_is_capped_with_a_note_and_may_be_empty(small_tree):
    assert any("1 of 6 training patients instead of 500" in note for note in scan(small_tree, val_patients=500).notes)
    none = scan(small_tree, val_patients=0)
    assert not [record for record in none.records if record.split == "val"]
    assert any("val is empty" in note for note in none.notes)


def test_fixed_files_are_preferred_to_the_first_release(small_tree):
    small_tree.add("train_2_a_1", folder="train", stored=chest().transpose(2, 1, 0) + 1024.0, blank=True)
    small_tree.add("train_9_a_1", folder="train", stored=chest().transpose(2, 1, 0) + 1024.0, blank=True)
    sources = {record.volume_id: record.source for record in scan(small_tree).records}
    assert sources["ct_rate/train_2_a_1"].startswith("train_fixed/")
    assert sources["ct_rate/train_9_a_1"].startswith("train/")


def test_what_cannot_be_used_is_refused_with_its_reason(small_tree):
    small_tree.add("train_1_c_1", file=False)
    small_tree.add("train_3_a_2", report={"Findings_EN": "Not given.", "Impressions_EN": ""})
    small_tree.add("train_4_a_2", report=None)
    small_tree.add("train_5_a_2")
    small_tree.no_chest.append("train_5_a_2")
    refused = {entry.volume_id: entry.code for entry in scan(small_tree).refused}
    assert refused == {
        "ct_rate/train_1_c_1": "missing_file",
        "ct_rate/train_3_a_2": "report_missing",
        "ct_rate/train_4_a_2": "report_missing",
        "ct_rate/train_5_a_2": "no_chest",
    }


def test_patients_that_were_not_downloaded_are_no_fault(small_tree):
    path = small_tree.add("train_77_a_1", file=False)
    path.parent.rmdir()
    path.parent.parent.rmdir()
    found = scan(small_tree)
    assert not found.refused
    assert any("1 listed volumes of train" in note and "not downloaded" in note for note in found.notes)


def test_a_volume_without_labels_has_unknown_ones(small_tree):
    root = small_tree.write()
    write_csv(
        root / "dataset/multi_abnormality_labels/train_predicted_labels.csv",
        [{"VolumeName": "train_1_a_1.nii.gz", **dict.fromkeys(LABELS, "1")}],
    )
    by_id = {record.volume_id: record for record in list_ct_rate(root, val_patients=1, seed=0).records}
    assert by_id["ct_rate/train_1_a_1"].labels == (1,) * 18
    assert by_id["ct_rate/train_2_a_1"].labels == (-1,) * 18
    assert by_id["ct_rate/train_2_a_1"].label_source == "none"


def test_a_table_without_a_column_says_which(small_tree):
    root = small_tree.write()
    write_csv(root / "dataset/radiology_text_reports/train_reports.csv", [{"VolumeName": "a", "Findings": "b"}])
    with pytest.raises(ValueError, match=r"lacks the columns \['Findings_EN', 'Impressions_EN'\]"):
        list_ct_rate(root, val_patients=1, seed=0)


def test_the_repr_of_a_record_holds_no_report(small_tree):
    assert "effusion" not in repr(scan(small_tree).records[0])
