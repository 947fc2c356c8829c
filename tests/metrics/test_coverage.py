"""Simulated coverage of the intervals and false-positive rate of the comparisons, as in the table of docs/evaluation.md."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from mg3d.metrics.bootstrap import (
    bootstrap_intervals,
    defined_components,
    insufficient_reason,
    paired_comparisons,
    with_means,
)
from mg3d.metrics.classification import auroc
from mg3d.metrics.froc import CPM_RATES, Annotations, FrocCurve, froc, sensitivity_at

SIMULATIONS, N_BOOTSTRAP = 1000, 300
SHIFT = 1.0
TRUE_AUROC = norm.cdf(SHIFT / 2**0.5)
DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluation.md"


def fast_auroc(labels, scores):
    """rows -> AUROC, from the matrix of wins; labels and scores [n]."""
    positive = np.flatnonzero(labels == 1)
    negative = np.flatnonzero(labels == 0)
    difference = scores[positive][:, None] - scores[negative]
    wins = (difference > 0) + 0.5 * (difference == 0)

    def statistic(rows):
        count = np.bincount(rows, minlength=len(labels))
        pairs = count[positive].sum() * count[negative].sum()
        return count[positive] @ wins @ count[negative] / pairs if pairs else np.nan

    return statistic


def two_classifiers(random, patients, prevalences):
    """Labels [n, L], and scores of two classifiers of equal AUROC and correlated errors [2, n, L]."""
    labels = (random.random((patients, len(prevalences))) < prevalences).astype(int)
    shared, own = random.normal(size=labels.shape), random.normal(size=(2, *labels.shape))
    return labels, SHIFT * labels + 0.5**0.5 * shared + 0.5**0.5 * own


def simulate_auroc(random, patients, prevalences):
    """Truth, two systems, and why there is no interval."""
    labels, scores = two_classifiers(random, patients, prevalences)
    systems = []
    for each in scores:
        single = {str(index): fast_auroc(labels[:, index], each[:, index]) for index in range(len(prevalences))}
        systems.append(lambda rows, single=single: {name: of(rows) for name, of in single.items()})
    defined = defined_components(systems, {"score": [str(index) for index in range(len(prevalences))]}, patients)
    return TRUE_AUROC, [with_means(system, defined) for system in systems], insufficient_reason(labels, np.arange(patients))


def simulate_dice(random, patients):
    """Beta-distributed Dice of a case; two systems differ by noise of mean 0."""
    dice = random.beta(6, 2, patients) + random.normal(0, 0.05, (2, patients))
    return 6 / 8, [lambda rows, values=values: {"score": values[rows].mean()} for values in dice], ""


def draw_scans(random, scans):
    """Scan of each lesion and of each false positive, and their scores by two detectors of equal accuracy."""
    lesions, false = (np.repeat(np.arange(scans), random.poisson(rate, scans)) for rate in (1.2, 6.0))
    draw = lambda scans, mean: mean + 0.5**0.5 * (random.normal(size=len(scans)) + random.normal(size=(2, len(scans))))  # noqa: E731
    return lesions, draw(lesions, 1.5), false, draw(false, 0.0)


def fast_cpm(lesions, lesion_scores, false, false_scores, scans):
    """rows -> CPM, from the scores of detected lesions and of false positives."""
    order = np.argsort(-false_scores)
    false, thresholds = false[order], false_scores[order]
    by_score = np.argsort(-lesion_scores)
    lesions, reached = lesions[by_score], np.searchsorted(-lesion_scores[by_score], -thresholds, "left")

    def statistic(rows):
        count = np.bincount(rows, minlength=scans)
        tp = np.append(0, np.cumsum(count[lesions]))
        fp = np.append(0, np.cumsum(count[false]))
        before_next = np.append(tp[reached], tp[-1])  # lesions above the next false positive
        last = np.append(fp[1:] > fp[:-1], True)
        return sensitivity_at(FrocCurve(fp[last] / len(rows), before_next[last] / max(tp[-1], 1))).mean()

    return statistic


def cpm_systems(random, scans):
    """Two detectors."""
    lesions, lesion_scores, false, false_scores = draw_scans(random, scans)
    pairs = zip(lesion_scores, false_scores, strict=True)
    return [fast_cpm(lesions, on_lesions, false, on_false, scans) for on_lesions, on_false in pairs]


def simulate_froc(random, scans):
    """The truth is the CPM of very many scans."""
    return TRUE_CPM, [lambda rows, of=of: {"score": of(rows)} for of in cpm_systems(random, scans)], ""


TRUE_CPM = float(np.mean([of(np.arange(40_000)) for of in cpm_systems(np.random.default_rng(1), 40_000)]))
SETTINGS = {
    "AUROC, 60 patients, a third positive": (partial(simulate_auroc, prevalences=(1 / 3,)), 60),
    "macro AUROC, 80 patients, 5 labels of 10 to 50 %": (partial(simulate_auroc, prevalences=(0.5, 0.4, 0.3, 0.2, 0.1)), 80),
    "Dice, 30 patients": (simulate_dice, 30),
    "Dice, 8 patients": (simulate_dice, 8),
    "FROC (CPM), 40 scans": (simulate_froc, 40),
}


def rates(name):
    """Percentages over the simulations: intervals that contain the truth, p < 0.05 without a difference, and withheld."""
    (simulate, patients), covered, significant = SETTINGS[name], [], []
    for seed in range(SIMULATIONS):
        truth, systems, reason = simulate(np.random.default_rng(seed), patients)
        if reason:
            continue
        groups = np.arange(patients)
        low, high = bootstrap_intervals(systems[0], groups, n_bootstrap=N_BOOTSTRAP, seed=seed)["score"]
        everybody = {"score": np.ones(patients, dtype=bool)}
        comparison = paired_comparisons(*systems, groups, support_masks=everybody, n_bootstrap=N_BOOTSTRAP, seed=seed)
        covered.append(low <= truth <= high)
        significant.append(comparison["score"].p < 0.05)
    return 100 * np.mean(covered), 100 * np.mean(significant), 100 * (1 - len(covered) / SIMULATIONS)


def test_the_fast_statistics_of_the_simulation_equal_the_metrics():
    random = np.random.default_rng(3)
    rows = random.integers(30, size=30)
    labels, scores = random.integers(2, size=30), random.normal(size=30).round(1)
    assert fast_auroc(labels, scores)(rows) == pytest.approx(auroc(labels[rows], scores[rows]))
    lesions, (on_lesions, _), false, (on_false, _) = draw_scans(random, 30)
    candidates = [(copy, at, score) for copy, row in enumerate(rows) for scans, each, at in (
        (lesions, on_lesions, 1), (false, on_false, 0)) for score in each[scans == row]]  # fmt: skip
    scan, is_lesion, score = (np.array(part) for part in zip(*candidates, strict=True))
    centres = np.zeros((len(scan), 3))
    centres[:, 0] = np.where(is_lesion == 1, 100 * np.arange(len(scan)), -1000)
    hit = is_lesion == 1
    annotations = Annotations(scan[hit], centres[hit], np.full(hit.sum(), 10.0), np.zeros(hit.sum(), bool))
    curve = froc(scan, centres, score, annotations=annotations, n_scans=len(rows))
    assert fast_cpm(lesions, on_lesions, false, on_false, 30)(rows) == pytest.approx(sensitivity_at(curve, CPM_RATES).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_intervals_cover_and_comparisons_err_as_often_as_documented(name):
    (row,) = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| {name} |")]
    documented = [float(number) for number in re.findall(r"\| ([\d.]+) %(?= \|)", row)]
    measured = rates(name)
    assert measured == pytest.approx(documented, abs=1)
    assert measured[0] > 86
    assert measured[1] < 8
