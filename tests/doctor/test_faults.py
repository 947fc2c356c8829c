"""Every planted fault is found under its code with its volumes, and nothing is found in a clean set."""

import json
import shutil

import numpy as np
import planted_faults as f
import pytest
from small_doctor import diagnose, problems

VOLUME = "train_2_a_1"


def test_clean_set_has_no_problems(clean_set):
    report = diagnose(clean_set)
    assert problems(report) == {}
    assert (report.verdict, report.data.catalog.is_synthetic) == ("info", True)
    assert len(report.data.statistics) == len(report.data.catalog.rows) > 20
    codes = {result.code for result in report.results}
    assert {"synthetic", "examined"} <= codes
    assert not codes & {"partial", "more_than_published", "prevalence_deviates"}


def test_clean_arrow_files_have_no_problems(clean_arrows):
    report = diagnose(clean_arrows)
    assert problems(report) == {}
    assert report.data.catalog.datasets == ["ct_rate", "ctrg"]
    assert problems(diagnose(clean_arrows / "clm_ct_rate_train.arrow")) == {}


def test_clean_first_release_and_excluded_volumes_are_no_problems(raw_set):
    for split in ("train", "valid"):
        shutil.rmtree(raw_set.dataset / f"{split}_fixed")
    (excluded,) = f.no_chest_listed(raw_set)
    report = diagnose(raw_set.root / "ct_rate")
    assert problems(report) == {}
    (result,) = (result for result in report.results if result.code == "no_chest")
    assert result.volumes == (f"ct_rate/{excluded}",)


QUARANTINED = {
    f.nan_spacing: "nan_spacing", f.missing_file: "missing_file", f.truncated_gzip: "gzip_truncated", f.not_3d: "not_3d",
    f.shape_mismatch: "shape_mismatch", f.missing_report: "report_missing",
}  # fmt: skip


def test_volumes_that_the_preparation_would_quarantine_are_found(raw_set):
    planted = {code: fault(raw_set) for fault, code in QUARANTINED.items()}
    found = problems(diagnose(raw_set.root / "ct_rate"))
    assert found == {code: sorted(names) for code, names in planted.items()}


def not_a_chest(tree):
    def head(volume):
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in volume.shape), indexing="ij")
        radius = np.sqrt((x / 0.4) ** 2 + (y / 0.5) ** 2 + (z / 0.7) ** 2)
        noise = np.random.default_rng(0).normal(0, 10, volume.shape)  # without noise, air would look like padding
        return (np.select([radius < 0.85, radius < 1], [30, 900], -1000) + noise).astype(np.int16)

    tree.replace(VOLUME, head(tree.read(VOLUME)[0]).T)


def cells(table, name=VOLUME, **values):
    return lambda tree: tree.set_cells(table, name, **values)


NEGATED = "No pleural effusion is seen. The liver is large and there is nothing else."
FAULTS = {
    "spacing_outlier": cells("metadata", ZSpacing="0.035"),
    "oblique": cells("metadata", ImageOrientationPatient="[1, 0, 0, 0, 0.94, -0.34]"),
    "patient_position": cells("metadata", PatientPosition="FFS"),
    "encoding_damage": cells("reports", "train_2_a", Findings_EN="The heart measures 12 \ufffd 1 cm and is not enlarged."),
    "short_report": cells("reports", "train_2_a", Findings_EN="Heart normal.", Impressions_EN=""),
    "repeated_row": lambda tree: tree.copy_row("reports", VOLUME, VOLUME, Findings_EN="Another one altogether, of nobody."),
    "orphan_label": lambda tree: tree.copy_row("labels", VOLUME, "train_77_a_1"),
    "not_a_chest": not_a_chest,
}
CONSEQUENCES = {"spacing_outlier": {"length_outlier"}, "repeated_row": {"report_differs", "duplicate_row"}}


@pytest.mark.parametrize("code", FAULTS)
def test_planted_fault_is_the_only_problem(raw_set, code):
    FAULTS[code](raw_set)
    found = problems(diagnose(raw_set.root / "ct_rate"))
    assert ("train_77_a_1" if code == "orphan_label" else VOLUME) in found.pop(code)
    assert found.keys() <= CONSEQUENCES.get(code, set())


def test_patient_with_two_ids_in_two_splits_is_an_error(raw_set):
    names = f.patient_in_two_splits(raw_set)
    report = diagnose(raw_set.root / "ct_rate")
    found = problems(report)
    assert found["duplicate_pixels"] == found["duplicate_report_other_patient"] == names
    assert report.verdict == "error"


@pytest.mark.parametrize(("other", "severity"), [("valid_2_a_1", "error"), ("train_5_a_1", "warning")])
def test_same_voxels_of_two_patients_are_an_error_across_splits_only(raw_set, other, severity):
    shutil.copy(raw_set.path("train_3_a_1"), raw_set.path(other))
    raw_set.set_cells("metadata", other, **dict.fromkeys(("NumberofSlices", "Rows", "Columns"), ""))
    report = diagnose(raw_set.root / "ct_rate", val_patients=0)
    assert problems(report)["duplicate_pixels"] == sorted(["train_3_a_1", other])
    assert report.verdict == severity


def test_copy_of_a_scan_with_one_finding_removed_is_found(raw_set):
    name, copy = "train_3_a_1", "train_3_b_1"
    for table in f.TABLES:
        raw_set.copy_row(table, name, copy)
    changed, mm = raw_set.read(name)
    changed = changed.copy()
    changed[9:14, 12:17, 10:16] = 40
    f.ct_rate.write_fixed(raw_set.only_path(copy), changed, mm)
    assert problems(diagnose(raw_set.root / "ct_rate")) == {"same_patient_duplicate": [name, copy]}


def test_equal_reports_are_a_warning_across_splits(raw_set):
    names = f.duplicate_report(raw_set)
    found = problems(diagnose(raw_set.root / "ct_rate"))
    assert set(found) <= {"duplicate_report_other_patient", "report_differs"}
    assert found["duplicate_report_other_patient"] == names


def test_labels_that_the_report_negates_are_found(raw_set):
    cells("reports", "train_2_a", Findings_EN=NEGATED, Impressions_EN="")(raw_set)
    cells("labels", "train_2_a", **{"Pleural effusion": "1"})(raw_set)
    found = problems(diagnose(raw_set.root / "ct_rate"))
    assert set(found) == {"label_contradicts_report"}
    assert {name[:9] for name in found["label_contradicts_report"]} == {"train_2_a"}


def test_reconstructions_with_different_labels_or_reports_are_found(raw_set):
    name = next(path.name for path in sorted(raw_set.dataset.glob("train_fixed/*/*/*_2.nii.gz"))).removesuffix(".nii.gz")
    for reconstruction, value in ((name, "1"), (name.removesuffix("2") + "1", "0")):
        raw_set.set_cells("labels", reconstruction, Emphysema=value)
    assert set(problems(diagnose(raw_set.root / "ct_rate"))) - {"label_contradicts_report"} == {"label_differs"}
    raw_set.set_cells("reports", name, Findings_EN="Some other words about this same scan, long enough.")
    assert {"label_differs", "report_differs"} <= set(problems(diagnose(raw_set.root / "ct_rate")))


def test_missing_slice_of_ctrg_is_found_and_no_name_is_reported(raw_set):
    (folder,) = f.ctrg_gap(raw_set)
    report = diagnose(raw_set.root / "ctrg")
    assert set(problems(report)) == {"missing_slices"}
    assert folder not in json.dumps(report.as_dict())


@pytest.mark.parametrize("damage", ["missing", "row", "columns"])
def test_unreadable_table_is_an_error(raw_set, damage):
    path = raw_set.table_path("reports", "train")
    if damage == "missing":
        path.unlink()
    elif damage == "row":
        path.write_text(path.read_text() + f"{VOLUME}.nii.gz,\n")
    else:
        path.write_text(path.read_text().replace("Findings_EN", "Other", 1))
    report = diagnose(raw_set.root / "ct_rate")
    assert report.verdict == "error"
    assert "cannot_read" in problems(report)


def test_incomplete_files_outside_the_sample_are_found(raw_set):
    damaged = sorted(path.name.removesuffix(".nii.gz") for path in raw_set.dataset.glob("train_fixed/*/*/*.nii.gz"))[5]
    raw_set.path(damaged).write_bytes(raw_set.path(damaged).read_bytes()[:-1000])
    report = diagnose(raw_set.root / "ct_rate", sample=1)
    assert problems(report)["gzip_truncated"] == [damaged]
    assert len(report.data.statistics) == 2
