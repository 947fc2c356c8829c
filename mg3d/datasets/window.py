"""From stored voxels to the numbers a model sees: the only place where they are made, on whatever device the voxels are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.augment import add_noise, resample
from mg3d.types import Batch, Sample, StoredVolumes

GREATEST = 255.0
"""Of a stored uint8."""


def stored_window(
    unit: str, window_hu: tuple[float, float], stored_window_hu: Sequence[float] | None = None
) -> tuple[float, float]:
    """The stored numbers that become 0 and 1.

    `hu`: the ends of `window_hu`. `grey8`: 0 and 255, for its window is not documented. `hu8`: the ends of `window_hu` on the
    scale whose 0 and 255 are the ends of `stored_window_hu`; HU beyond it were cut when they were stored.

    Raises:
        ValueError: another unit, or `hu8` without the window it was stored with.
    """
    if unit == "grey8":
        return 0.0, GREATEST
    if unit == "hu":
        return float(window_hu[0]), float(window_hu[1])
    if unit == "hu8" and stored_window_hu is not None:
        low, high = stored_window_hu
        return (window_hu[0] - low) / (high - low) * GREATEST, (window_hu[1] - low) / (high - low) * GREATEST
    if unit == "hu8":
        raise ValueError("the index says of its 8-bit voxels no `intensity.window`, the HU of 0 and 255; prepare the data anew")
    raise ValueError(f"voxels in unit {unit!r} are not known; the preparation writes 'hu', 'hu8' or 'grey8'")


def to_unit_range(voxels: Tensor, window: Tensor) -> Tensor:
    """float32 [B, 1, D, H, W] in [0, 1] of stored voxels [B, 1, D, H, W] of any type; beyond the window [B, 2] it is cut."""
    low, high = window.float()[:, :, None, None, None, None].unbind(1)
    return torch.sub(voxels, low).div_(high - low).clamp_(0.0, 1.0)


def volumes(stored: StoredVolumes) -> Tensor:
    """float32 [B, 1, D, H, W] in [0, 1], on the device of `stored`: moved, windowed, noise added, as the collator has drawn."""
    voxels = resample(stored.voxels, stored.affine) if stored.affine.shape[1] else stored.voxels
    scaled = to_unit_range(voxels, stored.window)
    return add_noise(scaled, stored.noise[:, 0], stored.noise_seed) if stored.noise.shape[1] else scaled


def convert(batch: Batch, *, dtype: torch.dtype = torch.float32) -> Batch:
    """The batch as the model reads it: `volume` a tensor of `dtype`, on the device where its stored voxels are."""
    return batch._replace(volume=volumes(batch.volume).to(dtype)) if isinstance(batch.volume, StoredVolumes) else batch


def on_device(part: Any, device: torch.device) -> Any:
    """A batch, or one of its fields, with every tensor on `device`; nothing is converted."""
    if isinstance(part, (Batch, StoredVolumes)):
        return type(part)(*(on_device(field, device) for field in part))
    return part.to(device) if isinstance(part, Tensor) else part


def stack(samples: Sequence[Sample]) -> StoredVolumes:
    """The stored voxels of samples, copied once; nothing is moved and no noise is added."""
    kind = np.result_type(*(sample.volume.dtype for sample in samples))
    voxels = _empty((len(samples), *samples[0].volume.shape), torch.uint8 if kind == np.uint8 else torch.int16)
    for place, sample in zip(voxels.numpy(), samples, strict=True):
        np.copyto(place, sample.volume)
    window = torch.from_numpy(np.array([sample.window for sample in samples], np.float32))
    return StoredVolumes(voxels, window, torch.empty(len(samples), 0, 4), torch.empty(len(samples), 0), [])


def intensities(sample: Sample) -> np.ndarray:
    """float32 [1, D, H, W] in [0, 1] of one sample."""
    return volumes(stack([sample]))[0].numpy()


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for a batch; in a loader process shared memory, so that handing it over copies nothing."""
    if torch.utils.data.get_worker_info() is None:
        # NumPy asks for large pages, torch does not: a hundredth of the page faults.
        return torch.from_numpy(np.empty(shape, np.uint8 if dtype == torch.uint8 else np.int16))
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.empty(0, dtype=dtype).set_(torch.UntypedStorage._new_shared(size), 0, tuple(shape))
