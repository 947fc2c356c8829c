"""Volumes that occur twice: identical, or nearly identical."""

from collections.abc import Mapping
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pandas as pd

from mg3d.doctor.statistics import GREY, VolumeStatistics

MAX_HASH_DISTANCE = 10
"""Of 512 bits of the mean hash."""
MAX_MEAN_DIFFERENCE = {"hu": 3.0, GREY: 0.4}
"""Intensity unit -> maximum average difference of the block means of nearly identical volumes."""
_TILE = 512


def identical_pairs(values: pd.Series) -> set[tuple[int, int]]:
    """Rows with the same value, each with the next such row; empty values are ignored."""
    groups = values[values != ""].groupby(values).groups.values()
    return {(int(first), int(second)) for group in groups for first, second in pairwise(group)}


def similar_pairs(statistics: Mapping[int, VolumeStatistics]) -> set[tuple[int, int]]:
    """Pairs of rows whose volumes, of the same intensity unit, are nearly identical."""
    pairs = set()
    for unit, max_difference in MAX_MEAN_DIFFERENCE.items():
        rows = sorted(row for row, item in statistics.items() if item.block_means is not None and item.intensity_unit == unit)
        if len(rows) > 1:
            means = np.stack([statistics[row].block_means for row in rows])
            pairs |= {(rows[first], rows[second]) for first, second in nearly_identical(means, max_difference)}
    return pairs


def nearly_identical(means: np.ndarray, max_difference: float) -> set[tuple[int, int]]:
    """Pairs of rows of `means` [volumes, 512] with close mean hashes and block means that differ by at most `max_difference`.

    Chests are so similar that the hash alone confuses patients. Compared in tiles, so that memory stays bounded.
    """
    bits = np.packbits(means > means.mean(axis=1, keepdims=True), axis=1).view(np.uint64)
    pairs = set()
    for row, column in combinations_with_replacement(range(0, len(means), _TILE), 2):
        distance = np.bitwise_count(bits[row : row + _TILE, None] ^ bits[None, column : column + _TILE]).sum(axis=2)
        for first, second in np.argwhere(distance <= MAX_HASH_DISTANCE) + (row, column):
            if first < second and np.abs(means[first] - means[second]).mean() <= max_difference:
                pairs.add((int(first), int(second)))
    return pairs
