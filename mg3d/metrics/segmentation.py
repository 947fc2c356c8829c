"""Segmentation metrics of one case: Dice, normalised surface Dice (NSD), 95th-percentile Hausdorff distance (HD95), volumes."""

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
    surfaces: bool = True,
) -> dict[str, np.ndarray]:
    """Scores [C], one value per class: `dice`, `nsd`, `hd95_mm`, `volume_ml` and `reference_ml`.

    predicted, reference: label maps [D, H, W] on one grid with `spacing_mm` (z, y, x). tolerance_mm: NSD tolerance per class.
    NSD weights surface elements by area (mm^2), as DeepMind's surface-distance does; HD95 is the larger of the two directed 95th
    percentiles. surfaces=False omits NSD and HD95, which take most of the time.

    A class that is absent from both maps is undefined (nan), to be excluded from means over cases. A class in one map only has
    Dice and NSD 0, and the diagonal of the grid as HD95, so missed and invented structures cost in every metric. The original
    code, by MONAI's default, excludes every case without the structure, also if it was predicted.

    Raises:
        ValueError: the shapes differ or are not 3D, the lengths do not match, a spacing is not positive, or a map is not
            integer-valued.
    """
    _check(predicted, reference, spacing_mm)
    if len(tolerance_mm) != len(classes):
        raise ValueError(f"{len(tolerance_mm)} tolerances for {len(classes)} classes; pass one per class, in mm")
    masks = [labels == np.asarray(classes)[:, None, None, None] for labels in (predicted, reference)]
    in_predicted, in_reference = (mask.any((1, 2, 3)) for mask in masks)
    both, neither = in_predicted & in_reference, ~(in_predicted | in_reference)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    diagonal_mm = float(np.linalg.norm(np.multiply(predicted.shape, spacing_mm)))
    worst = {"dice": 0.0} | ({"nsd": 0.0, "hd95_mm": diagonal_mm} if surfaces else {})
    scores = {name: np.where(neither, np.nan, value) for name, value in worst.items()}
    if both.any():
        pair = [torch.from_numpy(mask[both])[None] for mask in masks]
        options = {"include_background": True, "spacing": list(spacing_mm)}
        tolerances = np.asarray(tolerance_mm, dtype=float)[both].tolist()
        scores["dice"][both] = compute_dice(*pair)[0].numpy()
        if surfaces:
            scores["nsd"][both] = compute_surface_dice(*pair, tolerances, use_subvoxels=True, **options)[0].numpy()
            scores["hd95_mm"][both] = compute_hausdorff_distance(*pair, percentile=95, **options)[0].numpy()
    for name, mask in zip(("volume_ml", "reference_ml"), masks):
        scores[name] = mask.sum((1, 2, 3)) * voxel_ml
    return scores


def _check(predicted: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]) -> None:
    if predicted.shape != reference.shape or predicted.ndim != 3:
        raise ValueError(f"label maps {predicted.shape} and {reference.shape}; expected two [D, H, W] on one grid: resample one")
    if len(spacing_mm) != 3 or not all(0 < length < np.inf for length in spacing_mm):
        raise ValueError(f"spacing {tuple(spacing_mm)} mm; expected three positive lengths (z, y, x) from the header")
    for name, labels in (("prediction", predicted), ("reference", reference)):
        if labels.dtype.kind == "f" and not (labels == np.round(labels)).all():
            raise ValueError(f"the {name} holds nan or fractions; expected class indices: take the argmax of scores first")
