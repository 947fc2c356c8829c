"""Single checks against hand-computed numbers and slow versions."""

import dataclasses
import hashlib
import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mg3d.doctor import dataset_checks
from mg3d.doctor.catalog import StoredVolumeSource, VolumeCatalog
from mg3d.doctor.checks import run_checks
from mg3d.doctor.data import DoctorData, read_evaluation_list
from mg3d.doctor.downloads import is_incomplete
from mg3d.doctor.duplicates import identical_pairs, nearly_identical, similar_pairs
from mg3d.doctor.published import PUBLISHED_COUNTS, PUBLISHED_PREVALENCE, SplitCounts
from mg3d.doctor.statistics import GREY, VolumeStatistics, Voxels, measure_all, voxel_statistics
from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined


def make_data(tmp_path, names, *, reports=None, labels=None, statistics=None, **columns):
    """Prepared CT-RATE volumes by name; each study has a different report."""
    rows = pd.DataFrame({"volume_id": [f"ct_rate/{name}" for name in names]})
    rows["study_id"] = rows["volume_id"].str.rsplit("_", n=1).str[0]
    rows["patient_id"] = rows["volume_id"].str.rsplit("_", n=2).str[0]
    rows["dataset"], rows["official_split"] = "ct_rate", [name.split("_")[0] for name in names]
    rows["split"] = rows["official_split"].map({"train": "train", "valid": "test"})
    rows["report"] = reports or [f"Some words of study {study}." for study in rows["study_id"]]
    rows["report_key"] = [hashlib.sha256(text.encode()).hexdigest() for text in rows["report"]]
    rows["has_findings"] = rows["has_impression"] = True
    rows["group"] = rows["image_sha256"] = ""
    for name, values in columns.items():
        rows[name] = values
    known = np.zeros((len(rows), 18), np.int8) if labels is None else labels
    sources = [StoredVolumeSource(tmp_path / "no.arrow", row, "hu") for row in range(len(rows))]
    return DoctorData(VolumeCatalog(tmp_path, "arrow", False, rows, known, sources), statistics=statistics or {})


def found(data):
    """Code -> names of volumes by `CHECKS`."""
    return {result.code: [name.removeprefix("ct_rate/") for name in result.volumes] for result in run_checks(data)}


def test_published_tables_have_every_label_and_add_up():
    assert {len(values) for parts in PUBLISHED_PREVALENCE.values() for values in parts.values()} == {len(LABELS)}
    assert [sum(counts) for counts in zip(*PUBLISHED_COUNTS["ct_rate"].values())] == [21_304, 25_692, 50_188]


# Labels


def labels_with(count, positives):
    """Published prevalence, except for Cardiomegaly (published 10.5 %)."""
    known = np.zeros((count, 18), np.int8)
    for column, fraction in enumerate(PUBLISHED_PREVALENCE["ct_rate"]["valid"]):
        known[: round(fraction * count), column] = 1
    known[:, 2] = 0
    known[:positives, 2] = 1
    return known


@pytest.mark.parametrize(
    ("studies", "positives", "deviates"),
    [
        # 3.5 sqrt(.105 .895 / n) + .0005: at 1,000 studies 3.44 %, at 100 studies 10.8 %
        (1000, 139, False), (1000, 140, True), (1000, 71, False), (1000, 70, True), (100, 21, False), (100, 22, True),
        (40, 40, False),
    ],
)  # fmt: skip
def test_tolerance_of_prevalence_depends_on_the_number_of_studies(tmp_path, studies, positives, deviates):
    names = [f"valid_{number}_a_1" for number in range(1, studies + 1)]
    results = dataset_checks.check_prevalence(make_data(tmp_path, names, labels=labels_with(studies, positives)))
    assert [list(result.values) for result in results] == ([["ct_rate valid Cardiomegaly"]] if deviates else [])


def test_studies_count_once_and_synthetic_sets_are_not_compared(tmp_path):
    known = np.zeros((4, 18), np.int8)
    known[:3, 4] = 1
    known[3, 5] = -1
    catalog = make_data(tmp_path, ["valid_1_a_1", "valid_1_a_2", "valid_1_a_3", "valid_2_a_1"], labels=known).catalog
    parts = {part.label: (part.fraction, part.studies) for part in dataset_checks.prevalences(catalog)}
    assert (parts[LABELS[4]], parts[LABELS[5]]) == ((0.5, 2), (0.0, 1))
    synthetic = dataset_checks.prevalences(dataclasses.replace(catalog, is_synthetic=True))
    assert {part.published for part in synthetic} == {None}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("No pleural effusion. Heart normal.", ["Pleural effusion"]),
        ("No pleural effusion on the right, pleural effusion on the left.", []),
        ("Pleural effusion is not present, and cardiomegaly is seen.", ["Pleural effusion"]),
        ("There is no emphysema; hiatal hernia.", ["Emphysema"]),
        ("Nothing is named.", []),
    ],
)
def test_label_is_negated_if_every_clause_with_it_is(report, expected):
    assert [LABELS[index] for index in dataset_checks.negated_labels(report)] == expected


# Counts, lists, leaks


@pytest.mark.parametrize(
    ("published", "code"),
    [(SplitCounts(2, 3, 4), "counts"), (SplitCounts(20, 30, 40), "partial"), (SplitCounts(2, 3, 3), "more_than_published")],
)
def test_counts_are_compared_with_the_published_ones(tmp_path, monkeypatch, published, code):
    monkeypatch.setitem(PUBLISHED_COUNTS, "ct_rate", {"train": published})
    data = make_data(tmp_path, ["train_1_a_1", "train_1_a_2", "train_1_b_1"])
    data.catalog.quarantined.append(Quarantined("ct_rate/train_2_a_1", "ct_rate", "scan", "missing_file"))
    (result,) = dataset_checks.check_counts(data)
    assert (result.code, result.values["found"]) == (code, [2, 3, 4])
    assert ("10.0% complete" in result.message) == (code == "partial")


def test_quarantined_cases_of_ctrg_count_in_the_total(tmp_path):
    data = make_data(tmp_path, ["train_1_a_1", "train_2_a_1", "valid_1_a_1"], dataset="ctrg")
    for column in ("volume_id", "study_id", "patient_id"):
        data.catalog.rows[column] = ["ctrg/aa", "ctrg/bb", "ctrg/cc"]
    data.catalog.quarantined += [Quarantined(f"ctrg/{name}", "ctrg", "scan", "missing_slices") for name in ("dd", "ee")]
    counts = {row["official split"]: [row[name] for name in ("patients", "studies", "volumes", "quarantined")]
              for row in dataset_checks.count_volumes(data.catalog)}  # fmt: skip
    assert counts == {"all": [5, 5, 5, 2], "train": [2, 2, 2, 0], "valid": [1, 1, 1, 0]}


def test_evaluation_lists_name_volumes_studies_and_patients_in_any_spelling(tmp_path):
    data = make_data(tmp_path, [f"train_{k}_a_1" for k in range(1, 7)] + ["valid_1_a_1"])
    data.catalog.rows.loc[4, "split"] = "val"
    path = tmp_path / "held_out.txt"
    path.write_text("# of a paper\n/data/dataset/train/train_1/train_1_a/train_1_a_1.nii.gz\nct_rate/train_2_a\n"
                    "train_3\ntrain_5_a_1.npz\nvalid_1_a_1 # fine\ntrain_66\n")  # fmt: skip
    data.evaluation_lists = {"held_out": read_evaluation_list(path)}
    results = {result.severity: result for result in dataset_checks.check_evaluation_lists(data)}
    assert results["error"].volumes == ("ct_rate/train_1_a_1", "ct_rate/train_2_a_1", "ct_rate/train_3_a_1")
    assert results["warning"].volumes == ("ct_rate/train_5_a_1",)
    assert "has 6 ids, 5 of them are present" in results["info"].message


@pytest.mark.parametrize("content", [b"", b"# only a comment\n\n", b"\xff\xfe\x00\x01"])
def test_list_without_ids_is_refused(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"one id per line|one volume, study or patient per line"):
        read_evaluation_list(tmp_path / "list.txt")


def test_patient_in_two_splits_of_a_raw_set_is_an_error(tmp_path):
    data = make_data(tmp_path, ["train_1_a_1", "train_1_b_1", "train_2_a_1"], split=["train", "val", "val"])
    data.catalog = dataclasses.replace(data.catalog, kind="raw")
    (result,) = dataset_checks.check_splits(data)
    assert (result.code, result.severity) == ("patient_in_two_splits", "error")
    assert result.volumes == ("ct_rate/train_1_a_1", "ct_rate/train_1_b_1")


# Reports


def test_damaged_and_placeholder_reports_are_found_and_special_characters_are_fine(tmp_path):
    reports = [
        "The aorta measures 3 \u00b1 1 cm, na\u00efve of contrast; caf\u00e9 au lait.",
        "The aorta measures 3 \u00c2\u00b1 1 cm and is wide.",
        "Heart &amp; lungs are normal in this scan.",
        "Lungs are clear &lt 3 mm nodules & nothing else.",
        "The heart\ufffds size is normal in this scan.",
        "See above.",
        "It is.",
        "",
    ]
    names = [f"train_{k}_a_1" for k in range(len(reports))]
    data = make_data(tmp_path, names, reports=reports)
    assert found(data) == {
        "encoding_damage": [names[1], names[2], names[4]], "placeholder_report": [names[5]],
        "short_report": [names[5], names[6]], "no_report": [names[7]],
    }  # fmt: skip


# Voxels


def test_statistics_agree_with_a_slow_version():
    stored = np.random.default_rng(0).integers(0, 1200, (37, 19, 26)).astype(np.int16)
    stored[:, :2] = 0
    item = voxel_statistics(Voxels(stored, (2.0, -1000.0), "hu"))
    hu = stored.astype(np.float64) * 2 - 1000
    assert item.sha256 == hashlib.sha256(hu.astype(np.int16).tobytes()).hexdigest()
    edges = [[side * k // 8 for k in range(9)] for side in stored.shape]
    slow = [
        hu[a0:a1, b0:b1, c0:c1].mean()
        for a0, a1 in zip(edges[0], edges[0][1:])
        for b0, b1 in zip(edges[1], edges[1][1:])
        for c0, c1 in zip(edges[2], edges[2][1:])
    ]
    np.testing.assert_allclose(item.block_means, slow, rtol=1e-5, atol=1e-3)
    assert item.histogram.sum() == pytest.approx(1)
    assert (item.shape, item.low) == ((37, 19, 26), -1000)


def chest_like(level, **changes):
    """Statistics of a normal chest whose block means increase from `level`."""
    blocks = np.linspace(level, level + 500, 512, dtype=np.float32)
    usual = {"intensity_unit": "hu", "low": -1000, "high": 60, "inside_air": 0.2, "block_means": blocks}
    return VolumeStatistics(**{**usual, **changes})


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        ({"low": -650.0}, "not_rescaled"),
        ({"high": -800.0, "inside_air": 0.0}, "double_rescaled"),
        ({"inside_air": 0.049}, "not_a_chest"),
    ],
)
@pytest.mark.parametrize(("n_odd", "severity"), [(0, None), (1, "warning"), (3, "error")])
def test_few_volumes_with_wrong_intensities_are_a_warning_and_many_an_error(tmp_path, odd, code, n_odd, severity):
    statistics = {k: chest_like(k, **(odd if k < n_odd else {})) for k in range(39)}
    statistics[39] = chest_like(39, intensity_unit=GREY, low=0.0, high=200.0, inside_air=float("nan"))  # not judged
    data = make_data(tmp_path, [f"train_{k}_a_1" for k in range(40)], statistics=statistics)
    results = [(result.code, result.severity, len(result.volumes)) for result in run_checks(data)]
    assert results == ([(code, severity, n_odd)] if n_odd else [])


def test_stored_volume_that_cannot_be_read_is_an_error(tmp_path):
    data = make_data(tmp_path, ["train_1_a_1"], statistics={0: VolumeStatistics("constant_image")})
    (result,) = dataset_checks.check_quarantine(data)
    assert (result.code, result.severity) == ("constant_image", "error")


def test_nearly_identical_volumes_need_close_hashes_and_close_means():
    generator = np.random.default_rng(4)
    base = generator.normal(0, 100, 512).astype(np.float32)
    means = np.stack([base, base + 2, base * 1.2, generator.normal(0, 100, 512).astype(np.float32)])
    assert nearly_identical(means, 3.0) == {(0, 1)}
    assert nearly_identical(means, 1.0) == set()
    units = {row: VolumeStatistics(intensity_unit=unit, block_means=base) for row, unit in enumerate(("hu", GREY))}
    assert similar_pairs(units) == set()


def test_identical_values_are_paired_with_the_next():
    assert identical_pairs(pd.Series(["a", "b", "a", "", "a", ""])) == {(0, 2), (2, 4)}


def test_reconstructions_of_a_study_are_not_duplicates(tmp_path):
    catalog = make_data(tmp_path, ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "valid_1_a_1"]).catalog
    results = {r.code: r for r in dataset_checks.duplicate_results(catalog, [(0, 1), (0, 2), (2, 3), (3, 4)])}
    assert {code: result.severity for code, result in results.items()} == {
        "same_patient_duplicate": "warning", "duplicate_pixels": "error",
    }  # fmt: skip
    assert results["duplicate_pixels"].values["pairs"] == [
        ["ct_rate/train_1_b_1", "ct_rate/train_2_a_1"],
        ["ct_rate/train_2_a_1", "ct_rate/valid_1_a_1"],
    ]


def test_truncation_is_found_at_every_length(tmp_path):
    path = tmp_path / "volume.nii.gz"
    stored = np.random.default_rng(0).integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
    nib.save(nib.Nifti1Image(stored, np.eye(4)), path)
    content = path.read_bytes()
    assert not is_incomplete(path)
    for length in (len(content) - 1, len(content) - 4, len(content) * 2 // 3, len(content) // 3, 100, 7, 0):
        path.write_bytes(content[:length])
        assert is_incomplete(path)
    assert is_incomplete(tmp_path / "missing.nii.gz")
    assert not is_incomplete(tmp_path / "slices.jpg")


def test_parallel_processes_give_the_same_in_the_same_order(clean_arrows):
    sources = [StoredVolumeSource(clean_arrows / "clm_ct_rate_train.arrow", row, "hu") for row in range(9)]
    alone, together = (list(measure_all(sources, workers)) for workers in (1, 2))
    assert [item.sha256 for item in alone] == [item.sha256 for item in together]
    assert not any(math.isnan(item.inside_air) for item in alone)
