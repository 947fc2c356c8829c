"""Drawing in millimetres on a voxel grid. Axes z, y, x: +z superior, +y posterior, +x left; the origin is the grid centre."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FOV_MM = 360.0
"""Field of view along y and x."""
Point = Sequence[float]
"""(x, y, z) in mm."""


class Box(NamedTuple):
    """A box of the grid and its voxel coordinates in mm, shaped for broadcasting."""

    index: tuple[slice, slice, slice]
    z: np.ndarray
    y: np.ndarray
    x: np.ndarray

    def radius(self, centre: Point, radii: Point) -> np.ndarray:
        """Normalised distance from the centre of an ellipsoid; 1 on its surface."""
        return np.sqrt(sum(((axis - c) / r) ** 2 for axis, c, r in zip((self.x, self.y, self.z), centre, radii, strict=True)))


class Change(NamedTuple):
    """Effect of a drawing operation."""

    voxels: np.ndarray
    """bool [z, y, x], changed by more than a threshold."""
    contrast_hu: float
    """Mean absolute change of these voxels."""


class Canvas:
    """HU volume with cubic voxels; `voxels_in_plane` along y and x."""

    def __init__(self, *, voxels_in_plane: int, length_mm: float) -> None:
        self.voxel_mm = FOV_MM / voxels_in_plane
        depth = round(length_mm / self.voxel_mm)
        self.z, self.y, self.x = (
            ((np.arange(count) - (count - 1) / 2) * self.voxel_mm).astype(np.float32)
            for count in (depth, voxels_in_plane, voxels_in_plane)
        )
        self.hu = np.full((depth, voxels_in_plane, voxels_in_plane), -1000.0, dtype=np.float32)

    @property
    def min_radius_mm(self) -> float:
        """Smallest radius that is visible on this grid; findings are at least this large."""
        return 1.2 * self.voxel_mm

    def point(self, index: Sequence[int]) -> tuple[float, float, float]:
        """Coordinates of the voxel (z, y, x)."""
        z, y, x = index
        return float(self.x[x]), float(self.y[y]), float(self.z[z])

    def full_box(self) -> Box:
        """Box of the whole grid."""
        return self._box((slice(None),) * 3)

    def box_around(self, low: Point, high: Point) -> Box:
        """Box between two corners, one voxel larger."""
        limits = zip((self.z, self.y, self.x), low[::-1], high[::-1], strict=True)
        return self._box(
            tuple(slice(*np.searchsorted(axis, (a - self.voxel_mm, b + self.voxel_mm)).tolist()) for axis, a, b in limits)
        )

    def _box(self, index: tuple[slice, slice, slice]) -> Box:
        z, y, x = index
        return Box(index, self.z[z, None, None], self.y[None, y, None], self.x[None, None, x])

    def coverage(self, depth_mm: np.ndarray) -> np.ndarray:
        """Partial-volume fraction of voxels at a (signed) depth below a surface."""
        return np.clip(depth_mm / self.voxel_mm + 0.5, 0.0, 1.0)

    def blend(self, box: Box, weight: np.ndarray, hu: float | np.ndarray) -> None:
        """Alpha-blend `hu` into a box; weight [z, y, x] broadcasts over the box."""
        target = self.hu[box.index]
        target += weight * (hu - target)

    def ellipsoid(self, centre: Point, radii: Point) -> tuple[Box, np.ndarray]:
        """Box and weights of an ellipsoid."""
        box = self.box_around(*([c + sign * r for c, r in zip(centre, radii, strict=True)] for sign in (-1, 1)))
        return box, self.coverage((1 - box.radius(centre, radii)) * min(radii))

    def capsule(self, start: Point, end: Point, radius: float, end_radius: float | None = None) -> tuple[Box, np.ndarray]:
        """Box and weights of a tube with round ends; the radius changes linearly from `radius` to `end_radius`."""
        end_radius = radius if end_radius is None else end_radius
        first, last = np.asarray(start, np.float32), np.asarray(end, np.float32)
        widest = max(radius, end_radius)
        box = self.box_around(np.minimum(first, last) - widest, np.maximum(first, last) + widest)
        axis = last - first
        offset = [coordinates - c for coordinates, c in zip((box.x, box.y, box.z), first, strict=True)]
        t = np.clip(sum(o * a for o, a in zip(offset, axis, strict=True)) / max(float(axis @ axis), 1e-6), 0, 1)
        distance = np.sqrt(sum((o - t * a) ** 2 for o, a in zip(offset, axis, strict=True)))
        return box, self.coverage(radius + t * (end_radius - radius) - distance)

    def fill(self, shape: tuple[Box, np.ndarray], hu: float | np.ndarray, *, within: np.ndarray | None = None) -> None:
        """Blend a shape; `within`: weights [z, y, x] of the whole grid that clip it."""
        box, weight = shape
        self.blend(box, weight if within is None else weight * within[box.index], hu)

    def smooth_noise(self, generator: np.random.Generator, *, cells: int) -> np.ndarray:
        """Low-frequency noise with unit variance at the nodes: a random grid of cells^3, interpolated linearly."""
        noise = generator.standard_normal((cells,) * 3).astype(np.float32)
        for axis, count in enumerate(self.hu.shape):
            position = np.linspace(0, cells - 1, count, dtype=np.float32)
            low = np.minimum(position.astype(int), cells - 2)
            t = (position - low).reshape([-1 if a == axis else 1 for a in range(3)])
            noise = np.take(noise, low, axis) * (1 - t) + np.take(noise, low + 1, axis) * t
        return noise

    def change_since(self, hu_before: np.ndarray, threshold_hu: float = 40.0) -> Change:
        """Voxels that differ from an earlier copy of `hu` by more than a threshold."""
        difference = np.abs(self.hu - hu_before)
        voxels = difference > threshold_hu
        return Change(voxels, float(difference[voxels].mean()) if voxels.any() else 0.0)
