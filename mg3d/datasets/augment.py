"""Random crops, rotations, flips, window jitter and noise: drawn per sample on the host, applied per batch on the device."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.settings.schema import AugmentSettings


class AugmentParams(NamedTuple):
    """The random transform of one sample."""

    affine: np.ndarray
    """float32 [3, 4], see `StoredVolumes.affine`."""
    window: tuple[float, float]
    """Jittered: the stored values that become 0 and 1."""
    noise_std: float
    noise_seed: int


def draw_params(
    settings: AugmentSettings, shape: Sequence[int], window: tuple[float, float], generator: np.random.Generator
) -> AugmentParams:
    """Draw a transform for a volume of `shape` (z, y, x). The number of draws is fixed, so settings do not affect each other."""
    uniform = generator.uniform(-1.0, 1.0, 8)
    noise_seed = int(generator.integers(2**62))
    smallest, largest = settings.augment_crop
    scale = smallest + (largest - smallest) * (uniform[0] + 1) / 2
    angle = math.radians(settings.augment_rotation_deg) * uniform[4]
    flip = -1.0 if settings.augment_flip and uniform[7] > 0 else 1.0
    if settings.augment_shift or settings.augment_width:
        width = window[1] - window[0]
        center = (window[0] + window[1]) / 2 + width * settings.augment_shift * uniform[6]
        half = width * (1 + settings.augment_width * uniform[5]) / 2
        window = (center - half, center + half)
    affine = np.concatenate([linear_map(shape, scale, angle, flip), (1 - scale) * uniform[1:4, None]], axis=1)
    return AugmentParams(affine.astype(np.float32), window, settings.augment_noise * float(generator.random()), noise_seed)


def linear_map(shape: Sequence[int], scale: float, angle: float, flip: float) -> np.ndarray:
    """[3, 3] along x, y, z: flip x, rotate in the axial plane (square pixels assumed), scale to the crop box."""
    _, height, width = shape
    aspect = np.diag([width, height, 1.0])
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return scale * np.linalg.inv(aspect) @ rotation @ aspect @ np.diag([flip, 1.0, 1.0])


def is_spatial(settings: AugmentSettings) -> bool:
    """Whether volumes are cropped, rotated or flipped."""
    return settings.augment_crop != (1.0, 1.0) or settings.augment_rotation_deg > 0 or settings.augment_flip


def is_enabled(settings: AugmentSettings) -> bool:
    """Whether any augmentation is active."""
    return is_spatial(settings) or max(settings.augment_shift, settings.augment_width, settings.augment_noise) > 0


def resample(voxels: Tensor, affine: Tensor) -> Tensor:
    """float32 [B, 1, D, H, W]: voxels [B, 1, D, H, W] sampled on `affine` [B, 3, 4], trilinear, border values repeated.

    A volume with the identity affine is returned bit-exactly.
    """
    stored = voxels.float()
    grid = F.affine_grid(affine, list(stored.shape), align_corners=False)
    sampled = F.grid_sample(stored, grid, mode="bilinear", padding_mode="border", align_corners=False)
    is_identity = (affine == torch.eye(3, 4, device=affine.device)).flatten(1).all(1)
    return torch.where(is_identity[:, None, None, None, None], stored, sampled)


def add_noise(volumes: Tensor, std: Tensor, seeds: Sequence[int]) -> Tensor:
    """volumes [B, 1, D, H, W] plus Gaussian noise with a standard deviation [B] and seed per volume, clipped to [0, 1]."""
    noise, generator = torch.empty_like(volumes), torch.Generator(volumes.device)
    for row, seed in zip(noise, seeds, strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    return volumes.addcmul_(noise, std[:, None, None, None, None]).clamp_(0.0, 1.0)
