"""How well one case's structures are outlined, in true millimetres."""

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice


def case_scores(
    predicted: np.ndarray,
    reference: np.ndarray,
    *,
    classes: Sequence[int],
    spacing_mm: Sequence[float],
    tolerance_mm: Sequence[float],
) -> dict[str, np.ndarray]:
    """Scores [C] of one case, a value per class: `dice`, `nsd`, `hd95_mm`, `volume_ml` and `reference_ml`.

    predicted and reference are label maps [D, H, W] on one grid, spacing_mm is that grid's (z, y, x), tolerance_mm has a value
    per class. `nsd` is the normalised surface Dice with surface elements in mm^2, as DeepMind's surface-distance; `hd95_mm` the
    larger of the two directed 95th percentiles of the distances between border voxels.

    A class that is in neither map is not measured: nan, to be left out of means over cases. One that is in only one of the two
    has Dice and NSD 0 and, for HD95, the diagonal of the grid, so that a missed or invented structure costs something in each.
    The original, by MONAI's default, leaves out every case without the structure, also one in which some was invented.

    Raises:
        ValueError: shapes differ or are not 3D, lengths do not fit, a spacing is not positive, or a map holds values that are not
            whole numbers (scores, or nan).
    """
    _check(predicted, reference, spacing_mm)
    if len(tolerance_mm) != len(classes):
        raise ValueError(f"{len(tolerance_mm)} tolerances for {len(classes)} classes; give one for each, in mm")
    wanted = np.asarray(classes)[:, None, None, None]
    masks = [predicted == wanted, reference == wanted]
    here, there = (mask.any((1, 2, 3)) for mask in masks)
    both, neither = here & there, ~(here | there)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    diagonal_mm = float(np.linalg.norm(np.multiply(predicted.shape, spacing_mm)))
    scores = {name: np.where(neither, np.nan, missed) for name, missed in (("dice", 0.0), ("nsd", 0.0), ("hd95_mm", diagonal_mm))}
    if both.any():
        pair = [torch.from_numpy(mask[both])[None] for mask in masks]
        named = {"include_background": True, "spacing": list(spacing_mm)}
        tolerances = np.asarray(tolerance_mm, dtype=float)[both].tolist()
        scores["dice"][both] = compute_dice(*pair)[0].numpy()
        scores["nsd"][both] = compute_surface_dice(*pair, tolerances, use_subvoxels=True, **named)[0].numpy()
        scores["hd95_mm"][both] = compute_hausdorff_distance(*pair, percentile=95, **named)[0].numpy()
    for name, mask in zip(("volume_ml", "reference_ml"), masks):
        scores[name] = mask.sum((1, 2, 3)) * voxel_ml
    return scores


def _check(predicted: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]) -> None:
    if predicted.shape != reference.shape or predicted.ndim != 3:
        raise ValueError(
            f"label maps of {predicted.shape} and {reference.shape}; expected two [D, H, W] on one grid: resample one"
        )
    if len(spacing_mm) != 3 or not all(0 < length < np.inf for length in spacing_mm):
        raise ValueError(f"a spacing of {tuple(spacing_mm)} mm; expected three lengths (z, y, x) above 0, from the header")
    for name, found in (("prediction", predicted), ("reference", reference)):
        if found.dtype.kind == "f" and not (found == np.round(found)).all():
            raise ValueError(f"the {name} holds nan or fractions; expected class numbers: take the argmax of scores first")
