"""How well hidden voxels are filled in, beside the mean image."""

import torch
from torch import Tensor

BODY_ABOVE = 0.25
"""Intensity that separates body from air: -500 HU in the window -1000 to 1000."""


class ReconstructionError:
    """Sums squared errors over batches; the mean image is the rival that knows no patient.

    Args:
        mean_image: [1, D, H, W], mean of training volumes.
    """

    def __init__(self, mean_image: Tensor) -> None:
        self.mean_image = mean_image
        self.sums = torch.zeros(2, 2, dtype=torch.float64)
        self.counts = torch.zeros(2, dtype=torch.float64)

    def update(self, prediction: Tensor, target: Tensor, hidden: Tensor) -> None:
        """Adds a batch: prediction and target [B, 1, D, H, W], hidden bool of the same shape."""
        squares = torch.stack([(prediction - target) ** 2, (self.mean_image - target) ** 2]).double()
        for place, voxels in enumerate((hidden, hidden & (target > BODY_ABOVE))):
            self.sums[:, place] += squares[:, voxels].sum(1)
            self.counts[place] += voxels.sum()

    def result(self) -> dict[str, float]:
        """Mean squared errors over hidden voxels and hidden body voxels, of the model and of the mean image, and their ratio.

        nan where no such voxel was seen.
        """
        result = {}
        for place, name in enumerate(("hidden", "hidden_body")):
            model, rival = (float(value) for value in self.sums[:, place] / self.counts[place])
            result |= {name: model, f"{name}_mean_image": rival, f"{name}_ratio": model / rival if rival else float("nan")}
        return result
