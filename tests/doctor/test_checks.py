"""Single checks against hand-computed numbers and slow versions."""

import dataclasses
import hashlib
import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mg3d.doctor import labels, splits, texts, volumes
from mg3d.doctor.catalogue import ArrowPlace, Catalogue
from mg3d.doctor.copies import check_copies, equal_in_parts, equal_pairs, find_copies, near
from mg3d.doctor.examine import merged
from mg3d.doctor.findings import Finding, examples, ordered
from mg3d.doctor.measure import VolumeFacts, Voxels, air_inside, count_bins, facts_of, measure_all
from mg3d.doctor.probe import probe
from mg3d.doctor.published import COUNTS, PREVALENCES, Counts
from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined


def catalogue(tmp_path, names, *, reports=None, labels=None, **columns):
    """Arrow rows of CT-RATE by their volume ids; each study a report of its own."""
    rows = pd.DataFrame({"volume_id": [f"ct_rate/{name}" for name in names]})
    rows["study_id"] = rows["volume_id"].str.rsplit("_", n=1).str[0]
    rows["patient_id"] = rows["volume_id"].str.rsplit("_", n=2).str[0]
    rows["dataset"], rows["official_split"] = "ct_rate", [name.split("_")[0] for name in names]
    rows["split"] = rows["official_split"].map({"train": "train", "valid": "test"})
    rows["report"] = reports or [f"Words of {study}." for study in rows["study_id"]]
    rows["report_key"] = [hashlib.sha256(text.encode()).hexdigest() for text in rows["report"]]
    rows["has_findings"] = rows["has_impression"] = True
    rows["group"] = rows["image_sha256"] = ""
    for name, values in columns.items():
        rows[name] = values
    known = np.zeros((len(rows), 18), np.int8) if labels is None else labels
    places = [ArrowPlace(tmp_path / "no.arrow", row, "hu") for row in range(len(rows))]
    return Catalogue(tmp_path, "arrow", False, rows, known, places)


def test_published_tables_have_every_label_and_add_up():
    assert {len(shares) for parts in PREVALENCES.values() for shares in parts.values()} == {len(LABELS)}
    both = [sum(numbers) for numbers in zip(*COUNTS["ct_rate"].values())]
    assert both == [21_304, 25_692, 50_188]


# Labels


def with_share(count, positives):
    known = np.zeros((count, 18), np.int8)
    for place, share in enumerate(PREVALENCES["ct_rate"]["valid"]):
        known[: round(share * count), place] = 1
    known[:, 2] = 0
    known[:positives, 2] = 1  # Cardiomegaly, published 10.5 %
    return known


@pytest.mark.parametrize(
    ("scans", "positives", "flagged"),
    [
        # 3.5 sqrt(.105 .895 / n) + .0005: at 1,000 scans 3.44 %, at 100 scans 10.8 %
        (1000, 139, False),
        (1000, 140, True),
        (1000, 71, False),
        (1000, 70, True),
        (100, 21, False),
        (100, 22, True),
        (40, 40, False),
    ],
)
def test_a_share_is_told_from_the_published_one_as_the_number_of_scans_allows(tmp_path, scans, positives, flagged):
    names = [f"valid_{number}_a_1" for number in range(1, scans + 1)]
    found = labels.check_prevalence(catalogue(tmp_path, names, labels=with_share(scans, positives)))
    assert bool(found) == flagged
    if flagged:
        assert list(found[0].values) == ["ct_rate valid Cardiomegaly"]


def test_scans_count_once_and_synthetic_sets_are_not_compared(tmp_path):
    names = ["valid_1_a_1", "valid_1_a_2", "valid_1_a_3", "valid_2_a_1"]
    known = np.zeros((4, 18), np.int8)
    known[:3, 4] = 1
    known[3, 5] = -1
    everything = catalogue(tmp_path, names, labels=known)
    shares = {part.label: (part.share, part.scans) for part in labels.prevalences(everything)}
    assert shares[LABELS[4]] == (0.5, 2)
    assert shares[LABELS[5]] == (0.0, 1)
    synthetic = dataclasses.replace(everything, synthetic=True)
    assert {part.published for part in labels.prevalences(synthetic)} == {None}


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
def test_a_label_is_denied_only_when_every_clause_with_it_denies(report, expected):
    assert [LABELS[place] for place in labels.denied_labels(report)] == expected


# Counts, lists, leaks


@pytest.mark.parametrize(
    ("published", "code"), [(Counts(2, 3, 4), "counts"), (Counts(20, 30, 40), "partial"), (Counts(2, 3, 3), "too_many")]
)
def test_counts_are_held_against_the_published_ones(tmp_path, monkeypatch, published, code):
    monkeypatch.setitem(COUNTS, "ct_rate", {"train": published})
    here = catalogue(tmp_path, ["train_1_a_1", "train_1_a_2", "train_1_b_1"])
    here.refused.append(Quarantined("ct_rate/train_2_a_1", "ct_rate", "scan", "missing_file"))
    (finding,) = splits.check_counts(here)
    assert finding.code == code
    assert finding.values["found"] == [2, 3, 4]
    assert ("10.0% there" in finding.found) == (code == "partial")


def test_counts_of_ctrgs_splits_add_up_to_those_of_all(tmp_path):
    here = catalogue(tmp_path, ["train_1_a_1", "train_2_a_1", "valid_1_a_1"])
    for column in ("volume_id", "study_id", "patient_id"):
        here.rows[column] = ["ctrg/aa", "ctrg/bb", "ctrg/cc"]
    here.rows["dataset"] = "ctrg"
    here.refused += [Quarantined(f"ctrg/{name}", "ctrg", "scan", "missing_slices") for name in ("dd", "ee")]
    found = {row["official split"]: [row[name] for name in ("patients", "studies", "volumes", "left out")]
             for row in splits.counts(here)}  # fmt: skip
    assert found == {"all": [5, 5, 5, 2], "train": [2, 2, 2, 0], "valid": [1, 1, 1, 0], "not told": [2, 2, 2, 2]}
    here.refused.clear()
    assert [row["official split"] for row in splits.counts(here)] == ["all", "train", "valid"]


def test_lists_name_volumes_studies_and_patients_in_any_spelling(tmp_path):
    here = catalogue(tmp_path, [f"train_{k}_a_1" for k in range(1, 7)] + ["valid_1_a_1"])
    here.rows.loc[4, "split"] = "val"
    path = tmp_path / "held_out.txt"
    path.write_text("# of a paper\n/data/dataset/train/train_1/train_1_a/train_1_a_1.nii.gz\nct_rate/train_2_a\n"
                    "train_3\ntrain_5_a_1.npz\nvalid_1_a_1 # fine\ntrain_66\n")  # fmt: skip
    findings = splits.check_lists(here, {"held_out": splits.read_list(path)})
    found = {finding.severity: finding for finding in findings}
    assert found["blocking"].volumes == ("ct_rate/train_1_a_1", "ct_rate/train_2_a_1", "ct_rate/train_3_a_1")
    assert found["warning"].volumes == ("ct_rate/train_5_a_1",)
    assert "names 6 ids, 5 of them are here" in found["fact"].found


@pytest.mark.parametrize("content", [b"", b"# only a remark\n\n", b"\xff\xfe\x00\x01"])
def test_a_list_without_ids_is_refused(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"one id a line|one volume, study or patient a line"):
        splits.read_list(tmp_path / "list.txt")


def test_a_patient_in_two_splits_of_a_scan_blocks(tmp_path):
    here = catalogue(tmp_path, ["train_1_a_1", "train_1_b_1", "train_2_a_1"], split=["train", "val", "val"])
    (finding,) = splits.check_raw_leaks(here)
    assert (finding.code, finding.severity) == ("patient_in_two_splits", "blocking")
    assert finding.volumes == ("ct_rate/train_1_a_1", "ct_rate/train_1_b_1")


# Reports


def test_damage_and_placeholders_are_told_and_proper_letters_are_not(tmp_path):
    reports = [
        "The aorta measures 3 \u00b1 1 cm, na\u00efve of contrast; caf\u00e9 au lait.",
        "The aorta measures 3 \u00c2\u00b1 1 cm and is wide.",
        "Heart &amp; lungs are normal in this scan.",
        "Lungs are clear &lt 3 mm nodules & nothing else.",
        "The heart\ufffds size is normal in this scan.",
        "See above.",
        "It is.",
    ]
    here = catalogue(tmp_path, [f"train_{k}_a_1" for k in range(len(reports))], reports=reports)
    found = {finding.code: [name.split("_")[2] for name in finding.volumes] for finding in texts.check_reports(here)}
    assert found == {"encoding_damage": ["1", "2", "4"], "placeholder_report": ["5"], "short_report": ["5", "6"]}


def test_sentences_are_counted_per_study_and_recur_between_patients_only(tmp_path):
    reports = ["Heart normal. Lungs clear.", "Heart normal. Lungs clear.", "Heart normal. One node. One node.", "Liver large."]
    here = catalogue(tmp_path, ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3_a_1"], reports=reports)
    (finding,) = texts.sentence_facts(here)
    # sentences: 2 + 3 + 1; "heart normal" of two patients = 2 of 6
    assert finding.values["reports"] == 3
    assert finding.values["median"] == 2
    assert finding.values["recurring"] == pytest.approx(2 / 6)


def test_volumes_without_a_report_are_told_once_and_judged_by_nothing_else(tmp_path):
    here = catalogue(tmp_path, ["train_1_a_1", "train_2_a_1", "train_3_a_1"], reports=["", "", "The heart is not very large."])
    assert [(found.code, len(found.volumes)) for found in texts.check_reports(here)] == [("no_report", 2)]
    assert texts.check_equal_reports(here) == []
    assert texts.sentence_facts(here)[0].values["reports"] == 1


# Voxels


def test_air_inside_is_what_tissue_encloses_from_three_sides():
    plane = np.full((1, 7, 9), -1000.0, np.float32)
    plane[0, 1, 1:8] = plane[0, 5, 1:8] = 40  # above and below
    plane[0, 1:6, 1] = plane[0, 1:6, 7] = 40  # a closed ring of 7 x 5
    assert air_inside(plane) == 15 / 35
    plane[0, 2:5, 7] = -1000  # open to the right: the inside still has three sides, and so has the gap
    assert air_inside(plane) == 18 / (18 + 17)
    assert air_inside(np.full((2, 3, 4), -1000.0, np.float32)) == 0


def test_what_is_measured_agrees_with_a_slow_version():
    generator = np.random.default_rng(0)
    stored = generator.integers(0, 1200, (37, 19, 26)).astype(np.int16)
    stored[:, :2] = 0
    facts = facts_of(Voxels(stored, (1.0, -8192.0), "hu", "metadata_table", (1.0, 2.0, 3.0)))
    assert facts.padding == 1.0
    facts = facts_of(Voxels(stored, (2.0, -1000.0), "hu", "metadata_table", ()))
    hu = stored.astype(np.float64) * 2 - 1000
    assert facts.sha256 == hashlib.sha256(hu.astype(np.int16).tobytes()).hexdigest()
    edges = [[side * k // 8 for k in range(9)] for side in stored.shape]
    slow = [
        hu[a0:a1, b0:b1, c0:c1].mean()
        for a0, a1 in zip(edges[0], edges[0][1:])
        for b0, b1 in zip(edges[1], edges[1][1:])
        for c0, c1 in zip(edges[2], edges[2][1:])
    ]
    np.testing.assert_allclose(facts.blocks, slow, rtol=1e-5, atol=1e-3)
    assert facts.histogram.sum() == pytest.approx(1)
    assert (facts.shape, facts.low) == ((37, 19, 26), -1000)


def test_bins_are_counted_as_numpy_does_and_ends_take_what_is_beyond():
    values, edges = np.random.default_rng(0).uniform(-1300, 2000, 5000), np.arange(-1200, 1801, 25)
    expected, _ = np.histogram(np.clip(values, -1200, 1800), edges)
    np.testing.assert_array_equal(count_bins(values, edges), expected)


def flat(level, unit="hu", **more):
    """Facts of a volume whose block means are a ramp from `level`."""
    blocks = np.linspace(level, level + 500, 512, dtype=np.float32)
    return VolumeFacts(unit=unit, low=-1000, high=60, inside_air=0.2, blocks=blocks, **more)


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        ({"low": -650.0}, "not_rescaled"),
        ({"high": -800.0, "inside_air": 0.0}, "double_rescaled"),
    ],
)
@pytest.mark.parametrize(("wrong", "severity"), [(1, "warning"), (3, "blocking")])
def test_wrong_hu_of_many_volumes_block_and_of_few_warn(tmp_path, odd, code, wrong, severity):
    here = catalogue(tmp_path, [f"train_{k}_a_1" for k in range(40)])
    facts = {k: flat(k)._replace(**(odd if k < wrong else {})) for k in range(40)}
    (finding,) = volumes.check_hu(here, facts)
    assert (finding.code, finding.severity, len(finding.volumes)) == (code, severity, wrong)
    assert volumes.check_chest(here, facts) == []
    assert volumes.check_hu(here, {k: flat(k) for k in range(40)}) == []


def test_little_air_is_no_chest_and_grey_values_are_not_judged(tmp_path):
    here = catalogue(tmp_path, ["train_1_a_1", "train_2_a_1", "train_3_a_1"])
    facts = {
        0: flat(0)._replace(inside_air=0.049),
        1: flat(1)._replace(inside_air=0.051),
        2: flat(2, "uint8_unknown_window", air_peak=0.0),
    }
    (finding,) = volumes.check_chest(here, facts)
    assert finding.volumes == ("ct_rate/train_1_a_1",)


def test_stored_volumes_that_cannot_be_read_block(tmp_path):
    here = catalogue(tmp_path, ["train_1_a_1"])
    (finding,) = volumes.check_unusable(here, {0: VolumeFacts("constant_image", "every voxel is 3")})
    assert (finding.code, finding.severity) == ("constant_image", "blocking")


def test_copies_in_parts_agree_with_a_slow_search():
    generator = np.random.default_rng(3)
    means = generator.normal(0, 100, (30, 512)).astype(np.float32)
    means[7, 100:180] = means[21, 100:180]  # 40 of 256 pairs of neighbours
    means[9, 0:40] = means[11, 0:40]  # 20 of 256: too few
    means[:, 400:] = -1000  # air counts for nothing
    found = equal_in_parts(means, -900.0)
    slow = set()
    for one in range(30):
        for other in range(one + 1, 30):
            counts = (means[one] > -900).reshape(256, 2).all(1) & (means[other] > -900).reshape(256, 2).all(1)
            same = (means[one] == means[other]).reshape(256, 2).all(1) & counts
            if same.sum() >= 0.1 * counts.sum():
                slow.add((one, other))
    assert found == slow == {(7, 21), (9, 11)}  # 20 of the 200 that are not air: just a tenth
    means[9, 38:40] += 1
    assert equal_in_parts(means, -900.0) == {(7, 21)}


def test_near_copies_need_both_the_hash_and_the_means():
    generator = np.random.default_rng(4)
    base = generator.normal(0, 100, 512).astype(np.float32)
    means = np.stack([base, base + 2, base * 1.2, generator.normal(0, 100, 512).astype(np.float32)])
    assert near(means, 3.0) == {(0, 1)}
    assert near(means, 1.0) == set()
    grey = {0: VolumeFacts(unit="hu", blocks=base), 1: VolumeFacts(unit="uint8_unknown_window", blocks=base)}
    assert find_copies(grey) == set()


def test_equal_values_are_paired_with_their_neighbours():
    assert equal_pairs(pd.Series(["a", "b", "a", "", "a", ""])) == {(0, 2), (2, 4)}


def test_reconstructions_of_one_scan_are_no_copies(tmp_path):
    here = catalogue(tmp_path, ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "valid_1_a_1"])
    found = {finding.code: finding for finding in check_copies(here, [(0, 1), (0, 2), (2, 3), (3, 4)])}
    assert found.keys() == {"counterfactual_pair", "duplicate_pixels"}
    assert found["counterfactual_pair"].severity == "warning"
    assert found["duplicate_pixels"].severity == "blocking"
    assert found["duplicate_pixels"].values["pairs"] == [
        ["ct_rate/train_1_b_1", "ct_rate/train_2_a_1"],
        ["ct_rate/train_2_a_1", "ct_rate/valid_1_a_1"],
    ]


def test_a_glance_tells_header_and_every_cut(tmp_path):
    path = tmp_path / "volume.nii.gz"
    stored = np.random.default_rng(0).integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
    nib.save(nib.Nifti1Image(stored, np.diag([-2.0, -3.0, 4.0, 1.0])), path)
    whole, head = path.read_bytes(), probe(path)
    assert (head.shape, head.axes, head.sound_size) == ((12, 10, 8), "LPS", True)
    assert head.spacing_mm == pytest.approx((2, 3, 4))
    for kept in (len(whole) - 1, len(whole) - 4, len(whole) * 2 // 3, len(whole) // 3, 100, 7, 0):
        path.write_bytes(whole[:kept])
        assert not probe(path).sound_size
    assert probe(tmp_path / "gone.nii.gz").shape == ()


def test_processes_give_the_same_in_the_same_order(clean_arrows):
    places = [ArrowPlace(clean_arrows / "clm_ct_rate_train.arrow", row, "hu") for row in range(9)]
    alone, together = (list(measure_all(places, workers)) for workers in (1, 2))
    assert [fact.sha256 for fact in alone] == [fact.sha256 for fact in together]
    assert not any(math.isnan(fact.inside_air) for fact in alone)


# Findings


def test_findings_are_ordered_and_said_once():
    fact = Finding(code="a", severity="fact", found="")
    first = Finding(code="b", severity="warning", found="1", volumes=("x", "y"))
    again = Finding(code="b", severity="warning", found="2", volumes=("y",))
    more = Finding(code="b", severity="warning", found="3", volumes=("y", "z"))
    reason = Finding(code="report_missing", severity="warning", found="", volumes=("u", "v"))
    closer = [Finding(code=code, severity="warning", found="", volumes=(name,)) for code, name in
              (("not_given", "u"), ("empty_report", "v"))]  # fmt: skip
    assert merged([fact, reason, first, again, more, *closer]) == [fact, first, more, *closer]
    blocking = Finding(code="c", severity="blocking", found="")
    assert ordered([fact, first, blocking]) == [blocking, first, fact]
    assert examples(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
