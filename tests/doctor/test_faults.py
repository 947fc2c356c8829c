"""Every fault that is planted is found, by its name and with its volumes; nothing is found in a clean set."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_doctor import TABLES, bad, look

from mg3d.phantom.ct_rate import write_raw


def voxels(path):
    """[z, y, x]."""
    return np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0)


def rewrite(path, change):
    """Changes the stored array [x, y, z] of a file."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.array(image.dataobj)), image.affine), path)


def test_nothing_is_found_in_a_clean_set(clean_set):
    examination = look(clean_set)
    assert bad(examination) == {}
    assert examination.verdict == "fact"
    assert examination.catalogue.synthetic
    assert len(examination.facts) == len(examination.catalogue.rows) > 20
    codes = {finding.code for finding in examination.findings}
    assert {"synthetic", "sentences", "examined"} <= codes
    assert not codes & {"partial", "too_many", "prevalence_deviates"}


def test_nothing_is_found_in_a_clean_first_release(raw_set):
    for split in ("train", "valid"):
        shutil.rmtree(raw_set.dataset / f"{split}_fixed")
    examination = look(raw_set.root / "ct_rate")
    assert bad(examination) == {}
    padded = next(finding for finding in examination.findings if finding.code == "padding_8192")
    patients = {name.split("_")[-3] for name in padded.volumes}
    assert patients == {"4", "8", "12"}  # one scanner in four pads


def test_nothing_is_found_in_clean_arrow_files(clean_arrows):
    examination = look(clean_arrows)
    assert bad(examination) == {}
    assert examination.catalogue.datasets == ["ct_rate", "ctrg"]
    assert bad(look(clean_arrows / "clm_ct_rate_train.arrow")) == {}


def nan_spacing(tree):
    tree.edit("metadata", "train_2_a_1", "ZSpacing", "")


def missing_file(tree):
    for name in ("{}_fixed", "{}"):
        tree.path("train_2_a_1", name).unlink()


def truncated_gzip(tree):
    content = tree.path("train_2_a_1").read_bytes()
    tree.path("train_2_a_1").write_bytes(content[: len(content) * 2 // 3])


def not_3d(tree):
    rewrite(tree.path("train_2_a_1"), lambda stored: stored[:, :, 4])


def shape_mismatch(tree):
    tree.edit("metadata", "train_2_a_1", "Rows", "31")


def fixed_in_raw_tree(tree):
    shutil.copy(tree.path("train_2_a_1"), tree.path("train_2_a_1", "{}"))
    tree.move_to_first_release("train_2_a_1")


def padding_8192(tree):
    volume = voxels(tree.path("train_2_a_1"))
    write_raw(tree.move_to_first_release("train_2_a_1"), volume, -8192)
    tree.edit("metadata", "train_2_a_1", "RescaleIntercept", "-8192")


def ffs_row(tree):
    tree.edit("metadata", "train_2_a_1", "PatientPosition", "FFS")


def iop_spelling(tree):
    tree.edit("metadata", "train_2_a_1", "ImageOrientationPatient", "['1', '0', '0', '0', '1', '0']")


def xyspacing_spelling(tree):
    tree.edit("metadata", "train_2_a_1", "XYSpacing", "(11.25, 11.25)")


def blank_age(tree):
    tree.edit("metadata", "train_2_a_1", "PatientAge", "")


def orphan_label(tree):
    tree.add_row("labels", "train_2_a_1", "train_77_a_1")


def two_rows(tree):
    tree.add_row("reports", "train_2_a_1", "train_2_a_1", Findings_EN="Another one altogether, of nobody.")


def not_given(tree):
    for column in ("Findings_EN", "Impressions_EN"):
        tree.edit("reports", "train_2_a_1", column, "Not given.")


def empty_report(tree):
    for column in ("Findings_EN", "Impressions_EN"):
        tree.edit("reports", "train_2_a_1", column, "")


def head_scan(tree):
    def head(stored):
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in stored.shape), indexing="ij")
        radius = np.sqrt((x / 0.4) ** 2 + (y / 0.5) ** 2 + (z / 0.7) ** 2)
        noise = np.random.default_rng(0).normal(0, 10, stored.shape)  # without it air would be one value, as filling is
        return (np.select([radius < 0.85, radius < 1], [30, 900], -1000) + noise).astype(np.int16)

    rewrite(tree.path("train_2_a_1"), head)


def no_chest_listed(tree):
    (tree.dataset / "metadata" / "no_chest_train.txt").write_text("/data/dataset/train/train_2/train_2_a/train_2_a_1.nii.gz\n")


def orientation(tree):
    path = tree.path("train_2_a_1")
    nib.save(nib.as_closest_canonical(nib.load(path)), path)


def constant_image(tree):
    rewrite(tree.path("train_2_a_1"), lambda stored: np.full_like(stored, 3))


def hu_ambiguous(tree):
    rewrite(tree.path("train_2_a_1"), lambda stored: (stored - 1024).astype(np.int16))


def encoding_damage(tree):
    tree.edit("reports", "train_2_a", "Findings_EN", "The heart measures 12 \ufffd 1 cm and is not enlarged.")


def short_report(tree):
    tree.edit("reports", "train_2_a", ["Findings_EN", "Impressions_EN"], ["Heart normal.", ""])


def oblique(tree):
    tree.edit("metadata", "train_2_a_1", "ImageOrientationPatient", "[1, 0, 0, 0, 0.94, -0.34]")


def spacing_outlier(tree):
    tree.edit("metadata", "train_2_a_1", "ZSpacing", "0.035")


PLANTED = [
    nan_spacing, missing_file, truncated_gzip, not_3d, shape_mismatch, fixed_in_raw_tree, ffs_row, orphan_label, two_rows,
    not_given, empty_report, head_scan, orientation, constant_image, hu_ambiguous, encoding_damage, short_report, oblique,
    spacing_outlier,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_alone(raw_set, plant):
    plant(raw_set)
    found = bad(look(raw_set.root / "ct_rate"))
    volume = "train_77_a_1" if plant is orphan_label else "train_2_a_1"
    assert volume in found.pop(plant.__name__)
    assert found.keys() <= (
        {"length_outlier"} if plant is spacing_outlier else {"report_differs", "duplicate_row"} if plant is two_rows else set()
    )


@pytest.mark.parametrize("plant", [padding_8192, iop_spelling, xyspacing_spelling, blank_age, no_chest_listed])
def test_what_is_no_fault_is_told_as_a_fact(raw_set, plant):
    plant(raw_set)
    examination = look(raw_set.root / "ct_rate")
    assert bad(examination) == {}
    (finding,) = (finding for finding in examination.findings if finding.code == plant.__name__)
    assert finding.volumes == ("ct_rate/train_2_a_1",)


def twin(tree, name, other):
    """All rows of `name` once more for `other`, and its file."""
    for kind in TABLES:
        tree.add_row(kind, name, other)
    tree.path(other).parent.mkdir(parents=True)
    shutil.copy(tree.path(name), tree.path(other))


def test_a_patient_under_two_numbers_blocks(raw_set):
    twin(raw_set, "train_3_a_1", "valid_9_a_1")
    examination = look(raw_set.root / "ct_rate")
    found = bad(examination)
    assert found["patient_in_two_splits"] == ["train_3_a_1", "valid_9_a_1"]
    assert "valid_9_a_1" in found["duplicate_report_other_patient"]
    assert examination.verdict == "blocking"


@pytest.mark.parametrize(("other", "severity"), [("valid_2_a_1", "blocking"), ("train_5_a_1", "warning")])
def test_equal_voxels_of_two_patients_block_across_splits_only(raw_set, other, severity):
    shutil.copy(raw_set.path("train_3_a_1"), raw_set.path(other))
    shape = voxels(raw_set.path(other)).shape
    for column, side in zip(("NumberofSlices", "Rows", "Columns"), shape):
        raw_set.edit("metadata", other, column, str(side))
    # val is two patients of train, which are not among these
    examination = look(raw_set.root / "ct_rate", val_patients=0)
    assert bad(examination) == {"duplicate_pixels": sorted(["train_3_a_1", other])}
    assert examination.verdict == severity


def test_a_scan_with_one_finding_taken_out_is_told(raw_set):
    twin(raw_set, "train_3_a_1", "train_3_b_1")

    def without(stored):
        stored[10:16, 12:17, 9:14] = 40
        return stored

    rewrite(raw_set.path("train_3_b_1"), without)
    assert bad(look(raw_set.root / "ct_rate")) == {"counterfactual_pair": ["train_3_a_1", "train_3_b_1"]}


def test_equal_reports_of_two_patients_are_a_warning_across_splits(raw_set):
    for name in ("train_2_a", "valid_2_a"):
        raw_set.edit("reports", name, "Findings_EN", "The same words for two, and more of them.")
        raw_set.edit("reports", name, "Impressions_EN", "")
    found = bad(look(raw_set.root / "ct_rate"))
    assert set(found) == {"duplicate_report_other_patient"}
    assert {name[:7] for name in found["duplicate_report_other_patient"]} == {"train_2", "valid_2"}


def test_labels_that_reports_deny_are_told(raw_set):
    raw_set.edit(
        "reports", "train_2_a", "Findings_EN", "No pleural effusion is seen. The liver is large and there is nothing else."
    )
    raw_set.edit("reports", "train_2_a", "Impressions_EN", "")
    raw_set.edit("labels", "train_2_a", "Pleural effusion", "1")
    found = bad(look(raw_set.root / "ct_rate"))
    assert set(found) == {"label_flip"}
    assert {name[:9] for name in found["label_flip"]} == {"train_2_a"}


def test_reconstructions_that_disagree_are_told(raw_set):
    name = next(path.name for path in sorted(raw_set.dataset.glob("train_fixed/*/*/*_2.nii.gz"))).removesuffix(".nii.gz")
    raw_set.edit("labels", name, "Emphysema", "1")
    raw_set.edit("labels", name.removesuffix("2") + "1", "Emphysema", "0")
    assert set(bad(look(raw_set.root / "ct_rate"))) - {"label_flip"} == {"label_differs"}
    raw_set.edit("reports", name, "Findings_EN", "Some other words about this same scan, long enough.")
    assert {"label_differs", "report_differs"} <= set(bad(look(raw_set.root / "ct_rate")))


def test_a_missing_slice_of_ctrg_is_told_without_a_name(raw_set):
    folder = next(path for path in sorted((raw_set.root / "ctrg" / "Chest_New").iterdir()))
    sorted(folder.iterdir())[7].unlink()
    annotations = raw_set.root / "ctrg" / "chest_ctrg_jpg.json"
    cases = json.loads(annotations.read_text())
    for case in cases:
        case["image_path"] = (
            str(Path(case["image_path"][0]).parent) if isinstance(case["image_path"], list) else case["image_path"]
        )
    annotations.write_text(json.dumps(cases))
    examination = look(raw_set.root / "ctrg")
    assert set(bad(examination)) == {"missing_slices"}
    assert folder.name not in json.dumps(examination.as_dict())


@pytest.mark.parametrize("damage", ["gone", "latin1", "columns"])
def test_a_table_that_cannot_be_read_blocks(raw_set, damage):
    path = raw_set.table("reports")
    if damage == "gone":
        path.unlink()
    elif damage == "latin1":
        path.write_bytes(path.read_bytes() + "train_2_a_1.nii.gz,,,9 ± 1 mm,\n".encode("latin-1"))
    else:
        path.write_text(path.read_text().replace("Findings_EN", "Other", 1))
    examination = look(raw_set.root / "ct_rate")
    assert examination.verdict == "blocking"
    assert "cannot_read" in bad(examination)


def test_a_fault_that_the_sample_would_miss_is_found_by_the_headers(raw_set):
    names = sorted(path.name.removesuffix(".nii.gz") for path in raw_set.dataset.glob("train_fixed/*/*/*.nii.gz"))
    damaged, twins = names[5], (names[2], names[8])
    content = raw_set.path(damaged).read_bytes()
    raw_set.path(damaged).write_bytes(content[:-1000])
    shutil.copy(raw_set.path(twins[0]), raw_set.path(twins[1]))
    for column, side in zip(("NumberofSlices", "Rows", "Columns"), voxels(raw_set.path(twins[0])).shape):
        raw_set.edit("metadata", twins[1], column, str(side))
    examination = look(raw_set.root / "ct_rate", sample=1)
    found = bad(examination)
    assert found["truncated_gzip"] == [damaged]
    assert found["duplicate_pixels"] == sorted(twins)
    assert len(examination.facts) == 4
