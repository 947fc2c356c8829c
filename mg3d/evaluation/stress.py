"""What a model's score loses when volumes come in a wrong way: orientation, slices, HU, spacing, crop.

A model that loses nothing when the head is where the feet were has not looked; and one whose score RISES under a change was
given its volumes in the wrong way to begin with.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.evaluation.results import Rows, measured
from mg3d.metrics.bootstrap import insufficient_reason, paired_comparison
from mg3d.metrics.classification import macro_auroc
from mg3d.metrics.retrieval import recall_at

AS_IT_IS = "as it is"
Z, Y, X = 2, 3, 4
K = 10
"""Of the recall that stands beside the AUROC."""
Change = Callable[[Tensor], Tensor]


def _turned(volumes: Tensor, *, turns: int) -> Tensor:
    """Quarter turns in the axial plane; the grid stays as it was."""
    return _fitted(torch.rot90(volumes, turns, (Y, X)), volumes)


def _exchanged(volumes: Tensor, *, first: int, second: int) -> Tensor:
    return _fitted(volumes.transpose(first, second), volumes)


def _fitted(volumes: Tensor, like: Tensor) -> Tensor:
    if volumes.shape == like.shape:
        return volumes
    return F.interpolate(volumes, size=like.shape[2:], mode="trilinear", align_corners=False)


def _flipped(volumes: Tensor, *, axis: int) -> Tensor:
    return volumes.flip(axis)


def _slices(volumes: Tensor, *, order: Callable[[int], list[int]]) -> Tensor:
    return volumes[:, :, order(volumes.shape[Z])]


def _interleaved(count: int) -> list[int]:
    return [*range(0, count, 2), *range(1, count, 2)]


def _by_name(count: int) -> list[int]:
    return sorted(range(1, count + 1), key=str)


def _zoomed(volumes: Tensor, *, zyx: tuple[float, float, float]) -> Tensor:
    """Enlarged about the middle by a factor per axis; what comes in from outside is 0, the low end of the window."""
    z, y, x = zyx
    affine = torch.diag(torch.tensor([1 / x, 1 / y, 1 / z, 1.0], dtype=volumes.dtype))[:3].repeat(len(volumes), 1, 1)
    grid = F.affine_grid(affine, list(volumes.shape), align_corners=False)
    return F.grid_sample(volumes, grid, padding_mode="zeros", align_corners=False)


def _without_top(volumes: Tensor, *, share: float) -> Tensor:
    cut = volumes.clone()
    cut[:, :, round(volumes.shape[Z] * (1 - share)) :] = 0
    return cut


def _offset(volumes: Tensor, *, by: float) -> Tensor:
    return volumes + by


CHANGES: Mapping[str, Change] = {
    AS_IT_IS: lambda volumes: volumes,
    "left and right exchanged": partial(_flipped, axis=X),
    "front and back exchanged": partial(_flipped, axis=Y),
    "head and feet exchanged (slices reversed)": partial(_flipped, axis=Z),
    "quarter turn in the axial plane": partial(_turned, turns=1),
    "half turn in the axial plane": partial(_turned, turns=2),
    "three quarter turns in the axial plane": partial(_turned, turns=3),
    "axes z and y exchanged": partial(_exchanged, first=Z, second=Y),
    "slices interleaved (even, then odd)": partial(_slices, order=_interleaved),
    "slices in the order of names (1, 10, 11, 2)": partial(_slices, order=lambda count: [n - 1 for n in _by_name(count)]),
    "z spacing told twice too large": partial(_zoomed, zyx=(2.0, 1.0, 1.0)),
    "z spacing told half of the true": partial(_zoomed, zyx=(0.5, 1.0, 1.0)),
    "x and y spacing told 1.25 times too large": partial(_zoomed, zyx=(1.0, 1.25, 1.25)),
    "only the central 80 % of every axis": partial(_zoomed, zyx=(1.25, 1.25, 1.25)),
    "upper quarter cut off": partial(_without_top, share=0.25),
}
"""Name -> change of volumes [B, 1, D, H, W], +z superior, +y posterior, +x left, 0 and 1 the ends of the window."""
OFFSETS_HU = (-1024, -100, -30, 30, 100)
"""-1024: a rescale intercept that was applied twice."""


def changes(window_hu: tuple[float, float] | None) -> dict[str, Change]:
    """All changes; window_hu: HU of 0 and 1, without which HU cannot be shifted."""
    found = dict(CHANGES)
    if window_hu is not None:
        width = window_hu[1] - window_hu[0]
        found |= {f"{offset:+d} HU": partial(_offset, by=offset / width) for offset in OFFSETS_HU}
    return found


def changed_outputs(
    judge: Callable[[Tensor], np.ndarray], batches: Callable[[], Iterable[Tensor]], made: Mapping[str, Change]
) -> dict[str, np.ndarray]:
    """What `judge` says of every volume, [n, ...] by change; it gets volumes cut to [0, 1] after the change."""
    return {name: np.concatenate([judge(change(batch).clamp(0.0, 1.0)) for batch in batches()]) for name, change in made.items()}


def stress_rows(
    scores: Mapping[str, np.ndarray],
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    ranks: Mapping[str, np.ndarray] | None = None,
    n_bootstrap: int,
    seed: int,
) -> Rows:
    """A row per change: mean AUROC and recall at `K`, and how much is lost of each, with paired intervals over patients.

    scores [n, L] and ranks [n] (of each volume's report) by change, `AS_IT_IS` among them; labels [n, L], patients [n].
    """
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    auroc = {name: partial(_macro, labels, part) for name, part in scores.items()}
    recall = {name: partial(_recall, part, K) for name, part in (ranks or {}).items()}
    rows, lacking = [], insufficient_reason(labels, patients)
    without = {"low": np.nan, "high": np.nan, "why": lacking} if lacking else {}
    for name in scores:
        row = {"change": name, "auroc": measured(auroc[name], patients, **settings, lacking=lacking)}
        row["lost"] = "" if name == AS_IT_IS else _lost(auroc, name, patients, settings) | without
        if recall:
            row[f"volume to report, R@{K}"] = measured(recall[name], patients, **settings)
            row["lost of it"] = "" if name == AS_IT_IS else _lost(recall, name, patients, settings)
        rows.append(row)
    return rows


def _lost(
    statistics: Mapping[str, Callable[[np.ndarray], float]], name: str, patients: np.ndarray, settings: Mapping[str, int]
) -> dict[str, float]:
    found = paired_comparison(statistics[AS_IT_IS], statistics[name], patients, **settings)
    return {"value": found.difference, "low": found.low, "high": found.high}


def _macro(labels: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> float:
    return macro_auroc(labels[rows], scores[rows])


def _recall(ranks: np.ndarray, k: int, rows: np.ndarray) -> float:
    return recall_at(ranks[rows], [k])[k]
