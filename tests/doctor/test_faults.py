"""Every planted fault is found under its code with its volumes, and nothing is found in a clean set."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_doctor import TABLES, diagnose, problems

from mg3d.phantom.ct_rate import write_raw

VOLUME = "train_2_a_1"


def voxels(path):
    """[z, y, x]."""
    return np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0)


def rewrite(path, change):
    """Changes the stored array [x, y, z] of a file."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.array(image.dataobj)), image.affine), path)


def test_clean_set_has_no_problems(clean_set):
    report = diagnose(clean_set)
    assert problems(report) == {}
    assert (report.verdict, report.data.catalog.is_synthetic) == ("info", True)
    assert len(report.data.statistics) == len(report.data.catalog.rows) > 20
    codes = {result.code for result in report.results}
    assert {"synthetic", "examined"} <= codes
    assert not codes & {"partial", "more_than_published", "prevalence_deviates"}


def test_clean_first_release_has_no_problems_and_its_padding_is_reported(raw_set):
    for split in ("train", "valid"):
        shutil.rmtree(raw_set.dataset / f"{split}_fixed")
    report = diagnose(raw_set.root / "ct_rate")
    assert problems(report) == {}
    padded = next(result for result in report.results if result.code == "fov_padding")
    assert {name.split("_")[-3] for name in padded.volumes} == {"4", "8", "12"}  # one scanner in four pads


def test_clean_arrow_files_have_no_problems(clean_arrows):
    report = diagnose(clean_arrows)
    assert problems(report) == {}
    assert report.data.catalog.datasets == ["ct_rate", "ctrg"]
    assert problems(diagnose(clean_arrows / "clm_ct_rate_train.arrow")) == {}


def already_hu(tree):
    shutil.copy(tree.path(VOLUME), tree.path(VOLUME, "{}"))
    tree.move_to_first_release(VOLUME)


def fov_padding(tree):
    volume = voxels(tree.path(VOLUME))
    write_raw(tree.move_to_first_release(VOLUME), volume, -8192)
    tree.edit("metadata", VOLUME, "RescaleIntercept", "-8192")


def missing_file(tree):
    for name in ("{}_fixed", "{}"):
        tree.path(VOLUME, name).unlink()


def gzip_truncated(tree):
    content = tree.path(VOLUME).read_bytes()
    tree.path(VOLUME).write_bytes(content[: len(content) * 2 // 3])


def not_a_chest(tree):
    def head(stored):
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in stored.shape), indexing="ij")
        radius = np.sqrt((x / 0.4) ** 2 + (y / 0.5) ** 2 + (z / 0.7) ** 2)
        noise = np.random.default_rng(0).normal(0, 10, stored.shape)  # without noise, air would look like padding
        return (np.select([radius < 0.85, radius < 1], [30, 900], -1000) + noise).astype(np.int16)

    rewrite(tree.path(VOLUME), head)


def orientation(tree):
    nib.save(nib.as_closest_canonical(nib.load(tree.path(VOLUME))), tree.path(VOLUME))


def repeated_row(tree):
    tree.add_row("reports", VOLUME, VOLUME, Findings_EN="Another one altogether, of nobody.")


def no_chest(tree):
    (tree.dataset / "metadata" / "no_chest_train.txt").write_text(f"/data/dataset/train/train_2/train_2_a/{VOLUME}.nii.gz\n")


def edited(table, column, value, name=VOLUME):
    return lambda tree: tree.edit(table, name, column, value)


def rewritten(change):
    return lambda tree: rewrite(tree.path(VOLUME), change)


BOTH = ["Findings_EN", "Impressions_EN"]
FAULTS = {
    "nan_spacing": edited("metadata", "ZSpacing", ""),
    "shape_mismatch": edited("metadata", "Rows", "31"),
    "spacing_outlier": edited("metadata", "ZSpacing", "0.035"),
    "oblique": edited("metadata", "ImageOrientationPatient", "[1, 0, 0, 0, 0.94, -0.34]"),
    "patient_position": edited("metadata", "PatientPosition", "FFS"),
    "encoding_damage": edited("reports", "Findings_EN", "The heart measures 12 \ufffd 1 cm and is not enlarged.", "train_2_a"),
    "short_report": edited("reports", BOTH, ["Heart normal.", ""], "train_2_a"),
    "report_missing": edited("reports", BOTH, ["Not given.", ""]),
    "not_3d": rewritten(lambda stored: stored[:, :, 4]),
    "constant_image": rewritten(lambda stored: np.full_like(stored, 3)),
    "hu_ambiguous": rewritten(lambda stored: (stored - 1024).astype(np.int16)),
    "orphan_label": lambda tree: tree.add_row("labels", VOLUME, "train_77_a_1"),
    **{f.__name__: f for f in (already_hu, missing_file, gzip_truncated, not_a_chest, orientation, repeated_row)},
}
CONSEQUENCES = {"spacing_outlier": {"length_outlier"}, "repeated_row": {"report_differs", "duplicate_row"}}


@pytest.mark.parametrize("code", FAULTS)
def test_planted_fault_is_the_only_problem(raw_set, code):
    FAULTS[code](raw_set)
    found = problems(diagnose(raw_set.root / "ct_rate"))
    assert ("train_77_a_1" if code == "orphan_label" else VOLUME) in found.pop(code)
    assert found.keys() <= CONSEQUENCES.get(code, set())


@pytest.mark.parametrize("plant", [fov_padding, no_chest], ids=lambda plant: plant.__name__)
def test_expected_properties_are_info(raw_set, plant):
    plant(raw_set)
    report = diagnose(raw_set.root / "ct_rate")
    assert problems(report) == {}
    (result,) = (result for result in report.results if result.code == plant.__name__)
    assert result.volumes == (f"ct_rate/{VOLUME}",)


def add_twin(tree, name, other):
    """Copies the file and all rows of `name` to `other`."""
    for table in TABLES:
        tree.add_row(table, name, other)
    tree.path(other).parent.mkdir(parents=True)
    shutil.copy(tree.path(name), tree.path(other))


def test_patient_with_two_ids_in_two_splits_is_an_error(raw_set):
    add_twin(raw_set, "train_3_a_1", "valid_9_a_1")
    report = diagnose(raw_set.root / "ct_rate")
    found = problems(report)
    assert found["patient_in_two_splits"] == ["train_3_a_1", "valid_9_a_1"]
    assert "valid_9_a_1" in found["duplicate_report_other_patient"]
    assert report.verdict == "error"


@pytest.mark.parametrize(("other", "severity"), [("valid_2_a_1", "error"), ("train_5_a_1", "warning")])
def test_same_voxels_of_two_patients_are_an_error_across_splits_only(raw_set, other, severity):
    shutil.copy(raw_set.path("train_3_a_1"), raw_set.path(other))
    for column, side in zip(("NumberofSlices", "Rows", "Columns"), voxels(raw_set.path(other)).shape):
        raw_set.edit("metadata", other, column, str(side))
    report = diagnose(raw_set.root / "ct_rate", val_patients=0)
    assert problems(report) == {"duplicate_pixels": sorted(["train_3_a_1", other])}
    assert report.verdict == severity


def test_copy_of_a_scan_with_one_finding_removed_is_found(raw_set):
    add_twin(raw_set, "train_3_a_1", "train_3_b_1")

    def remove(stored):
        stored[10:16, 12:17, 9:14] = 40
        return stored

    rewrite(raw_set.path("train_3_b_1"), remove)
    assert problems(diagnose(raw_set.root / "ct_rate")) == {"same_patient_duplicate": ["train_3_a_1", "train_3_b_1"]}


def test_equal_reports_of_two_patients_are_a_warning_across_splits(raw_set):
    for name in ("train_2_a", "valid_2_a"):
        raw_set.edit("reports", name, BOTH, ["The same words for two, and more of them.", ""])
    found = problems(diagnose(raw_set.root / "ct_rate"))
    assert set(found) == {"duplicate_report_other_patient"}
    assert {name[:7] for name in found["duplicate_report_other_patient"]} == {"train_2", "valid_2"}


def test_labels_that_the_report_negates_are_found(raw_set):
    text = "No pleural effusion is seen. The liver is large and there is nothing else."
    raw_set.edit("reports", "train_2_a", BOTH, [text, ""])
    raw_set.edit("labels", "train_2_a", "Pleural effusion", "1")
    found = problems(diagnose(raw_set.root / "ct_rate"))
    assert set(found) == {"label_contradicts_report"}
    assert {name[:9] for name in found["label_contradicts_report"]} == {"train_2_a"}


def test_reconstructions_with_different_labels_or_reports_are_found(raw_set):
    name = next(path.name for path in sorted(raw_set.dataset.glob("train_fixed/*/*/*_2.nii.gz"))).removesuffix(".nii.gz")
    raw_set.edit("labels", name, "Emphysema", "1")
    raw_set.edit("labels", name.removesuffix("2") + "1", "Emphysema", "0")
    assert set(problems(diagnose(raw_set.root / "ct_rate"))) - {"label_contradicts_report"} == {"label_differs"}
    raw_set.edit("reports", name, "Findings_EN", "Some other words about this same scan, long enough.")
    assert {"label_differs", "report_differs"} <= set(problems(diagnose(raw_set.root / "ct_rate")))


def test_missing_slice_of_ctrg_is_found_and_no_name_is_reported(raw_set):
    folder = min((raw_set.root / "ctrg" / "Chest_New").iterdir())
    sorted(folder.iterdir())[7].unlink()
    annotation = raw_set.root / "ctrg" / "chest_ctrg_jpg.json"
    cases = json.loads(annotation.read_text())
    for case in cases:
        if isinstance(case["image_path"], list):
            case["image_path"] = str(Path(case["image_path"][0]).parent)
    annotation.write_text(json.dumps(cases))
    report = diagnose(raw_set.root / "ctrg")
    assert set(problems(report)) == {"missing_slices"}
    assert folder.name not in json.dumps(report.as_dict())


@pytest.mark.parametrize("damage", ["missing", "row", "columns"])
def test_unreadable_table_is_an_error(raw_set, damage):
    path = raw_set.table("reports")
    if damage == "missing":
        path.unlink()
    elif damage == "row":
        path.write_text(path.read_text() + f"{VOLUME}.nii.gz,\n")
    else:
        path.write_text(path.read_text().replace("Findings_EN", "Other", 1))
    report = diagnose(raw_set.root / "ct_rate")
    assert report.verdict == "error"
    assert "cannot_read" in problems(report)


def test_faults_outside_the_sample_are_found_by_the_headers(raw_set):
    names = sorted(path.name.removesuffix(".nii.gz") for path in raw_set.dataset.glob("train_fixed/*/*/*.nii.gz"))
    damaged, twins = names[5], (names[2], names[8])
    raw_set.path(damaged).write_bytes(raw_set.path(damaged).read_bytes()[:-1000])
    shutil.copy(raw_set.path(twins[0]), raw_set.path(twins[1]))
    for column, side in zip(("NumberofSlices", "Rows", "Columns"), voxels(raw_set.path(twins[0])).shape):
        raw_set.edit("metadata", twins[1], column, str(side))
    report = diagnose(raw_set.root / "ct_rate", sample=1)
    found = problems(report)
    assert found["gzip_truncated"] == [damaged]
    assert found["duplicate_pixels"] == sorted(twins)
    assert len(report.data.statistics) == 4
