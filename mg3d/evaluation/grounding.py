"""Score grounding maps against masks: pointing game, mass inside the mask, and Dice."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.evaluation.tables import Bootstrap, Rows

THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""Fractions of a map's maximum at which it is thresholded for Dice."""
_CHUNK = 64
"""Maps per chunk at the resolution of the masks."""


class GroundingScores(NamedTuple):
    """Scores of n maps."""

    hit: np.ndarray
    """bool [n]: pointing game; whether the cell of the maximum contains a mask voxel."""
    chance: np.ndarray
    """[n]: fraction of cells that contain a mask voxel."""
    mass: np.ndarray
    """[n]: fraction of the map's sum inside the mask."""
    mask_fraction: np.ndarray
    """[n]: fraction of voxels in the mask, which is the mass of a uniform map."""
    dice: np.ndarray
    """[n, thresholds]."""


def score_maps(maps: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> GroundingScores:
    """Score maps [n, d, h, w] >= 0 of any scale against non-empty masks bool [n, D, H, W].

    Maps are interpolated to the grid of the masks for mass and Dice. Of several equal maxima the first counts.

    Raises:
        ValueError: a mask is empty, or a map has NaN or negative values or is all zero.
    """
    if not bool(masks.flatten(1).any(1).all()):
        raise ValueError("a mask is empty; exclude findings without a mask")
    if not bool((maps >= 0).all() and (maps.flatten(1).amax(1) > 0).all()):
        raise ValueError("a map has NaN or negative values or is all zero; pass attention, or similarity clipped at 0")
    parts = [_score_chunk(*chunk, thresholds) for chunk in zip(maps.split(_CHUNK), masks.split(_CHUNK), strict=True)]
    return GroundingScores(*(torch.cat(columns).numpy() for columns in zip(*parts, strict=True)))


def _score_chunk(maps: Tensor, masks: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, ...]:
    """The fields of `GroundingScores`."""
    cells = F.adaptive_max_pool3d(masks[:, None].float(), maps.shape[1:])[:, 0].flatten(1) > 0
    hit = cells.gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0]
    fine = F.interpolate(maps[:, None].float(), size=masks.shape[1:], mode="trilinear", align_corners=False).flatten(1)
    fine = fine / fine.amax(1, keepdim=True)
    inside = masks.flatten(1)
    dice = []
    for threshold in thresholds:
        predicted = fine >= threshold
        dice.append(2 * (predicted & inside).sum(1) / (predicted.sum(1) + inside.sum(1)))
    mass = (fine * inside).sum(1) / fine.sum(1)
    return hit, cells.float().mean(1), mass, inside.float().mean(1), torch.stack(dice, 1)


def centre_map(grid: Sequence[int]) -> Tensor:
    """Baseline map [d, h, w] that peaks in the centre of the volume."""
    along = (torch.arange(side) - (side - 1) / 2 for side in grid)
    return 1 / (1 + sum(offset**2 for offset in torch.meshgrid(*along, indexing="ij")))


def method_rows(scores: Mapping[str, GroundingScores], patients: np.ndarray, bootstrap: Bootstrap) -> Rows:
    """One row per kind of map, over all findings: pointing game, mass, and Dice at its best threshold."""
    rows = []
    for name, method in scores.items():
        best = int(method.dice.mean(0).argmax())
        rows.append({"map": name} | _cells(method, best, patients, bootstrap) | {"threshold": THRESHOLDS[best]})
    return rows


def finding_rows(
    scores: GroundingScores, findings: np.ndarray, patients: np.ndarray, *, centre_hit: np.ndarray, bootstrap: Bootstrap
) -> Rows:
    """One row per finding with a map, and one for all.

    findings [n]: name of each map's finding; centre_hit bool [n]: pointing game of `centre_map`. Dice is at the threshold that is
    best on these maps, so it is an upper bound.
    """
    best = int(scores.dice.mean(0).argmax())
    rows = []
    for name in [*dict.fromkeys(findings.tolist()), "all"]:
        chosen = findings == name if name != "all" else np.ones(len(findings), bool)
        part = GroundingScores(*(values[chosen] for values in scores))
        baselines = {"chance of pointing": part.chance, "pointing at the centre": centre_hit[chosen]}
        baselines |= {"mask fraction": part.mask_fraction}
        row = {"finding": name} | _cells(part, best, patients[chosen], bootstrap)
        rows.append(row | {column: float(values.mean()) for column, values in baselines.items()})
    return rows


def _cells(scores: GroundingScores, best: int, patients: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    columns = {"pointing game": scores.hit, "mass in the mask": scores.mass, "dice": scores.dice[:, best]}
    cells = {name: bootstrap.mean(values.astype(float), patients) for name, values in columns.items()}
    return {"maps": len(scores.hit)} | cells
