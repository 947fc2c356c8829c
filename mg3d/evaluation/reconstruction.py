"""Reconstruction error of masked voxels (MIM), compared with the mean image of the training volumes."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import sample_intensities
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.masking import upsample_mask
from mg3d.types import Batch

BODY_ABOVE = 0.25
"""Intensity that separates body from air: -500 HU in the window -1000 to 1000 HU."""


class ReconstructionError:
    """Accumulates squared errors over batches.

    Args:
        mean_image: [1, D, H, W], mean of training volumes; the baseline prediction.
    """

    def __init__(self, mean_image: Tensor) -> None:
        self.mean_image = mean_image
        self.sums = torch.zeros(2, 2, dtype=torch.float64)
        self.counts = torch.zeros(2, dtype=torch.float64)

    def update(self, prediction: Tensor, target: Tensor, masked: Tensor) -> None:
        """Add a batch: prediction and target [B, 1, D, H, W], masked bool of the same shape."""
        squares = torch.stack([(prediction - target) ** 2, (self.mean_image - target) ** 2]).double()
        for region, voxels in enumerate((masked, masked & (target > BODY_ABOVE))):
            self.sums[:, region] += squares[:, voxels].sum(1)
            self.counts[region] += voxels.sum()

    def result(self) -> dict[str, float]:
        """Mean squared error over masked voxels and masked body voxels of model and mean image, and their ratio; NaN if empty."""
        result = {}
        for region, name in enumerate(("masked", "masked_body")):
            model, baseline = (float(value) for value in self.sums[:, region] / self.counts[region])
            ratio = model / baseline if baseline else float("nan")
            result |= {name: model, f"{name}_mean_image": baseline, f"{name}_ratio": ratio}
        return result


@torch.no_grad()
def reconstruction_error(model: MG3D, batches: Iterable[Batch], mean_image: Tensor) -> dict[str, float]:
    """`ReconstructionError.result` of a model with the objective MIM."""
    model.eval()
    error = ReconstructionError(mean_image)
    for batch in batches:
        features = model(batch, ["volume"])
        masked = upsample_mask(batch.patch_mask, batch.volume.shape[2:])[:, None]
        error.update(features["mim_prediction"].float().cpu(), batch.volume.cpu(), masked.cpu())
    return error.result()


def mean_volume(studies: Studies, *, max_studies: int) -> Tensor:
    """[1, D, H, W]: mean of the volumes of the first studies."""
    count = min(len(studies), max_studies)
    total = np.zeros((1, *studies.index.shape), dtype=np.float64)
    for study in range(count):
        total += sample_intensities(studies.sample(study))
    return torch.from_numpy(total / max(count, 1)).float()
