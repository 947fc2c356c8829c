"""Free-response ROC (FROC): sensitivity against false positives per scan, by the rules of LUNA16."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CPM_RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
"""False positives per scan at which LUNA16 reads the sensitivity. Their mean sensitivity is its CPM."""


class Annotations(NamedTuple):
    """Reference lesions, modelled as spheres. Hits on excluded ones (LUNA16's irrelevant findings) are ignored."""

    scans: np.ndarray
    """Scan indices [m], from 0."""
    centres_mm: np.ndarray
    """[m, 3], in the coordinate system of the candidates."""
    diameters_mm: np.ndarray
    """[m]."""
    excluded: np.ndarray
    """bool [m]."""


class FrocCurve(NamedTuple):
    """Operating points with increasing false positives per scan; each has the best sensitivity at that rate."""

    false_positives_per_scan: np.ndarray
    sensitivity: np.ndarray


def froc(scans: np.ndarray, centres_mm: np.ndarray, scores: np.ndarray, *, annotations: Annotations, n_scans: int) -> FrocCurve:
    """FROC curve of candidates: scan index [n], centre [n, 3] and score [n]. Scans without a candidate count in `n_scans`.

    A candidate hits a lesion if it is closer to its centre than its radius. The highest-scoring hit of a lesion counts, further
    hits count neither way; a candidate inside two lesions hits both; one that hits only excluded lesions is ignored. All other
    candidates are false positives.

    Raises:
        ValueError: no lesion remains, a scan index is not below `n_scans`, lengths differ, or a score or coordinate is nan.
    """
    relevant = ~annotations.excluded
    _check("candidates", scans, centres_mm, scores, n_scans)
    _check("annotations", annotations.scans, annotations.centres_mm, annotations.diameters_mm, n_scans)
    if not relevant.any():
        raise ValueError("all annotations are excluded, so the sensitivity is undefined")
    order = np.argsort(scans, kind="stable")
    scans, centres_mm, scores = scans[order], centres_mm[order], scores[order]
    starts, stops = (np.searchsorted(scans, annotations.scans, side) for side in ("left", "right"))
    best_score = np.full(len(relevant), -np.inf)
    is_false = np.ones(len(scores), dtype=bool)
    for lesion, candidates in enumerate(map(slice, starts, stops)):
        distance = np.linalg.norm(centres_mm[candidates] - annotations.centres_mm[lesion], axis=1)
        hit = distance < annotations.diameters_mm[lesion] / 2
        best_score[lesion] = scores[candidates][hit].max(initial=-np.inf)
        is_false[candidates] &= ~hit
    thresholds = np.unique(scores)[::-1]
    tp, fp = (np.append(0, _count_reaching(values, thresholds)) for values in (best_score[relevant], scores[is_false]))
    last_of_rate = np.append(fp[1:] > fp[:-1], True)
    return FrocCurve(fp[last_of_rate] / n_scans, tp[last_of_rate] / relevant.sum())


def sensitivity_at(curve: FrocCurve, rates: Sequence[float] = CPM_RATES) -> np.ndarray:
    """Sensitivity at each rate of false positives per scan: linear interpolation, constant beyond the last point."""
    return np.interp(rates, curve.false_positives_per_scan, curve.sensitivity)


def _count_reaching(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(values) - np.searchsorted(np.sort(values), thresholds, "left")


def _check(name: str, scans: np.ndarray, centres_mm: np.ndarray, values: np.ndarray, n_scans: int) -> None:
    if centres_mm.shape != (len(scans), 3) or len(values) != len(scans):
        raise ValueError(
            f"{name}: {len(scans)} scans, centres {centres_mm.shape}, {len(values)} values; expected [n], [n, 3], [n]"
        )
    if len(scans) and not 0 <= scans.min() <= scans.max() < n_scans:
        raise ValueError(f"{name}: scan indices {scans.min()} to {scans.max()}; expected 0 to {n_scans - 1}")
    if np.isnan(centres_mm).any() or np.isnan(values).any():
        raise ValueError(f"{name}: a coordinate or value is nan; check where it was computed")
