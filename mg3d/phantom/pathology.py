"""The 18 findings of CT-RATE, drawn into a body. Each drawer gives what a radiologist would say about it."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from sklearn.neighbors import KDTree

from mg3d.phantom.body import LEFT, LUNG_X, RIGHT, Body
from mg3d.phantom.canvas import Box, Canvas, Point

HEART_NORMAL, HEART_ENLARGED = (0.9, 1.05), (1.25, 1.5)
BOTH = "bilateral"


class Finding(NamedTuple):
    """One finding as it was drawn."""

    label: str
    side: str
    """right, left, bilateral or empty."""
    lobe: str
    """upper, middle, lower or empty."""
    centre_mm: tuple[float, float, float] | None
    """(x, y, z) from the centre of the scan."""
    size_mm: float
    """Largest radius, thickness or depth."""
    hu: float
    severity: int
    """1 to 3."""
    centres_mm: tuple[Point, ...] = ()
    """(x, y, z) from the centre of the scan, of every part (deposit, node, band, side); empty for what is all over the lung."""
    voxels: int = 0
    """How many it changed by more than 40 HU when it was drawn; cardiomegaly: how many the heart has."""


class Hand:
    """What a drawer works with."""

    def __init__(self, canvas: Canvas, body: Body, generator: np.random.Generator) -> None:
        self.canvas, self.body, self.generator = canvas, body, generator

    @cached_property
    def lung_places(self) -> dict[str, np.ndarray]:
        """Side -> (z, y, x) indices of its lung voxels, from the bottom up."""
        return {side: np.argwhere(weight > 0.9) for side, weight in self.body.lungs.items()}

    def uniform(self, low: float, high: float) -> float:
        """A number between two."""
        return float(self.generator.uniform(low, high))

    def radius(self, low: float, high: float) -> float:
        """A radius in mm, raised to what the grid can show."""
        return max(self.uniform(low, high), self.canvas.smallest_radius_mm)

    def side(self) -> str:
        """Right or left."""
        return RIGHT if self.generator.random() < 0.5 else LEFT

    def inside_lung(self, side: str, *, low: float = 0.0, high: float = 1.0) -> tuple[float, float, float]:
        """A random place of lung tissue, between two heights (0 bottom, 1 top of this lung)."""
        where = self.lung_places[side]
        bottom, top = where[0, 0], where[-1, 0]
        edges = [bottom + share * (top - bottom) for share in (low, high)]
        first, last = np.searchsorted(where[:, 0], edges[0]), np.searchsorted(where[:, 0], edges[1], side="right")
        z, y, x = where[self.generator.integers(first, max(last, first + 1))]
        return float(self.canvas.x[x]), float(self.canvas.y[y]), float(self.canvas.z[z])


def lobe_of(point: Point, side: str) -> str:
    """The lobe a point lies in, by oblique planes along z and y."""
    _, y, z = point
    if z - 0.6 * y > 5:
        return "upper"
    return "middle" if side == RIGHT and y < -10 else "lower"


def severity_of(value: float, low: float, high: float) -> int:
    """1, 2 or 3 by thirds of a range."""
    return 1 + min(2, int(3 * (value - low) / (high - low + 1e-9)))


def _medical_material(hand: Hand) -> Finding:
    scale = hand.body.scale
    x, y, z = 78 * scale, -72 * scale, 75 * scale
    box = hand.canvas.around((x - 23, y - 6, z - 20), (x + 23, y + 6, z + 20))
    weight = [hand.canvas.soft(half - np.abs(axis - c)) for axis, c, half in ((box.x, x, 22.5), (box.y, y, 5), (box.z, z, 20))]
    hand.canvas.blend(box, weight[0] * weight[1] * weight[2], 3000.0)
    (heart, _), lead = hand.body.heart, max(1.2, 0.4 * hand.canvas.voxel_mm)
    for end in (heart, (heart[0] - 30 * scale, heart[1], heart[2] + 20)):
        hand.canvas.fill(hand.canvas.capsule((x, y + 10, z), (-20 * scale, -5, z + 15), lead), 2000.0)
        hand.canvas.fill(hand.canvas.capsule((-20 * scale, -5, z + 15), end, lead), 2000.0)
    return Finding("Medical material", LEFT, "", (x, y, z), 45.0, 3000.0, 2)


def _arterial_calcification(hand: Hand) -> Finding:
    count, largest, centres = int(hand.generator.integers(3, 13)), 0.0, []
    for _ in range(count):
        start, end = hand.body.aorta[hand.generator.integers(len(hand.body.aorta))]
        share, angle = hand.uniform(0, 0.35), hand.uniform(0, 2 * math.pi)
        centre = np.asarray(start) + share * (np.asarray(end) - start)
        centre = centre + 12 * hand.body.scale * np.array([math.cos(angle), math.sin(angle), 0])
        radius = hand.radius(1.5, 5)
        hand.canvas.fill(hand.canvas.ellipsoid(centre, (radius,) * 3), hand.uniform(300, 1000))
        largest = max(largest, radius)
        centres.append(centre)
    return Finding("Arterial wall calcification", "", "", None, largest, 600.0, severity_of(count, 3, 12), tuple(centres))


def _cardiomegaly(hand: Hand) -> Finding:
    centre, radii = hand.body.heart  # the heart was drawn large with the body
    return Finding("Cardiomegaly", "", "", centre, radii[0], 45.0, severity_of(radii[0] / hand.body.scale / 60, *HEART_ENLARGED))


def _pericardial_effusion(hand: Hand) -> Finding:
    (centre, radii), depth, hu = hand.body.heart, hand.uniform(6, 20), hand.uniform(5, 25)
    depth = max(depth, hand.canvas.smallest_radius_mm)
    box, outer = hand.canvas.ellipsoid(centre, tuple(radius + depth for radius in radii))
    rho = np.sqrt(sum(((axis - c) / r) ** 2 for axis, c, r in zip((box.x, box.y, box.z), centre, radii, strict=True)))
    shell = outer * (1 - hand.canvas.soft((1 - rho) * min(radii)))
    free = (hand.canvas.hu[box.place] < 20) & (box.z > centre[2] - 45)
    hand.canvas.blend(box, shell * free, hu)
    return Finding("Pericardial effusion", "", "", centre, depth, hu, severity_of(depth, 6, 20))


def _coronary_calcification(hand: Hand) -> Finding:
    (centre, radii), count, places = hand.body.heart, int(hand.generator.integers(2, 9)), []
    for _ in range(count):
        angle, height = hand.uniform(-math.pi, 0), hand.uniform(0.1, 0.7)
        ring = math.sqrt(1 - height**2)
        direction = (ring * math.cos(angle), ring * math.sin(angle), height)
        place = [c + r * share for c, r, share in zip(centre, radii, direction, strict=True)]
        hand.canvas.fill(hand.canvas.ellipsoid(place, (hand.radius(1, 3),) * 3), hand.uniform(400, 900))
        places.append(place)
    size, severity = hand.radius(1, 3), severity_of(count, 2, 8)
    return Finding("Coronary artery wall calcification", "", "", None, size, 650.0, severity, tuple(places))


def _hiatal_hernia(hand: Hand) -> Finding:
    radius, scale = hand.radius(15, 40), hand.body.scale
    centre = (5 * scale, 30 * scale, -85 * scale + 0.35 * radius)
    box, weight = hand.canvas.ellipsoid(centre, (radius, 0.8 * radius, radius))
    hand.canvas.blend(box, weight, 25.0)
    air = weight * (box.y < centre[1] - 0.15 * radius)  # the patient lies on the back: air is anterior
    box_inner, inner = hand.canvas.ellipsoid(centre, (radius - 4, 0.8 * radius - 4, radius - 4))
    wall_free = np.zeros_like(weight)
    wall_free[tuple(slice(i.start - b.start, i.stop - b.start) for i, b in zip(box_inner.place, box.place, strict=True))] = inner
    hand.canvas.blend(box, air * wall_free, -950.0)
    return Finding("Hiatal hernia", "", "", centre, radius, 25.0, severity_of(radius, 15, 40))


def _lymphadenopathy(hand: Hand) -> Finding:
    stations = ((-14, 2, 62), (-10, 18, 18), (-36, 20, 4), (36, 20, 4), (14, 5, 50))
    count, largest, centres = int(hand.generator.integers(1, 7)), 0.0, []
    for place in hand.generator.permutation(len(stations))[:count]:
        radius = hand.radius(5, 12.5)
        centre = [value * hand.body.scale + hand.uniform(-4, 4) for value in stations[place]]
        hand.canvas.fill(hand.canvas.ellipsoid(centre, (radius, 0.9 * radius, 1.3 * radius)), hand.uniform(35, 50))
        largest = max(largest, radius)
        centres.append(centre)
    return Finding("Lymphadenopathy", "", "", None, 2 * largest, 42.0, severity_of(largest, 5, 12.5), tuple(centres))


def _emphysema(hand: Hand) -> Finding:
    share, done, lung = hand.uniform(0.03, 0.25), 0.0, hand.body.both_lungs
    wanted = share * float(lung.sum()) * hand.canvas.voxel_mm**3
    while done < wanted:
        radius = hand.radius(2, 8)
        centre = hand.inside_lung(hand.side(), low=float(hand.generator.beta(2, 1.2)) * 0.85)
        hand.canvas.fill(hand.canvas.ellipsoid(centre, (radius,) * 3), -980.0, within=lung)
        done += 4.19 * radius**3
    return Finding("Emphysema", BOTH, "upper", None, 8.0, -980.0, severity_of(share, 0.03, 0.25))


def _atelectasis(hand: Hand) -> Finding:
    side, thickness, length = hand.side(), hand.uniform(3, 8), hand.uniform(30, 70)
    x, y, z = hand.inside_lung(side, low=0.05, high=0.3)
    tilt = hand.uniform(-0.3, 0.3)
    half, depth = length / 2, max(thickness, hand.canvas.smallest_radius_mm) / 2
    box = hand.canvas.around((x - half, y - half, z - half), (x + half, y + half, z + half))
    plate = hand.canvas.soft(depth - np.abs(box.z - z - tilt * (box.x - x)))
    disc = hand.canvas.soft(half - np.sqrt((box.x - x) ** 2 + (box.y - y) ** 2))
    hand.canvas.fill((box, plate * disc), hand.uniform(0, 40), within=hand.body.lungs[side])
    return Finding("Atelectasis", side, "lower", (x, y, z), length, 20.0, severity_of(length, 30, 70))


def _lung_nodule(hand: Hand) -> Finding:
    side, radius = hand.side(), hand.radius(2.5, 12)
    centre = hand.inside_lung(side)
    hu = float(hand.generator.choice([30.0, -250.0, -600.0, 300.0], p=[0.6, 0.12, 0.13, 0.15]))
    hand.canvas.fill(hand.canvas.ellipsoid(centre, (radius,) * 3), hu, within=hand.body.lungs[side])
    return Finding("Lung nodule", side, lobe_of(centre, side), centre, 2 * radius, hu, severity_of(radius, 2.5, 12))


def _lung_opacity(hand: Hand) -> Finding:
    count, largest, centres = int(hand.generator.integers(1, 4)), 0.0, []
    side = hand.side()
    texture = 1 + 0.25 * hand.canvas.smooth_noise(hand.generator, cells=20)
    for place in range(count):
        where = side if place == 0 else hand.side()
        radius, centre = hand.radius(12, 45), hand.inside_lung(where)
        box, weight = hand.canvas.ellipsoid(centre, (radius, radius, 0.8 * radius))
        haze = -850 + hand.uniform(250, 400) * texture[box.place]
        hand.canvas.blend(box, weight * hand.body.lungs[where][box.place] * (hand.canvas.hu[box.place] < haze), haze)
        largest = max(largest, radius)
        centres.append(centre)
    first, severity = centres[0], severity_of(largest, 12, 45)
    return Finding("Lung opacity", side, lobe_of(first, side), first, largest, -520.0, severity, tuple(centres))


def _fibrotic_sequela(hand: Hand) -> Finding:
    side, count, middles = hand.side(), int(hand.generator.integers(2, 7)), []
    thickness = max(hand.uniform(1, 2.5), 0.5 * hand.canvas.voxel_mm)
    for _ in range(count):
        start = np.array(hand.inside_lung(side, low=0.65))
        end = start + (np.sign(start[0]) * hand.uniform(15, 45), hand.uniform(-20, 20), hand.uniform(-10, 30))
        hand.canvas.fill(hand.canvas.capsule(start, end, thickness), hand.uniform(-100, 40), within=hand.body.lungs[side])
        middles.append((start + end) / 2)
    severity = severity_of(count, 2, 6)
    return Finding("Pulmonary fibrotic sequela", side, "upper", tuple(start), thickness, -30.0, severity, tuple(middles))


def _pleural_effusion(hand: Hand) -> Finding:
    both, side, depth = hand.generator.random() < 0.4, hand.side(), hand.uniform(8, 60)
    hu, middles = hand.uniform(0, 20), []
    box = hand.canvas.everywhere()
    for place in (RIGHT, LEFT) if both else (side,):
        here = hand.body.lungs[place] > 0.5
        back = float(hand.canvas.y[np.flatnonzero(here.any((0, 2)))[-1]])
        bottom = float(hand.canvas.z[np.flatnonzero(here.any((1, 2)))[0]])
        level = back - depth * np.clip(1.15 - (box.z - bottom) / 170, 0, 1)  # the fluid is deepest at the base
        meniscus = level - 6 * ((box.x - LUNG_X[place] * hand.body.scale) / 50) ** 2
        fluid = hand.canvas.soft(box.y - meniscus) * hand.body.lungs[place]
        hand.canvas.blend(box, fluid, hu)
        middles += [_middle(box, fluid)] if fluid.any() else []
    where = BOTH if both else side
    return Finding("Pleural effusion", where, "lower", None, depth, hu, severity_of(depth, 8, 60), tuple(middles))


def _middle(box: Box, weight: np.ndarray) -> Point:
    """The centre of mass (x, y, z) of weights [z, y, x] that are not all 0."""
    total = weight.sum(dtype=np.float64)
    return tuple(float((weight * axis).sum(dtype=np.float64) / total) for axis in (box.x, box.y, box.z))


def _mosaic(hand: Hand) -> Finding:
    cells = [hand.inside_lung(hand.side()) for _ in range(20)]
    level = hand.generator.uniform(-120, 120, len(cells)).astype(np.float32)
    where, nearest, _ = _nearest_cell(hand, np.array(cells, np.float32))
    hand.canvas.hu[where] += hand.body.both_lungs[where] * level[nearest]
    return Finding("Mosaic attenuation pattern", BOTH, "", None, 40.0, 120.0, 2)


def _peribronchial_thickening(hand: Hand) -> Finding:
    extra = hand.uniform(1.5, 3)
    for pieces in hand.body.bronchi.values():
        for start, end, radius in pieces:
            box, outer = hand.canvas.capsule(start, end, radius + 2 + extra, 0.8 * radius + 2 + extra)
            hand.canvas.blend(box, outer * (hand.canvas.hu[box.place] > -930), 30.0)
    return Finding("Peribronchial thickening", BOTH, "", None, extra, 30.0, severity_of(extra, 1.5, 3))


def _consolidation(hand: Hand) -> Finding:
    side, radius = hand.side(), hand.radius(15, 45)
    centre = hand.inside_lung(side)
    lung = hand.body.lungs[side]
    hand.canvas.fill(hand.canvas.ellipsoid(centre, (0.8 * radius, radius, radius)), 30.0, within=lung)
    for _ in range(3):
        end = np.asarray(centre) + hand.generator.uniform(-0.8, 0.8, 3) * radius
        hand.canvas.fill(hand.canvas.capsule(centre, end, 1.8), -900.0, within=lung)  # air bronchogram
    return Finding("Consolidation", side, lobe_of(centre, side), centre, radius, 30.0, severity_of(radius, 15, 45))


def _bronchiectasis(hand: Hand) -> Finding:
    side, factor = hand.side(), hand.uniform(1.8, 3)
    start, end, radius = hand.body.bronchi[side][1 + int(hand.generator.integers(3))]
    hand.canvas.fill(hand.canvas.capsule(start, end, factor * radius + 2), 30.0)
    hand.canvas.fill(hand.canvas.capsule(start, end, factor * radius), -990.0)
    return Finding("Bronchiectasis", side, lobe_of(end, side), tuple(end), factor * radius, -990.0, severity_of(factor, 1.8, 3))


def _septal_thickening(hand: Hand) -> Finding:
    low, high = (np.array([side(axis) for axis in (hand.canvas.x, hand.canvas.y, hand.canvas.z)]) for side in (np.min, np.max))
    cells = hand.generator.uniform(low, high, (260, 3)).astype(np.float32)
    where, _, gap = _nearest_cell(hand, cells)
    width = max(hand.uniform(1, 2), 0.35 * hand.canvas.voxel_mm)
    wall = 0.7 * np.clip(width / np.maximum(gap, 1e-3), 0, 1) * (gap < 2 * width) * hand.body.both_lungs[where]
    hand.canvas.hu[where] += wall * (-300.0 - hand.canvas.hu[where])
    return Finding("Interlobular septal thickening", BOTH, "", None, width, -300.0, 2)


def _nearest_cell(hand: Hand, cells: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Lung voxels as (z, y, x) indices, the nearest cell's index of each, and by how many mm the second is further."""
    canvas, where = hand.canvas, np.nonzero(hand.body.both_lungs > 0)
    points = np.stack([axis[place] for axis, place in zip((canvas.x, canvas.y, canvas.z), reversed(where), strict=True)], 1)
    away, index = KDTree(cells).query(points, k=2)
    return where, index[:, 0], away[:, 1] - away[:, 0]


DRAWERS: dict[str, Callable[[Hand], Finding]] = {
    "Mosaic attenuation pattern": _mosaic,
    "Emphysema": _emphysema,
    "Lung opacity": _lung_opacity,
    "Interlobular septal thickening": _septal_thickening,
    "Bronchiectasis": _bronchiectasis,
    "Peribronchial thickening": _peribronchial_thickening,
    "Pulmonary fibrotic sequela": _fibrotic_sequela,
    "Atelectasis": _atelectasis,
    "Consolidation": _consolidation,
    "Lung nodule": _lung_nodule,
    "Pleural effusion": _pleural_effusion,
    "Lymphadenopathy": _lymphadenopathy,
    "Cardiomegaly": _cardiomegaly,
    "Pericardial effusion": _pericardial_effusion,
    "Hiatal hernia": _hiatal_hernia,
    "Arterial wall calcification": _arterial_calcification,
    "Coronary artery wall calcification": _coronary_calcification,
    "Medical material": _medical_material,
}
"""In the order in which they are drawn: diffuse first, dense last."""
