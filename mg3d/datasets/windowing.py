"""From stored voxels to the numbers a model sees: the only place where they are made, on whatever device the voxels are."""

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.augment import add_noise, resample
from mg3d.types import Batch, Sample, StoredVolumes

GREATEST = 255.0
"""Of a stored uint8."""


def window_bounds(
    unit: str, window_hu: tuple[float, float], stored_window_hu: Sequence[float] | None = None
) -> tuple[float, float]:
    """The stored numbers that become 0 and 1.

    `hu`: the ends of `window_hu`. `uint8_unknown_window`: 0 and 255. `hu8`: the ends of `window_hu` on the scale whose 0 and 255
    are the ends of `stored_window_hu`; HU outside it were clipped when they were stored.

    Raises:
        ValueError: another unit, or `hu8` without the window it was stored with.
    """
    if unit == "uint8_unknown_window":
        return 0.0, GREATEST
    if unit == "hu":
        return float(window_hu[0]), float(window_hu[1])
    if unit == "hu8" and stored_window_hu is not None:
        low, high = stored_window_hu
        return (window_hu[0] - low) / (high - low) * GREATEST, (window_hu[1] - low) / (high - low) * GREATEST
    if unit == "hu8":
        raise ValueError("the index says of its 8-bit voxels no `intensity.window`, the HU of 0 and 255; prepare the data anew")
    raise ValueError(f"voxels in unit {unit!r} are not known; the preparation writes 'hu', 'hu8' or 'uint8_unknown_window'")


def apply_window(voxels: Tensor, window: Tensor) -> Tensor:
    """float32 [B, 1, D, H, W] in [0, 1] of stored voxels [B, 1, D, H, W] of any type; beyond the window [B, 2] it is cut."""
    low, high = window.float()[:, :, None, None, None, None].unbind(1)
    return torch.sub(voxels, low).div_(high - low).clamp_(0.0, 1.0)


def volumes(stored: StoredVolumes) -> Tensor:
    """float32 [B, 1, D, H, W] in [0, 1], on the device of `stored`: moved, windowed, noise added, as the collator has drawn."""
    voxels = resample(stored.voxels, stored.affine) if stored.affine.shape[1] else stored.voxels
    scaled = apply_window(voxels, stored.window)
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
    kind = np.int16 if any(sample.volume.dtype == np.int16 for sample in samples) else np.uint8
    gather = _gather if torch.utils.data.get_worker_info() is None else _gather_shared
    voxels = gather([sample.volume for sample in samples], np.dtype(kind))
    window = torch.tensor([sample.window for sample in samples], dtype=torch.float32)
    return StoredVolumes(voxels, window, window.new_empty(len(samples), 0, 4), window.new_empty(len(samples), 0), [])


def intensities(sample: Sample) -> np.ndarray:
    """float32 [1, D, H, W] in [0, 1] of one sample."""
    return volumes(stack([sample]))[0].numpy()


class _Memory(threading.local):
    """Memory of the batches before, taken again when nothing refers to it any more: fresh pages cost an eighth of the copy."""

    MOST = 2
    """One batch is made while another is used."""

    def __init__(self) -> None:
        self.lent: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []
        """Memory, and the array that stands for it; a tensor made of that keeps it alive, and with it any view of the tensor."""

    def take(self, shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
        free = [memory for memory, user in self.lent if user() is None and (memory.shape, memory.dtype) == (shape, kind)]
        # NumPy asks for large pages, torch does not: a hundredth of the page faults.
        memory = free[0] if free else np.empty(shape, kind)
        array = memory[:]
        others = [entry for entry in self.lent if entry[0] is not memory]
        self.lent = [(memory, weakref.ref(array)), *others][: self.MOST]
        return array


_MEMORY = _Memory()


def _gather(volumes: Sequence[np.ndarray], kind: np.dtype) -> Tensor:
    """Arrays of one shape as one tensor of `kind`."""
    everything = _MEMORY.take((len(volumes), *volumes[0].shape), kind)
    for place, volume in zip(everything, volumes, strict=True):
        np.copyto(place, volume)
    return torch.from_numpy(everything)


def _gather_shared(volumes: Sequence[np.ndarray], kind: np.dtype) -> Tensor:
    """As `_gather`, in shared memory, so that a loader process hands it over without another copy."""
    shape = (len(volumes), *volumes[0].shape)
    storage = torch.UntypedStorage._new_shared(kind.itemsize * int(np.prod(shape)))
    together = torch.empty(0, dtype=torch.uint8 if kind == np.uint8 else torch.int16).set_(storage, 0, shape)
    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        for place, volume in zip(together.numpy(), volumes, strict=True):
            np.copyto(place, volume)
        return together
    # Written as a file, its pages are neither zeroed first nor faulted in one by one: half the time of a copy through the map.
    file, offset = storage._share_fd_cpu_()[0], 0  # the storage's own descriptor, which it closes itself
    for volume in volumes:
        rest = memoryview(np.ascontiguousarray(volume, kind)).cast("B")
        while rest:
            written = os.pwrite(file, rest, offset)
            rest, offset = rest[written:], offset + written
    return together
