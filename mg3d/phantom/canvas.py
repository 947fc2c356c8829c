"""A volume to draw on in millimetres. Axes z, y, x with +z superior, +y posterior, +x patient left; the origin is its centre."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

FIELD_MM = 360.0
"""Side of the field of view along y and x."""
Point = Sequence[float]
"""(x, y, z) in mm, as anatomy books give it."""


class Box(NamedTuple):
    """A part of the canvas and the coordinates of its voxels in mm, ready to broadcast."""

    place: tuple[slice, slice, slice]
    z: np.ndarray
    y: np.ndarray
    x: np.ndarray


class Change(NamedTuple):
    """What a drawing has changed."""

    voxels: np.ndarray
    """bool [z, y, x]."""
    contrast_hu: float
    """Mean absolute change over these voxels."""


class Canvas:
    """HU on a grid of `voxels_in_plane` voxels along y and x and cubic voxels."""

    def __init__(self, *, voxels_in_plane: int, length_mm: float) -> None:
        self.voxel_mm = FIELD_MM / voxels_in_plane
        depth = round(length_mm / self.voxel_mm)
        self.z, self.y, self.x = (
            ((np.arange(count) - (count - 1) / 2) * self.voxel_mm).astype(np.float32)
            for count in (depth, voxels_in_plane, voxels_in_plane)
        )
        self.hu = np.full((depth, voxels_in_plane, voxels_in_plane), -1000.0, dtype=np.float32)

    @property
    def smallest_radius_mm(self) -> float:
        """What is smaller cannot be seen on this grid; findings are drawn at least this large."""
        return 1.2 * self.voxel_mm

    def everywhere(self) -> Box:
        """The whole canvas."""
        return self._box((slice(None),) * 3)

    def around(self, low: Point, high: Point) -> Box:
        """The part between two corners (x, y, z), a voxel wider."""
        sides = ((self.z, 2), (self.y, 1), (self.x, 0))
        return self._box(
            tuple(
                slice(*np.searchsorted(axis, (low[index] - self.voxel_mm, high[index] + self.voxel_mm)).tolist())
                for axis, index in sides
            )
        )

    def _box(self, place: tuple[slice, slice, slice]) -> Box:
        z, y, x = place
        return Box(place, self.z[z, None, None], self.y[None, y, None], self.x[None, None, x])

    def soft(self, depth_mm: np.ndarray) -> np.ndarray:
        """Share of a voxel inside a body whose surface lies `depth_mm` away (positive inside): the partial-volume ramp."""
        return np.clip(depth_mm / self.voxel_mm + 0.5, 0.0, 1.0)

    def blend(self, box: Box, weight: np.ndarray, hu: float | np.ndarray) -> None:
        """Replaces a share (`weight`, broadcast over the box) of every voxel by `hu`."""
        part = self.hu[box.place]
        part += weight * (hu - part)

    def ellipsoid(self, centre: Point, radii: Point) -> tuple[Box, np.ndarray]:
        """Box and weight of an ellipsoid."""
        box = self.around(*([c + sign * r for c, r in zip(centre, radii, strict=True)] for sign in (-1, 1)))
        rho = np.sqrt(sum(((axis - c) / r) ** 2 for axis, c, r in zip((box.x, box.y, box.z), centre, radii, strict=True)))
        return box, self.soft((1 - rho) * min(radii))

    def capsule(self, start: Point, end: Point, radius: float, end_radius: float | None = None) -> tuple[Box, np.ndarray]:
        """Box and weight of a tube with round ends whose radius goes from `radius` to `end_radius`."""
        end_radius = radius if end_radius is None else end_radius
        first, last = np.asarray(start, np.float32), np.asarray(end, np.float32)
        widest = max(radius, end_radius)
        box = self.around(np.minimum(first, last) - widest, np.maximum(first, last) + widest)
        along = last - first
        offset = [axis - c for axis, c in zip((box.x, box.y, box.z), first, strict=True)]
        share = np.clip(sum(o * a for o, a in zip(offset, along, strict=True)) / max(float(along @ along), 1e-6), 0, 1)
        away = np.sqrt(sum((o - share * a) ** 2 for o, a in zip(offset, along, strict=True)))
        return box, self.soft(radius + share * (end_radius - radius) - away)

    def fill(self, shape: tuple[Box, np.ndarray], hu: float | np.ndarray, *, within: np.ndarray | None = None) -> None:
        """Draws a shape; `within` [z, y, x] are weights of the whole canvas that it must stay in."""
        box, weight = shape
        self.blend(box, weight if within is None else weight * within[box.place], hu)

    def smooth_noise(self, generator: np.random.Generator, *, cells: int) -> np.ndarray:
        """Low-frequency noise of unit variance over the canvas, from a grid of cells^3 values."""
        coarse = generator.standard_normal((cells,) * 3).astype(np.float32)
        for axis, count in enumerate(self.hu.shape):
            place = np.linspace(0, cells - 1, count, dtype=np.float32)
            low = np.minimum(place.astype(int), cells - 2)
            share = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
            coarse = np.take(coarse, low, axis) * (1 - share) + np.take(coarse, low + 1, axis) * share
        return coarse

    @contextmanager
    def watch(self, threshold_hu: float = 40.0) -> Callable[[], Change]:
        """What is drawn inside the block; the value is a function that tells it afterwards."""
        before = self.hu.copy()

        def tell() -> Change:
            difference = np.abs(self.hu - before)
            voxels = difference > threshold_hu
            return Change(voxels, float(difference[voxels].mean()) if voxels.any() else 0.0)

        yield tell
