"""Chest CT with chosen lesions and their masks. Points are (x, y, z) in mm, LPS, from the body axis."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from mg3d.phantom.canvas import Point
from mg3d.phantom.case import reconstruct
from mg3d.phantom.pathology import DRAWERS, DrawContext
from mg3d.phantom.writers import LabelledVolume

GROUND_GLASS_HU = -450.0
CLOSING_VOXELS = 2
"""Vessels and airways up to twice this width count as lung."""


class Chest(DrawContext):
    """A drawing context with lesions of one task and their mask."""

    def __init__(self, seed_words: Sequence[int], *, voxels_in_plane: int, other_findings: Sequence[str] = ()) -> None:
        """other_findings: findings of CT-RATE that are not lesions of the task; drawn first, not in the mask."""
        super().__init__(np.random.default_rng(seed_words), voxels_in_plane=voxels_in_plane)
        self.seed_words = tuple(seed_words)
        self.lung = {side: _closed(weight > 0.5) for side, weight in self.body.lungs.items()}
        """Side -> bool [z, y, x], including vessels and airways."""
        for label in other_findings:
            DRAWERS[label](self)
        self.mask = np.zeros(self.canvas.hu.shape, np.uint8)

    def add(self, shape: tuple, hu: float, value: int = 1) -> None:
        """Draw a shape of the canvas; voxels that are more than half inside get the mask value."""
        box, weight = shape
        self.canvas.blend(box, weight, hu)
        self.mask[box.index][weight > 0.5] = value

    def add_lung_lesion(self, centre: Point, radii: Point, hu: float, *, side: str) -> None:
        """Draw an ellipsoid, clipped to a lung; denser tissue inside it stays."""
        box, weight = self.canvas.ellipsoid(centre, radii)
        weight = weight * self.lung[side][box.index]
        self.canvas.blend(box, weight * (self.canvas.hu[box.index] < hu), hu)
        self.mask[box.index][weight > 0.5] = 1

    def add_opacities(self, sides: Sequence[str], *, low_mm: float, high_mm: float) -> None:
        """Draw peripheral ground-glass opacities, one per entry of `sides`; radii between two limits."""
        for side in sides:
            radius = self.radius(low_mm, high_mm)
            radii, centre = (radius, radius, 0.8 * radius), self.peripheral_point(side)
            self.add_lung_lesion(centre, radii, GROUND_GLASS_HU + self.uniform(-80, 80), side=side)

    def peripheral_point(self, side: str) -> Point:
        """Random point near the lung surface: the outermost of eight."""
        points = [self.lung_point(side, low=0.1, high=0.8) for _ in range(8)]
        return max(points, key=lambda point: abs(point[0]) / 130 + abs(point[1] - 5) / 80)

    def deep_point(self, side: str, distance_mm: float) -> Point:
        """Random point at least this far below the lung surface, or as far as possible."""
        depth = ndimage.distance_transform_edt(self.lung[side]) * self.canvas.voxel_mm
        voxels = np.argwhere(depth >= min(distance_mm, 0.9 * float(depth.max())))
        return self.canvas.point(voxels[self.generator.integers(len(voxels))])

    def scan(self, *, slice_factor: float = 1.0) -> LabelledVolume:
        """Volume with noise and its mask. slice_factor: slice spacing in pixels, at least 1."""
        voxel_mm, hu = self.canvas.voxel_mm, self.canvas.hu
        position = np.arange(1 + int((len(hu) - 1) / slice_factor)) * slice_factor
        low = np.minimum(position.astype(int), len(hu) - 1)
        t = (position - low)[:, None, None].astype(np.float32)
        resampled = hu[low] * (1 - t) + hu[np.minimum(low + 1, len(hu) - 1)] * t
        nearest = np.minimum(np.rint(position).astype(int), len(hu) - 1)
        noisy = reconstruct(resampled, (*self.seed_words, 1), sharp=False)
        return LabelledVolume(
            noisy, self.mask[nearest], (voxel_mm * slice_factor, voxel_mm, voxel_mm), self.canvas.point((0, 0, 0))
        )  # fmt: skip


def _closed(lung: np.ndarray) -> np.ndarray:
    padded = np.pad(lung, CLOSING_VOXELS)
    return ndimage.binary_closing(padded, iterations=CLOSING_VOXELS)[(slice(CLOSING_VOXELS, -CLOSING_VOXELS),) * 3]
