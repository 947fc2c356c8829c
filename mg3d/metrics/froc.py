"""Sensitivity against false positives per scan, for lists of candidates (LUNA16's rules)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CPM_RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
"""False positives per scan at which LUNA16 reads the sensitivity."""


class Spheres(NamedTuple):
    """Findings of a reference; those marked excluded (LUNA16's irrelevant ones) are neither to be found nor false."""

    scans: Sequence[str]
    centres_mm: np.ndarray
    """[m, 3], in the same order of axes and origin as the candidates'."""
    diameters_mm: np.ndarray
    """[m]."""
    excluded: np.ndarray
    """bool [m]."""


class Froc(NamedTuple):
    """One point per number of false positives that occurs, in rising order: the best sensitivity there."""

    false_positives_per_scan: np.ndarray
    sensitivity: np.ndarray


def froc(
    scans: Sequence[str], centres_mm: np.ndarray, scores: np.ndarray, *, findings: Spheres, all_scans: Sequence[str]
) -> Froc:
    """The curve of candidates (scan, centre [n, 3], score [n]; higher is surer), over `all_scans`, with or without a candidate.

    A candidate hits a finding when it is nearer to its centre than its radius. Of several that hit one finding the highest score
    counts and the others count nothing; one that hits two findings counts for both; one that hits only an excluded finding counts
    nothing; every other one is a false positive.

    Raises:
        ValueError: nothing is to be found, a scan is not among `all_scans`, lengths differ, or a score or position is nan.
    """
    wanted = ~np.asarray(findings.excluded, dtype=bool)
    _check(scans, centres_mm, scores, findings)
    if not wanted.any():
        raise ValueError("the reference has no finding that is to be found, so there is no sensitivity")
    names = np.unique(np.asarray(all_scans, dtype=str))
    order = np.argsort(of := _places(scans, names), kind="stable")
    of, centres_mm, scores = of[order], centres_mm[order], scores[order]
    finding, candidate = _pairs(_places(findings.scans, names), of)
    apart = np.linalg.norm(centres_mm[candidate] - findings.centres_mm[finding], axis=1)
    hit = apart < findings.diameters_mm[finding] / 2
    best = np.full(len(wanted), -np.inf)
    np.maximum.at(best, finding[hit], scores[candidate[hit]])
    false = np.ones(len(scores), dtype=bool)
    false[candidate[hit]] = False
    thresholds = np.unique(scores)[::-1]
    hits, alarms = (_at_least(part, thresholds) for part in (best[wanted], scores[false]))
    hits, alarms = np.append(0, hits), np.append(0, alarms)
    last = np.append(alarms[1:] > alarms[:-1], True)
    return Froc(alarms[last] / len(names), hits[last] / wanted.sum())


def sensitivity_at(curve: Froc, rates: Sequence[float] = CPM_RATES) -> np.ndarray:
    """Sensitivity at each rate of false positives per scan: linear between points of the curve, its last value beyond it."""
    return np.interp(rates, curve.false_positives_per_scan, curve.sensitivity)


def cpm(curve: Froc) -> float:
    """Competition performance metric of LUNA16: the mean sensitivity at `CPM_RATES`."""
    return float(sensitivity_at(curve).mean())


def _pairs(of_findings: np.ndarray, of_candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(finding, candidate) of every pair in one scan; of_candidates sorted."""
    start, end = (np.searchsorted(of_candidates, of_findings, side) for side in ("left", "right"))
    counts = end - start
    finding = np.repeat(np.arange(len(counts)), counts)
    return finding, np.arange(counts.sum()) + np.repeat(start - np.cumsum(counts) + counts, counts)


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many values reach each threshold."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, "left")


def _places(scans: Sequence[str], names: np.ndarray) -> np.ndarray:
    scans = np.asarray(scans, dtype=str)
    known = np.isin(scans, names)
    if not known.all():
        raise ValueError(f"{(~known).sum()} of {len(scans)} rows are of scans that are not among the {len(names)} evaluated")
    return np.searchsorted(names, scans)


def _check(scans: Sequence[str], centres_mm: np.ndarray, scores: np.ndarray, findings: Spheres) -> None:
    for name, first, centres, last in (
        ("candidates", scans, centres_mm, scores),
        ("findings", findings.scans, findings.centres_mm, findings.diameters_mm),
    ):
        if centres.shape != (len(first), 3) or len(last) != len(first):
            raise ValueError(
                f"{name}: {len(first)} scans, centres {centres.shape}, {len(last)} numbers; expected [n], [n, 3], [n]"
            )
        if np.isnan(centres).any() or np.isnan(last).any():
            raise ValueError(f"{name}: a number is nan, so it has no place or order; look for where it was computed")
