"""Volumes that lie there twice: equal, equal in parts, or nearly equal."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from mg3d.doctor.catalogue import Catalogue
from mg3d.doctor.findings import Finding, Progress, T, examples, number
from mg3d.doctor.measure import VolumeFacts
from mg3d.doctor.volumes import names_of

COPIED_BLOCKS = 0.1
"""Share of equal block means from which on two volumes are copies; different ones share next to none."""
NEAR_BITS = 10
"""Most bits of 512 by which the mean-hashes of near copies differ."""
NEAR_MEANS = {"hu": 3.0, "uint8_unknown_window": 0.4}
"""Unit -> most by which the block means of near copies differ on average."""
FLOORS = {"hu": -900.0, "uint8_unknown_window": 5.0}
"""A block whose mean is not above is air or filling, which different volumes share."""
_TILE = 512
_COPIES = {
    "counterfactual_pair": ("of scans of one patient with nearly the same voxels", "nothing, if that is meant"),
    "patient_in_two_splits": ("of volumes with the same voxels and report in two splits", "take one of each pair out"),
    "duplicate_pixels": ("of volumes of different patients with nearly the same voxels", "take one of each pair out"),
}


def _pass_on(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    return iter(items)


def check_copies(catalogue: Catalogue, pairs: Sequence[tuple[int, int]]) -> list[Finding]:
    """What pairs of places with (nearly) equal voxels mean, by whose they are. Reconstructions of one scan are no copies."""
    rows, groups = catalogue.rows, defaultdict(list)
    for one, other in pairs:
        first, second = rows.iloc[one], rows.iloc[other]
        if first["study_id"] == second["study_id"]:
            continue
        apart = first["split"] != second["split"]
        code = "patient_in_two_splits" if apart and first["report_key"] == second["report_key"] else "duplicate_pixels"
        groups["counterfactual_pair" if first["patient_id"] == second["patient_id"] else code].append((one, other))
    return [_finding(catalogue, code, found) for code, found in groups.items()]


def _finding(catalogue: Catalogue, code: str, pairs: Sequence[tuple[int, int]]) -> Finding:
    what, action = _COPIES[code]
    names = names_of(catalogue, dict.fromkeys(place for pair in pairs for place in pair))
    splits, ids = catalogue.rows["split"], catalogue.rows["volume_id"]
    apart = sum(splits[one] != splits[other] for one, other in pairs)
    return Finding(
        code=code,
        severity="blocking" if apart else "warning",
        found=f"{number(len(pairs), 'pair')} {what}, {apart:,} across splits ({examples(names)})",
        expected="voxels of their own for every scan",
        action=action,
        volumes=names,
        values={"pairs": [[str(ids[place]) for place in pair] for pair in pairs[:1000]]},
    )


def equal_pairs(values: pd.Series) -> set[tuple[int, int]]:
    """Neighbours (by place) among the places of equal values; empty ones say nothing."""
    groups = values[values.astype(bool)].groupby(values).groups.values()
    return {(int(one), int(other)) for group in groups if len(group) > 1 for one, other in pairwise(group)}


def find_copies(facts: Mapping[int, VolumeFacts], progress: Progress = _pass_on) -> set[tuple[int, int]]:
    """Pairs of places whose volumes are equal in parts or nearly equal.

    In parts: a tenth of the neighbouring blocks that are not air have exactly equal means. Near: the 8 x 8 x 8 mean-hashes
    differ by at most 10 bits of 512 and the block means by at most NEAR_MEANS on average, for chests are so much alike that the
    hash alone confuses patients. Only volumes of one unit are compared.
    """
    pairs = set()
    for unit, floor in FLOORS.items():
        places = [place for place, fact in facts.items() if fact.blocks is not None and fact.unit == unit]
        if len(places) > 1:
            means = np.stack([facts[place].blocks for place in places])
            pairs |= {
                (places[one], places[other])
                for one, other in equal_in_parts(means, floor) | near(means, NEAR_MEANS[unit], progress)
            }
    return {(min(pair), max(pair)) for pair in pairs}


def near(means: np.ndarray, most: float, progress: Progress = _pass_on) -> set[tuple[int, int]]:
    """Pairs of rows of `means` [volumes, 512] that are near, by at most `most` on average; in tiles, which bounds the memory."""
    bits = np.packbits(means > means.mean(axis=1, keepdims=True), axis=1).view(np.uint64)
    found = set()
    level, starts = means.mean(axis=1, dtype=np.float64), range(0, len(means), _TILE)
    for start in progress(starts, "copies", len(starts)):
        for begin in range(start, len(means), _TILE):
            mine, others = bits[start : start + _TILE, None], bits[None, begin : begin + _TILE]
            distance = np.bitwise_count(mine ^ others).sum(axis=2)
            close = np.argwhere(distance <= NEAR_BITS) + (start, begin)
            apart = np.abs(level[close[:, 0]] - level[close[:, 1]])  # at most the average difference, and quicker to have
            found |= _close(means, close[(close[:, 0] < close[:, 1]) & (apart <= most * 1.01)], most)
    return found


def _close(means: np.ndarray, pairs: np.ndarray, most: float) -> set[tuple[int, int]]:
    """Those of `pairs` [n, 2] of rows whose means differ by at most `most` on average."""
    found = set()
    for part in np.array_split(pairs, len(pairs) // _TILE + 1):
        gaps = np.abs(means[part[:, 0]] - means[part[:, 1]]).mean(axis=1)
        found |= {(int(one), int(other)) for one, other in part[gaps <= most]}
    return found


def equal_in_parts(means: np.ndarray, floor: float) -> set[tuple[int, int]]:
    """Pairs of rows of `means` [volumes, 512] that share at least a tenth of their pairs of neighbouring blocks."""
    left, right = (np.ascontiguousarray(means[:, first::2]).view(np.int32).astype(np.int64) for first in (0, 1))
    keys, counted = (left << 32) ^ (right & 0xFFFFFFFF), (means[:, 0::2] > floor) & (means[:, 1::2] > floor)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for column, counts in zip(keys.T, counted.T):
        for pair in _neighbours(column, np.flatnonzero(counts)):
            shared[pair] += 1
    total = counted.sum(axis=1)
    return {pair for pair, times in shared.items() if times >= max(1.0, COPIED_BLOCKS * total[list(pair)].min())}


def _neighbours(column: np.ndarray, rows: np.ndarray) -> Iterable[tuple[int, int]]:
    """Rows of equal key, each with the next one of that key."""
    order = rows[np.argsort(column[rows], kind="stable")]
    same = np.flatnonzero(column[order][1:] == column[order][:-1])
    return zip(order[same].tolist(), order[same + 1].tolist())
