"""CT-RATE's tree and tables: ids, sections, labels, splits, preferred trees, and what is quarantined."""

from pathlib import PurePath

import numpy as np
import pytest
from small_raw import REPORT, SHAPE, CtRateTree, chest, source_options, write_csv

from mg3d.glossary import LABELS
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.sources.ct_rate import list_ct_rate
from mg3d.preparation.voxels import make_volume

HU = chest(7).clip(-1000, 1000)


def listed(tree, **changes):
    return list_ct_rate(tree.write(), source_options(**{"val_patients": 1, **changes}))


def by_id(inventory):
    return {record.volume_id.removeprefix("ct_rate/"): record for record in inventory.records}


def noted(inventory, text):
    return any(text in note for note in inventory.notes)


def test_ids_sections_labels_and_geometry(small_tree):
    records = by_id(listed(small_tree))
    record = records["train_1_a_2"]
    assert (record.study_id, record.patient_id, record.reconstruction) == ("ct_rate/train_1_a", "ct_rate/train_1", 2)
    assert record.source == "train_fixed/train_1/train_1_a/train_1_a_2.nii.gz"
    assert (record.findings, record.impression) == (REPORT["Findings_EN"], REPORT["Impressions_EN"])
    assert [LABELS[k] for k, value in enumerate(record.labels) if value == 1] == ["Cardiomegaly"]
    assert record.table.spacing_zyx_mm == (5.0, 3.0, 3.0)
    assert record.table.intercept == -1024
    assert list(records) == sorted(records)
    assert "effusion" not in repr(record)


def test_splits_are_by_patient_and_valid_is_test(small_tree):
    records = listed(small_tree).records
    splits = {}
    for record in records:
        splits.setdefault(record.patient_id, set()).add(record.split)
    assert sorted(split for found in splits.values() for split in found) == ["test"] * 2 + ["train"] * 5 + ["val"]
    assert {record.split for record in records if record.official_split == "valid"} == {"test"}


def test_val_depends_on_the_seed_is_capped_with_a_note_and_may_be_empty(small_tree):
    def val(**changes):
        return frozenset(record.patient_id for record in listed(small_tree, **changes).records if record.split == "val")

    assert val(seed=3) == val(seed=3)
    assert len({val(seed=seed) for seed in range(12)}) > 2
    assert noted(listed(small_tree, val_patients=500), "CT-RATE: val has 1 of 6 training patients instead of 500")
    assert val(val_patients=0) == frozenset()
    assert noted(listed(small_tree, val_patients=0), "val is empty")


def test_corrected_files_are_preferred_to_the_first_release(small_tree):
    for name in ("train_2_a_1", "train_9_a_1"):
        small_tree.add(name, folder="train", stored=chest().transpose(2, 1, 0) + 1024.0, blank=True)
    records = by_id(listed(small_tree))
    assert records["train_2_a_1"].source.startswith("train_fixed/")
    assert records["train_9_a_1"].source.startswith("train/")


def test_unusable_volumes_are_refused_with_a_reason_code(small_tree):
    small_tree.add("train_1_c_1", file=False)
    small_tree.add("train_3_a_2", report={"Findings_EN": "Not given.", "Impressions_EN": ""})
    small_tree.add("train_4_a_2", report=None)
    small_tree.add("train_5_a_2")
    small_tree.no_chest.append("train_5_a_2")
    refused = {entry.volume_id.removeprefix("ct_rate/"): entry.code for entry in listed(small_tree).quarantined}
    no_report = dict.fromkeys(("train_3_a_2", "train_4_a_2"), "report_missing")
    assert refused == {"train_1_c_1": "missing_file", **no_report, "train_5_a_2": "no_chest"}


def test_patients_that_are_not_downloaded_are_a_note_and_keep_their_records(small_tree):
    path = small_tree.add("train_77_a_1", file=False)
    path.parent.rmdir()
    path.parent.parent.rmdir()
    inventory = listed(small_tree)
    assert not inventory.quarantined
    assert by_id(inventory)["train_77_a_1"].files == ()
    assert noted(inventory, "1 listed volumes of train are not downloaded")


def test_limit_counts_volumes_with_files_of_each_official_split(small_tree):
    small_tree.add("train_1_a_3", file=False)
    records = listed(small_tree, limit=3).records
    assert [r.volume_id.removeprefix("ct_rate/") for r in records if r.official_split == "train"] == [
        "train_1_a_1", "train_1_a_2", "train_1_a_3", "train_1_b_1",
    ]  # fmt: skip
    assert sum(record.official_split == "valid" for record in records) == 2


def test_volume_without_a_row_of_labels_has_unknown_labels(small_tree):
    root = small_tree.write()
    write_csv(
        root / "dataset/multi_abnormality_labels/train_predicted_labels.csv",
        [{"VolumeName": f"{name}.nii.gz", **dict.fromkeys(LABELS, "1")} for name in ("train_1_a_1", "train_99_a_1")],
    )
    records = by_id(list_ct_rate(root, source_options()))
    assert "train_99_a_1" not in records  # labels alone do not make a volume
    assert records["train_1_a_1"].labels == (1,) * 18
    assert (records["train_2_a_1"].labels, records["train_2_a_1"].label_source) == ((-1,) * 18, "none")


def test_contradicting_rows_quarantine_a_volume_or_drop_its_labels(small_tree):
    root = small_tree.write() / "dataset"
    for path, cell in (
        ("radiology_text_reports/train_reports.csv", "train_2_a_1.nii.gz,,Another report.,\n"),
        ("multi_abnormality_labels/train_predicted_labels.csv", "train_3_a_1.nii.gz" + ",1" * 18 + "\n"),
    ):
        with (root / path).open("a") as stream:
            stream.write(cell)
    inventory = list_ct_rate(root, source_options())
    assert [(entry.volume_id, entry.code) for entry in inventory.quarantined] == [("ct_rate/train_2_a_1", "duplicate_row")]
    assert by_id(inventory)["train_3_a_1"].labels == (-1,) * 18
    assert noted(inventory, "1 volumes have contradicting rows of labels")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"VolumeName": "a", "Findings": "b"}, "has no column Findings_EN, Impressions_EN"),
        (
            {"VolumeName": "Clear.", "Findings_EN": "train_1_a_1.nii.gz", "Impressions_EN": ""},
            "only 0 of 1 cells under VolumeName",
        ),
    ],
)
def test_table_with_other_columns_is_refused(small_tree, row, message):
    root = small_tree.write()
    write_csv(root / "dataset/radiology_text_reports/train_reports.csv", [row])
    with pytest.raises(ValueError, match=message) as caught:
        list_ct_rate(root, source_options())
    assert "Clear" not in str(caught.value)


# CT-CLIP's arrays


@pytest.fixture
def arrays(tmp_path):
    """Two volumes as NIfTI and one without a file."""
    tree = CtRateTree(tmp_path / "ct_rate")
    tree.add("train_1_a_1")
    tree.add("train_2_b_3", file=False)
    tree.add("valid_1_a_1")
    tree.write()
    return tree


def write_array(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, (HU.transpose(0, 2, 1) / 1000).astype(np.float32))


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("name", ["train_2b/train_2_b_3.npz", "train_2_b/train_2_b_3.nii.gz.npz"])
def test_ct_clip_arrays_are_found_under_both_spellings(arrays, name, outside):
    write_array(arrays.root if outside else arrays.root / "dataset", f"train_preprocessed/train_2/{name}")
    inventory = list_ct_rate(arrays.root, source_options())
    assert not inventory.quarantined
    record = by_id(inventory)["train_2_b_3"]
    assert (record.study_id, record.patient_id, record.reconstruction) == ("ct_rate/train_2_b", "ct_rate/train_2", 3)
    assert (record.reader, record.table, record.source) == ("ct_clip", None, f"train_preprocessed/train_2/{name}")
    assert noted(inventory, "1 volumes of train are CT-CLIP's arrays")
    image, facts = make_volume(record, inventory.root, Recipe(shape=(32, 24, 16)))
    assert (facts["source_shape"], facts["hu_source"]) == (list(SHAPE), "ct_clip")
    arrays.add("train_3_a_1", hu=HU)
    from_nifti = by_id(listed(arrays))["train_3_a_1"]
    np.testing.assert_allclose(image, make_volume(from_nifti, inventory.root, Recipe(shape=(32, 24, 16)))[0], atol=1)


def test_nifti_is_preferred_and_arrays_in_the_wrong_tree_are_skipped(arrays):
    write_array(arrays.root / "dataset", "train_preprocessed/train_1/train_1a/train_1_a_1.npz")
    write_array(arrays.root / "dataset", "valid_preprocessed/valid_1/valid_1a/valid_1_a_1.npz")
    write_array(arrays.root / "dataset", "valid_preprocessed/train_2/train_2b/train_2_b_3.npz")
    arrays.path("valid_1_a_1", "valid_fixed").unlink()
    inventory = list_ct_rate(arrays.root, source_options())
    assert {name: (r.reader, r.split) for name, r in by_id(inventory).items() if r.files} == {
        "train_1_a_1": ("nifti", "train"), "valid_1_a_1": ("ct_clip", "test"),
    }  # fmt: skip
    assert noted(inventory, "1 files of valid do not have a CT-RATE file name")


def test_uncompressed_and_upper_case_volumes_are_found_and_compressed_ones_preferred(tmp_path):
    tree = CtRateTree(tmp_path / "ct_rate")
    paths = [tree.add(f"train_{number}_a_1") for number in (1, 2, 3)]
    tree.add("valid_1_a_1")
    paths[0].rename(paths[0].with_suffix(""))  # .nii
    paths[1].rename(paths[1].with_name(paths[1].name.upper().replace("TRAIN_2_A", "train_2_a")))
    paths[2].with_suffix("").touch()
    inventory = list_ct_rate(tree.write(), source_options())
    assert [PurePath(record.files[0]).name for record in inventory.records] == [
        "train_1_a_1.nii", "train_2_a_1.NII.GZ", "train_3_a_1.nii.gz", "valid_1_a_1.nii.gz",
    ]  # fmt: skip
