"""Random crops, turns and intensities: numbers drawn per sample on the host, applied to a whole batch on the device."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.settings.schema import AugmentSettings


class Drawn(NamedTuple):
    """What is drawn for one sample."""

    affine: np.ndarray
    """float32 [3, 4], see `StoredVolumes.affine`."""
    window: tuple[float, float]
    """The stored numbers that become 0 and 1, jittered."""
    noise: float
    noise_seed: int


def draw(settings: AugmentSettings, shape: Sequence[int], window: tuple[float, float], generator: np.random.Generator) -> Drawn:
    """Draws for a volume of `shape` (z, y, x). Always equally many draws, so that one setting leaves the others' draws alone."""
    numbers = generator.uniform(-1.0, 1.0, 8)
    seed = int(generator.integers(2**62))
    least, most = settings.augment_crop
    side = least + (most - least) * (numbers[0] + 1) / 2
    turn = math.radians(settings.augment_rotation_deg) * numbers[4]
    flip = -1.0 if settings.augment_flip and numbers[7] > 0 else 1.0
    width = (window[1] - window[0]) * (1 + settings.augment_width * numbers[5])
    middle = (window[0] + window[1]) / 2 + (window[1] - window[0]) * settings.augment_shift * numbers[6]
    jittered = (middle - width / 2, middle + width / 2) if settings.augment_shift or settings.augment_width else window
    affine = np.concatenate([_linear(shape, side, turn, flip), (1 - side) * numbers[1:4, None]], axis=1)
    return Drawn(affine.astype(np.float32), jittered, settings.augment_noise * float(generator.random()), seed)


def _linear(shape: Sequence[int], side: float, turn: float, flip: float) -> np.ndarray:
    """[3, 3] along x, y, z: flip, then turn in the plane of equally large voxels, then shrink to the box."""
    _, height, width = shape
    aspect = np.diag([width, height, 1.0])
    turned = np.array([[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0], [0.0, 0.0, 1.0]])
    return side * np.linalg.inv(aspect) @ turned @ aspect @ np.diag([flip, 1.0, 1.0])


def moves(settings: AugmentSettings) -> bool:
    """Whether anything is cropped, turned or flipped."""
    return settings.augment_crop != (1.0, 1.0) or settings.augment_rotation_deg > 0 or settings.augment_flip


def is_on(settings: AugmentSettings) -> bool:
    """Whether anything is changed at all."""
    return moves(settings) or max(settings.augment_shift, settings.augment_width, settings.augment_noise) > 0


def resample(voxels: Tensor, affine: Tensor) -> Tensor:
    """float32 [B, 1, D, H, W] read from voxels [B, 1, D, H, W] where `affine` [B, 3, 4] says, trilinear, the border repeated.

    A volume whose affine is the identity comes back bit by bit.
    """
    stored = voxels.float()
    grid = F.affine_grid(affine, list(stored.shape), align_corners=False)
    moved = F.grid_sample(stored, grid, mode="bilinear", padding_mode="border", align_corners=False)
    unmoved = (affine == torch.eye(3, 4, device=affine.device)).flatten(1).all(1)
    return torch.where(unmoved[:, None, None, None, None], stored, moved)


def add_noise(volumes: Tensor, deviation: Tensor, seeds: Sequence[int]) -> Tensor:
    """volumes [B, 1, D, H, W] plus normal noise of each one's `deviation` [B] and seed, cut to [0, 1]."""
    noise, generator = torch.empty_like(volumes), torch.Generator(volumes.device)
    for one, seed in zip(noise, seeds, strict=True):
        one.normal_(generator=generator.manual_seed(seed))
    return volumes.addcmul_(noise, deviation[:, None, None, None, None]).clamp_(0.0, 1.0)
