"""Whether a model looks where a finding is."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.evaluation.results import Rows, measured
from mg3d.metrics.classification import mean_of_defined

THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(1, 10))

_AT_ONCE = 64
"""Maps on the masks' grid in memory."""


class Grounded(NamedTuple):
    """Of n maps."""

    hit: np.ndarray
    """bool [n]: pointing game, whether the cell of the greatest value holds a voxel of the mask."""
    chance: np.ndarray
    """[n]: share of cells that hold one."""
    mass: np.ndarray
    """[n]: share of the map's sum that lies on the mask."""
    mask: np.ndarray
    """[n]: share of voxels that are the mask's, which is the mass of an even map."""
    dice: np.ndarray
    """[n, thresholds]: Dice of the mask and of where the map is at least that share of its greatest value."""


def ground(maps: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Grounded:
    """Scores maps [n, d, h, w] (0 and above, any scale) against masks bool [n, D, H, W] that are not empty.

    For masses and Dice the maps are brought to the masks' grid, linearly. Of equal greatest cells the first counts.

    Raises:
        ValueError: a mask is empty, or a map holds nan, negative numbers or only zeros.
    """
    if not bool(masks.flatten(1).any(1).all()):
        raise ValueError("a mask is empty, so that nothing can be found there; leave its finding out")
    if not bool((maps >= 0).all() and (maps.flatten(1).amax(1) > 0).all()):
        raise ValueError("a map holds nan or negative numbers, or zeros alone; pass attention or a similarity that is cut at 0")
    parts = [_ground(*part, thresholds) for part in zip(maps.split(_AT_ONCE), masks.split(_AT_ONCE), strict=True)]
    return Grounded(*(torch.cat(columns).numpy() for columns in zip(*parts, strict=True)))


def _ground(maps: Tensor, masks: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, ...]:
    """The fields of `Grounded`."""
    cells = F.adaptive_max_pool3d(masks[:, None].float(), maps.shape[1:])[:, 0].flatten(1) > 0
    hit = cells.gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0]
    fine = F.interpolate(maps[:, None].float(), size=masks.shape[1:], mode="trilinear", align_corners=False).flatten(1)
    fine = fine / fine.amax(1, keepdim=True)
    there = masks.flatten(1)
    dice = []
    for threshold in thresholds:
        found = fine >= threshold
        dice.append(2 * (found & there).sum(1) / (found.sum(1) + there.sum(1)))
    mass = (fine * there).sum(1) / fine.sum(1)
    return hit, cells.float().mean(1), mass, there.float().mean(1), torch.stack(dice, 1)


def middle_map(grid: Sequence[int]) -> Tensor:
    """[d, h, w], greatest in the middle: a map that knows nothing but where the chest is."""
    along = (torch.arange(side) - (side - 1) / 2 for side in grid)
    return 1 / (1 + sum(place**2 for place in torch.meshgrid(*along, indexing="ij")))


def compared_rows(scores: Mapping[str, Grounded], patients: np.ndarray, *, n_bootstrap: int, seed: int) -> Rows:
    """A row per kind of map, of all findings: pointing game, mass, and Dice at the threshold that is best for that kind."""
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    rows = []
    for kind, found in scores.items():
        best = int(found.dice.mean(0).argmax())
        row = {"map": kind, "maps": len(found.hit)}
        for what, values in (("pointing game", found.hit), ("mass in the mask", found.mass), ("dice", found.dice[:, best])):
            row[what] = measured(lambda r, v=values: float(v[r].mean()), patients, **settings)
        rows.append(row | {"at": THRESHOLDS[best]})
    return rows


def grounding_rows(
    scores: Grounded,
    findings: np.ndarray,
    patients: np.ndarray,
    names: Sequence[str],
    *,
    middle: np.ndarray,
    n_bootstrap: int,
    seed: int,
) -> Rows:
    """A row per finding that has a map, and one of all: pointing game, mass, and Dice at the threshold that is best of all.

    findings int [n]: place in `names` of each map's finding; middle bool [n]: hits of a map that points at the middle. The
    threshold is chosen on these very maps, so its Dice is a bound.
    """
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    best = int(scores.dice.mean(0).argmax())
    columns = {"pointing game": scores.hit, "mass in the mask": scores.mass, "dice": scores.dice[:, best]}
    rows = []
    for name, chosen in [*((name, findings == place) for place, name in enumerate(names)), ("all", findings >= 0)]:
        if not chosen.any():
            continue
        row = {"finding": name, "maps": int(chosen.sum()), "chance of pointing": float(scores.chance[chosen].mean())}
        row["pointing at the middle"] = float(middle[chosen].mean())
        row["share of the mask"] = float(scores.mask[chosen].mean())
        for what, values in columns.items():
            kept = values[chosen].astype(float)
            row[what] = measured(lambda r, v=kept: mean_of_defined(v[r]), patients[chosen], **settings)
        rows.append(row)
    return rows


def dice_rows(
    scores: Mapping[str, Grounded],
    patients: np.ndarray,
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    n_bootstrap: int,
    seed: int,
) -> Rows:
    """A row per threshold: mean Dice over all maps of each kind."""
    rows = []
    for place, threshold in enumerate(thresholds):
        cells = {
            kind: measured(lambda r, v=found.dice[:, place]: float(v[r].mean()), patients, n_bootstrap=n_bootstrap, seed=seed)
            for kind, found in scores.items()
        }
        rows.append({"threshold, of the map's maximum": threshold} | cells)
    return rows
