"""Volumes that occur twice: identical, partly identical, or nearly identical."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pandas as pd

from mg3d.doctor.statistics import GREY, VolumeStatistics

MIN_SHARED_FRACTION = 0.1
"""Fraction of identical block means from which on two volumes are copies; unrelated volumes share almost none."""
MAX_HASH_DISTANCE = 10
"""Of 512 bits of the mean hash."""
MAX_MEAN_DIFFERENCE = {"hu": 3.0, GREY: 0.4}
"""Intensity unit -> maximum average difference of the block means of nearly identical volumes."""
EMPTY_BELOW = {"hu": -900.0, GREY: 5.0}
"""Blocks below are air or padding, which unrelated volumes share."""
_TILE = 512


def identical_pairs(values: pd.Series) -> set[tuple[int, int]]:
    """Rows with the same value, each with the next such row; empty values are ignored."""
    groups = values[values != ""].groupby(values).groups.values()
    return {(int(one), int(other)) for group in groups for one, other in pairwise(group)}


def similar_pairs(statistics: Mapping[int, VolumeStatistics]) -> set[tuple[int, int]]:
    """Pairs of rows whose volumes, of the same intensity unit, are partly or nearly identical."""
    pairs = set()
    for unit, floor in EMPTY_BELOW.items():
        rows = [row for row, item in statistics.items() if item.block_means is not None and item.intensity_unit == unit]
        if len(rows) > 1:
            means = np.stack([statistics[row].block_means for row in rows])
            found = partly_identical(means, floor) | nearly_identical(means, MAX_MEAN_DIFFERENCE[unit])
            pairs |= {tuple(sorted((rows[one], rows[other]))) for one, other in found}
    return pairs


def nearly_identical(means: np.ndarray, max_difference: float) -> set[tuple[int, int]]:
    """Pairs of rows of `means` [volumes, 512] with close mean hashes and block means that differ by at most `max_difference`.

    Chests are so similar that the hash alone confuses patients. Compared in tiles, so that memory stays bounded.
    """
    bits = np.packbits(means > means.mean(axis=1, keepdims=True), axis=1).view(np.uint64)
    pairs = set()
    starts = range(0, len(means), _TILE)
    for start, begin in combinations_with_replacement(starts, 2):
        distance = np.bitwise_count(bits[start : start + _TILE, None] ^ bits[None, begin : begin + _TILE]).sum(axis=2)
        for one, other in np.argwhere(distance <= MAX_HASH_DISTANCE) + (start, begin):
            if one < other and np.abs(means[one] - means[other]).mean() <= max_difference:
                pairs.add((int(one), int(other)))
    return pairs


def partly_identical(means: np.ndarray, floor: float) -> set[tuple[int, int]]:
    """Pairs of rows of `means` [volumes, 512] that share a tenth of their pairs of neighboring blocks above `floor`."""
    left, right = (np.ascontiguousarray(means[:, first::2]).view(np.int32).astype(np.int64) for first in (0, 1))
    keys, filled = (left << 32) ^ (right & 0xFFFFFFFF), (means[:, 0::2] > floor) & (means[:, 1::2] > floor)
    shared: Counter[tuple[int, int]] = Counter()
    for column, counted in zip(keys.T, filled.T):
        rows_of: dict[int, list[int]] = defaultdict(list)
        for row in np.flatnonzero(counted):
            rows_of[int(column[row])].append(int(row))
        for rows in rows_of.values():
            shared.update(pairwise(rows))
    total = filled.sum(axis=1)
    return {pair for pair, count in shared.items() if count >= max(1.0, MIN_SHARED_FRACTION * total[list(pair)].min())}
