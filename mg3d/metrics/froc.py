"""Free-response ROC (FROC): sensitivity against false positives per scan, by the rules of LUNA16."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CPM_RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
"""False positives per scan at which LUNA16 reads the sensitivity. Their mean sensitivity is its CPM."""


class Annotations(NamedTuple):
    """Reference lesions, modelled as spheres. Hits on excluded ones (LUNA16's irrelevant findings) are ignored."""

    scans: Sequence[str] | np.ndarray
    """Scan names or integers [m]."""
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


def froc(
    scans: Sequence[str] | np.ndarray,
    centres_mm: np.ndarray,
    scores: np.ndarray,
    *,
    annotations: Annotations,
    all_scans: Sequence[str] | np.ndarray,
) -> FrocCurve:
    """FROC curve of candidates (scan, centre [n, 3], score [n]) over `all_scans`, including scans without a candidate.

    A candidate hits a lesion if it is closer to its centre than its radius. The highest-scoring hit of a lesion counts, further
    hits count neither way; a candidate inside two lesions hits both; one that hits only excluded lesions is ignored. All other
    candidates are false positives.

    Raises:
        ValueError: no lesion remains, a scan is missing from `all_scans`, lengths differ, or a score or coordinate is nan.
    """
    relevant = ~np.asarray(annotations.excluded, dtype=bool)
    _check("candidates", scans, centres_mm, scores)
    _check("annotations", annotations.scans, annotations.centres_mm, annotations.diameters_mm)
    if not relevant.any():
        raise ValueError("all annotations are excluded, so the sensitivity is undefined")
    names = np.unique(_names(all_scans))
    scan_of_candidate = _indices(scans, names)
    order = np.argsort(scan_of_candidate, kind="stable")
    scan_of_candidate, centres_mm, scores = scan_of_candidate[order], centres_mm[order], scores[order]
    lesion, candidate = _pairs(_indices(annotations.scans, names), scan_of_candidate)
    distance = np.linalg.norm(centres_mm[candidate] - annotations.centres_mm[lesion], axis=1)
    hit = distance < annotations.diameters_mm[lesion] / 2
    best_score = np.full(len(relevant), -np.inf)
    np.maximum.at(best_score, lesion[hit], scores[candidate[hit]])
    is_false = np.ones(len(scores), dtype=bool)
    is_false[candidate[hit]] = False
    thresholds = np.unique(scores)[::-1]
    tp, fp = (np.append(0, _count_reaching(values, thresholds)) for values in (best_score[relevant], scores[is_false]))
    last_of_rate = np.append(fp[1:] > fp[:-1], True)
    return FrocCurve(fp[last_of_rate] / len(names), tp[last_of_rate] / relevant.sum())


def sensitivity_at(curve: FrocCurve, rates: Sequence[float] = CPM_RATES) -> np.ndarray:
    """Sensitivity at each rate of false positives per scan: linear interpolation, constant beyond the last point."""
    return np.interp(rates, curve.false_positives_per_scan, curve.sensitivity)


def _pairs(scan_of_lesion: np.ndarray, scan_of_candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (lesion, candidate) of all pairs within a scan; scan_of_candidate is sorted."""
    start, end = (np.searchsorted(scan_of_candidate, scan_of_lesion, side) for side in ("left", "right"))
    counts = end - start
    lesion = np.repeat(np.arange(len(counts)), counts)
    return lesion, np.arange(counts.sum()) + np.repeat(start - np.cumsum(counts) + counts, counts)


def _count_reaching(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(values) - np.searchsorted(np.sort(values), thresholds, "left")


def _names(scans: Sequence[str] | np.ndarray) -> np.ndarray:
    """Scan names as text; integers stay integers, which compare many times faster."""
    scans = np.asarray(scans)
    return scans if scans.dtype.kind in "iu" else scans.astype(str)


def _indices(scans: Sequence[str] | np.ndarray, names: np.ndarray) -> np.ndarray:
    scans = _names(scans)
    unknown = ~np.isin(scans, names)
    if unknown.any():
        raise ValueError(f"{unknown.sum()} of {len(scans)} rows belong to scans that are not in all_scans ({len(names)} scans)")
    return np.searchsorted(names, scans)


def _check(kind: str, scans: Sequence[str] | np.ndarray, centres_mm: np.ndarray, values: np.ndarray) -> None:
    if centres_mm.shape != (len(scans), 3) or len(values) != len(scans):
        raise ValueError(
            f"{kind}: {len(scans)} scans, centres {centres_mm.shape}, {len(values)} values; expected [n], [n, 3], [n]"
        )
    if np.isnan(centres_mm).any() or np.isnan(values).any():
        raise ValueError(f"{kind}: a coordinate or value is nan; check where it was computed")
