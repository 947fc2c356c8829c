"""Slices of one DICOM series at equal distances; interpolated where single slices are missing or their distance changes."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mg3d.preparation.geometry import MIN_SLICES, ras_affine
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom_series import Header
from mg3d.preparation.records import Change

MAX_SIDE = 2048
MAX_VOXELS = 1 << 31
GRID_TOLERANCE = 0.1
"""Deviation from a regular position that is ignored, as a fraction of the distance of slices ..."""
ROUNDING_MM = 0.06
"""... or in mm, for positions that are written to 0.1 mm."""
MAX_GAP_MM = 5.0
"""Slices are interpolated between neighbors at most this far apart, or with one slice missing between them."""
MAX_LONG_GAPS = 0.05
"""Fraction of the slices that may be interpolated over more than `MAX_GAP_MM`, and of slices off the grid that are left out."""
MIN_RUN = 0.5
"""Fraction of the slices in the longest run without a larger gap, at least."""
_DIRECTION_TOLERANCE = 1e-3
_MAX_OFFSET_MM = 1.0
_SAME_POSITION_MM = 0.01


class SlicePair(NamedTuple):
    """A slice of the stack: interpolated between two positions of the series, or equal to the lower one."""

    lower: int
    upper: int
    weight: float
    """Of the upper position."""


class Stack(NamedTuple):
    """A series, sorted from inferior to superior."""

    positions: list[list[Header]]
    """Headers of each position; several if a slice was exported twice."""
    slices: list[SlicePair]
    affine: np.ndarray
    """Voxels [column, row, slice] to RAS mm."""
    changes: list[Change]


def stack_series(headers: Sequence[Header]) -> Stack:
    """Arrange the slices of one series at equal distances along their normal.

    Left out are slices of another grid, further acquisitions of the same part of the patient, slices between regular ones, and
    whatever lies behind a large gap.

    Raises:
        Refusal: too_large, not_ct, nan_spacing, shape_mismatch, slices_disagree, missing_slices, too_few_slices.
    """
    changes: list[Change] = []
    headers = _most_common_grid(headers, changes)
    positions = _group_by_height(_largest_acquisition(headers, changes))
    if len(positions) < 2:
        raise Refusal("too_few_slices", f"{len(positions)} slice positions")
    positions = _longest_run(_without_strays(positions, changes), changes)
    heights = _heights(positions)
    slices, gap = _slices(heights, changes)
    first = positions[0][0]
    row, column, normal = first.axes
    step = _direction(np.array([group[0].position_mm for group in positions]), heights, normal) * gap
    axes = np.stack([row * first.spacing_mm[1], column * first.spacing_mm[0], step], axis=1)
    return Stack(positions, slices, ras_affine(axes, first.position_mm), changes)


def _most_common_grid(headers: Sequence[Header], changes: list[Change]) -> list[Header]:
    """Headers with the most common size, pixel spacing and direction."""
    largest = max(max(header.size) for header in headers)
    if largest > MAX_SIDE or np.prod(headers[0].size) * len(headers) > MAX_VOXELS:
        raise Refusal("too_large", f"{len(headers)} slices of up to {largest} pixels a side; at most {MAX_SIDE} are allowed")
    counts = Counter((header.size, header.samples, header.spacing_mm, header.orientation) for header in headers)
    size, samples, spacing, orientation = counts.most_common(1)[0][0]
    if samples != 1:
        raise Refusal("not_ct", "color images")
    if not size[0] * size[1]:
        raise Refusal("shape_mismatch", "slices without a size")
    if spacing is None:
        raise Refusal("nan_spacing", "slices without PixelSpacing")
    same = [
        header
        for header in headers
        if (header.size, header.samples) == (size, samples)
        and header.spacing_mm is not None
        and np.allclose(header.spacing_mm, spacing, rtol=1e-3)
        and np.abs(np.subtract(header.orientation, orientation)).max() <= _DIRECTION_TOLERANCE
    ]
    if len(same) < len(headers):
        changes.append(Change("other_grid", f"{len(headers) - len(same)} of {len(headers)} slices left out"))
    return same


def _largest_acquisition(headers: list[Header], changes: list[Change]) -> list[Header]:
    """All headers, or those of the acquisition with most positions if acquisitions cover the same part of the patient."""
    groups = _group_by_height(headers)
    in_order = [header.acquisition for group in groups for header in group if header.acquisition]
    is_consecutive = 1 + sum(lower != upper for lower, upper in pairwise(in_order)) <= max(len(set(in_order)), 1)
    if is_consecutive and all(len({header.acquisition for header in group}) == 1 for group in groups):
        return headers
    acquisitions = defaultdict(list)
    for header in headers:
        acquisitions[header.acquisition].append(header)
    largest = max(sorted(acquisitions), key=lambda name: len(_group_by_height(acquisitions[name])))
    chosen = acquisitions[largest]
    changes.append(Change("acquisitions", f"{len(chosen)} of {len(headers)} slices, {len(acquisitions)} acquisitions"))
    return chosen


def _group_by_height(headers: Sequence[Header]) -> list[list[Header]]:
    """Headers by position, from inferior to superior."""
    groups: list[list[Header]] = []
    for header in sorted(headers, key=lambda header: header.height_mm):
        if groups and header.height_mm - groups[-1][-1].height_mm <= _SAME_POSITION_MM:
            groups[-1].append(header)
        else:
            groups.append([header])
    return groups


def _heights(positions: Sequence[Sequence[Header]]) -> np.ndarray:
    return np.array([group[0].height_mm for group in positions])


def _without_strays(positions: list[list[Header]], changes: list[Change]) -> list[list[Header]]:
    """Leave out single slices between regular ones, if they are few."""
    heights = _heights(positions)
    gaps = np.diff(heights)
    gap = float(np.median(gaps))
    is_short = gaps < (1 - GRID_TOLERANCE) * gap - ROUNDING_MM
    is_stray = np.zeros(len(heights), bool)
    is_stray[1:-1] = is_short[:-1] & is_short[1:] & (np.abs(gaps[:-1] + gaps[1:] - gap) <= GRID_TOLERANCE * gap)
    if not is_stray.any() or is_stray.mean() > MAX_LONG_GAPS:
        return positions
    changes.append(Change("stray", f"{is_stray.sum()} of {len(positions)} slices left out"))
    return [group for group, stray in zip(positions, is_stray) if not stray]


def _longest_run(positions: list[list[Header]], changes: list[Change]) -> list[list[Header]]:
    """The longest run without a gap that is too large to be interpolated."""
    gaps = np.diff(_heights(positions))
    gap = float(np.median(gaps))
    ends = np.flatnonzero(gaps > max(MAX_GAP_MM, 2 * gap) + GRID_TOLERANCE * gap) + 1
    start, end = max(zip([0, *ends], [*ends, len(positions)]), key=lambda run: run[1] - run[0])
    if len(ends) and end - start < max(MIN_RUN * len(positions), MIN_SLICES):
        raise Refusal("missing_slices", f"{len(ends)} of {len(gaps)} gaps, up to {gaps.max():.2f} mm, differ from {gap:.2f} mm")
    if len(ends):
        changes.append(Change("longest_run", f"{end - start} of {len(positions)} slices"))
    return positions[start:end]


def _slices(heights: np.ndarray, changes: list[Change]) -> tuple[list[SlicePair], float]:
    """Equally spaced slices from the first to the last position, and their distance in mm."""
    if len(heights) < 2:
        raise Refusal("too_few_slices", f"{len(heights)} slice positions")
    gaps = np.diff(heights)
    gap = float(np.median(gaps))
    index = np.concatenate([[0], np.cumsum(np.rint(gaps / gap).clip(1))])
    mean_gap = float((heights[-1] - heights[0]) / index[-1])
    is_regular = np.abs(heights - heights[0] - index * mean_gap).max() <= max(GRID_TOLERANCE * mean_gap, ROUNDING_MM)
    if is_regular:
        known, gap = index, mean_gap
    else:
        known = (heights - heights[0]) / gap
    wanted = np.arange(int(known[-1] + 1e-6) + 1)
    upper = np.searchsorted(known, wanted - 1e-6).clip(max=len(known) - 1)
    lower = np.where(np.abs(known[upper] - wanted) < 1e-6, upper, upper - 1)
    weight = np.where(lower == upper, 0, (wanted - known[lower]) / np.where(lower == upper, 1, known[upper] - known[lower]))
    n_new, n_far = int((weight > 0).sum()), int((heights[upper] - heights[lower] > MAX_GAP_MM * 1.01).sum())
    if n_far > MAX_LONG_GAPS * len(wanted):
        n_wrong = int((np.abs(gaps - gap) > GRID_TOLERANCE * gap).sum())
        raise Refusal("missing_slices", f"{n_wrong} of {len(gaps)} gaps, up to {gaps.max():.2f} mm, differ from {gap:.2f} mm")
    if n_new and is_regular:
        changes.append(Change("interpolated", f"{n_new} of {len(wanted)} slices"))
    elif n_new:
        changes.append(Change("respaced", f"{gaps.min():.2f} to {gaps.max():.2f} mm, now {gap:.2f} mm"))
    return [SlicePair(int(low), int(up), float(share)) for low, up, share in zip(lower, upper, weight)], gap


def _direction(positions: np.ndarray, heights: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Step (LPS) between slices per mm along the normal; differs from the normal if the gantry was tilted."""
    sideways = positions - positions[0] - np.outer(heights - heights[0], normal)
    slope = sideways[-1] / (heights[-1] - heights[0])
    offset = np.linalg.norm(sideways - np.outer(heights - heights[0], slope), axis=1).max()
    if offset > _MAX_OFFSET_MM:
        raise Refusal("slices_disagree", f"{offset:.1f} mm off their line")
    return normal + slope
