"""From stored voxels to model input in [0, 1]: windowing, random transforms and noise, on the device of the voxels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.augment import add_noise, resample
from mg3d.types import Batch, Sample, StoredVolumes

UINT8_MAX = 255.0


def window_bounds(
    unit: str, window_hu: tuple[float, float], stored_window_hu: Sequence[float] | None = None
) -> tuple[float, float]:
    """The stored values that become 0 and 1.

    `hu`: the ends of `window_hu`. `uint8_unknown_window`: 0 and 255. `hu8`: the ends of `window_hu` on the scale whose 0 and 255
    are the ends of `stored_window_hu`; HU outside it were clipped when they were stored.

    Raises:
        ValueError: unknown unit, or `hu8` without the window it was stored with.
    """
    if unit == "uint8_unknown_window":
        return 0.0, UINT8_MAX
    if unit == "hu":
        return float(window_hu[0]), float(window_hu[1])
    if unit == "hu8" and stored_window_hu is not None:
        low, high = stored_window_hu
        return (window_hu[0] - low) / (high - low) * UINT8_MAX, (window_hu[1] - low) / (high - low) * UINT8_MAX
    if unit == "hu8":
        raise ValueError("the index stores 8-bit voxels without `intensity.window`, the HU of 0 and 255. Rerun the preparation")
    raise ValueError(f"unknown intensity unit {unit!r}; expected 'hu', 'hu8' or 'uint8_unknown_window'")


def apply_window(voxels: Tensor, window: Tensor) -> Tensor:
    """float32 [B, 1, D, H, W] in [0, 1] from stored voxels of any dtype; values outside the window [B, 2] are clipped."""
    low, high = window.float()[:, :, None, None, None, None].unbind(1)
    return torch.sub(voxels, low).div_(high - low).clamp_(0.0, 1.0)


def to_intensities(stored: StoredVolumes) -> Tensor:
    """float32 [B, 1, D, H, W] in [0, 1] on the device of `stored`: resampled, windowed and noised as drawn by the collator."""
    voxels = resample(stored.voxels, stored.affine) if stored.affine.shape[1] else stored.voxels
    scaled = apply_window(voxels, stored.window)
    return add_noise(scaled, stored.noise[:, 0], stored.noise_seed) if stored.noise.shape[1] else scaled


def convert_volumes(batch: Batch, *, dtype: torch.dtype = torch.float32) -> Batch:
    """The batch with `volume` as a tensor of `dtype` in [0, 1], on the device of its stored voxels; idempotent."""
    if not isinstance(batch.volume, StoredVolumes):
        return batch
    return batch._replace(volume=to_intensities(batch.volume).to(dtype))


def move_to_device(value: Any, device: torch.device | str) -> Any:
    """A batch, or one of its fields, with every tensor on `device`."""
    if isinstance(value, (Batch, StoredVolumes)):
        return type(value)(*(move_to_device(field, device) for field in value))
    return value.to(device) if isinstance(value, Tensor) else value


def stack_volumes(samples: Sequence[Sample]) -> StoredVolumes:
    """The stored voxels of samples: uint8 if all are, else int16. No random transform is drawn."""
    voxels = torch.from_numpy(np.stack([sample.volume for sample in samples]))  # NumPy promotes uint8 with int16 to int16
    window = torch.tensor([sample.window for sample in samples], dtype=torch.float32)
    return StoredVolumes(voxels, window, window.new_empty(len(samples), 0, 4), window.new_empty(len(samples), 0), [])


def sample_intensities(sample: Sample) -> np.ndarray:
    """float32 [1, D, H, W] in [0, 1] of one sample."""
    return to_intensities(stack_volumes([sample]))[0].numpy()
