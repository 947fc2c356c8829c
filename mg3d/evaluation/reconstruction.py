"""Reconstruction error of masked voxels (MIM), compared with the mean image of the training volumes."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import sample_intensities
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.masking import upsample_mask
from mg3d.precision import inference
from mg3d.types import Batch

BODY_ABOVE = 0.25
"""Intensity that separates body from air: -500 HU in the window -1000 to 1000 HU."""


def reconstruction_error(
    model: MG3D, batches: Iterable[Batch], mean_image: Tensor, *, precision: str = "32-true"
) -> dict[str, float]:
    """`masked_errors` of a model with the objective MIM; precision: see `mg3d.precision.autocast`."""
    model.eval()

    def predict(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        masked = upsample_mask(batch.patch_mask, batch.volume.shape[2:])[:, None]
        with inference(precision, batch.volume.device):
            prediction = model(batch, ["volume"])["mim_prediction"]
        return prediction.float().cpu(), batch.volume.cpu(), masked.cpu()

    return masked_errors(map(predict, batches), mean_image)


def masked_errors(batches: Iterable[tuple[Tensor, Tensor, Tensor]], mean_image: Tensor) -> dict[str, float]:
    """Mean squared error over masked voxels and masked body voxels of model and mean image, and their ratio; NaN if empty.

    Args:
        batches: prediction and target [B, 1, D, H, W], and the mask (bool, of the same shape).
        mean_image: [1, D, H, W], mean of training volumes; the baseline prediction.
    """
    sums = torch.zeros(2, 2, dtype=torch.float64)  # (model, mean image), (masked, masked body)
    counts = torch.zeros(2, dtype=torch.float64)
    for prediction, target, masked in batches:
        squares = torch.stack([(prediction - target) ** 2, (mean_image - target) ** 2]).double()
        for region, voxels in enumerate((masked, masked & (target > BODY_ABOVE))):
            sums[:, region] += squares[:, voxels].sum(1)
            counts[region] += voxels.sum()
    errors = {}
    for region, name in enumerate(("masked", "masked_body")):
        model_error, baseline = (sums[:, region] / counts[region]).tolist()
        ratio = model_error / baseline if baseline else float("nan")
        errors |= {name: model_error, f"{name}_mean_image": baseline, f"{name}_ratio": ratio}
    return errors


def mean_volume(studies: Studies, *, max_studies: int) -> Tensor:
    """[1, D, H, W]: mean of the volumes of the first studies."""
    count = min(len(studies), max_studies)
    total = np.zeros((1, *studies.index.shape), dtype=np.float64)
    for study in range(count):
        total += sample_intensities(studies.sample(study))
    return torch.from_numpy(total / max(count, 1)).float()
