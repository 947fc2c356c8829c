"""A chest CT with lesions of one's choice and where exactly they are. Places are (x, y, z) in mm, LPS, from the body's centre."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mg3d.phantom.body import draw_body
from mg3d.phantom.canvas import Canvas, Point
from mg3d.phantom.case import reconstruct
from mg3d.phantom.pathology import DRAWERS, HEART_NORMAL, Hand
from mg3d.phantom.sampling import Patient, sample_patient

HAZE_HU = -450.0
AIRWAYS_FILLED = 2
"""Voxels by which vessels and airways in the lung are bridged."""


class Scan(NamedTuple):
    """A volume on a grid whose slices may be thicker than its pixels. Axes z, y, x: to the top, the back, the left."""

    hu: np.ndarray
    """int16."""
    mask: np.ndarray
    """uint8, same shape."""
    spacing: tuple[float, float, float]
    """mm along z, y, x."""
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre of the first voxel (x, y, z) in mm, LPS."""


class Chest:
    """A body that lesions are drawn into; `mask` keeps where each is."""

    def __init__(self, words: Sequence[int], *, voxels_in_plane: int, others: Sequence[str] = ()) -> None:
        """others: findings of CT-RATE that are no lesions of the task, drawn first."""
        self.words = tuple(words)
        self.generator = np.random.default_rng(words)
        self.patient: Patient = sample_patient(self.generator, vascular=0.0)
        self.canvas = Canvas(voxels_in_plane=voxels_in_plane, length_mm=self.patient.length)
        heart = float(self.generator.uniform(*HEART_NORMAL))
        body = draw_body(self.canvas, self.patient, self.generator, heart_factor=heart)
        self.hand = Hand(self.canvas, body, self.generator)
        self.lung = {side: _closed(weight > 0.5) for side, weight in body.lungs.items()}
        """Side -> bool [z, y, x], vessels and airways included."""
        for label in others:
            DRAWERS[label](self.hand)
        self.mask = np.zeros(self.canvas.hu.shape, np.uint8)

    def lesion(self, centre: Point, radii: Point, hu: float, *, side: str, value: int = 1) -> np.ndarray:
        """Draws an ellipsoid into a lung, where denser things stay; gives its voxels (bool), at least half full."""
        box, weight = self.canvas.ellipsoid(centre, radii)
        weight = weight * self.lung[side][box.place]
        self.canvas.blend(box, weight * (self.canvas.hu[box.place] < hu), hu)
        voxels = np.zeros(self.mask.shape, bool)
        voxels[box.place] = weight > 0.5
        self.mask[voxels] = value
        return voxels

    def peripheral(self, side: str) -> Point:
        """A place (x, y, z) near the surface of a lung: the outermost of some."""
        places = [self.hand.inside_lung(side, low=0.1, high=0.8) for _ in range(8)]
        return max(places, key=lambda place: abs(place[0]) / 130 + abs(place[1] - 5) / 80)

    def deep(self, side: str, distance_mm: float) -> Point:
        """A place (x, y, z) in a lung, that far from its surface, or as far as there is."""
        depth = ndimage.distance_transform_edt(self.lung[side]) * self.canvas.voxel_mm
        where = np.argwhere(depth >= min(distance_mm, 0.9 * float(depth.max())))
        z, y, x = where[self.generator.integers(len(where))]
        return float(self.canvas.x[x]), float(self.canvas.y[y]), float(self.canvas.z[z])

    def scan(self, *, slice_factor: float = 1.0) -> Scan:
        """The volume with noise. slice_factor: distance of the slices in pixels, at least 1."""
        voxel = self.canvas.voxel_mm
        count = 1 + int((len(self.canvas.z) - 1) / slice_factor)
        places = np.arange(count) * slice_factor
        low = np.minimum(places.astype(int), len(self.canvas.z) - 1)
        share = (places - low)[:, None, None].astype(np.float32)
        hu = self.canvas.hu
        thick = hu[low] * (1 - share) + hu[np.minimum(low + 1, len(hu) - 1)] * share
        near = np.minimum(np.rint(places).astype(int), len(hu) - 1)
        origin = tuple(float(axis[0]) for axis in (self.canvas.x, self.canvas.y, self.canvas.z))
        return Scan(
            reconstruct(thick, (*self.words, 1), sharp=False), self.mask[near], (voxel * slice_factor, voxel, voxel), origin
        )


def _closed(lung: np.ndarray) -> np.ndarray:
    padded = np.pad(lung, AIRWAYS_FILLED)
    return ndimage.binary_closing(padded, iterations=AIRWAYS_FILLED)[(slice(AIRWAYS_FILLED, -AIRWAYS_FILLED),) * 3]


def opacities(chest: Chest, sides: Sequence[str], *, low_mm: float, high_mm: float) -> None:
    """Hazy peripheral lesions, one for every entry of `sides`."""
    for side in sides:
        radius = chest.hand.radius(low_mm, high_mm)
        chest.lesion(chest.peripheral(side), (radius, radius, 0.8 * radius), HAZE_HU + chest.hand.uniform(-80, 80), side=side)
