"""The 18 findings of CT-RATE, drawn into a body. Each drawer returns the ground truth of what it drew."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from sklearn.neighbors import KDTree

from mg3d.phantom.body import LEFT, LUNG_X, RIGHT, draw_body
from mg3d.phantom.canvas import Box, Canvas, Point
from mg3d.phantom.sampling import sample_patient

HEART_NORMAL, HEART_ENLARGED = (0.9, 1.05), (1.25, 1.5)
BILATERAL = "bilateral"


class DrawnFinding(NamedTuple):
    """Ground truth of one finding."""

    label: str = ""
    side: str = ""
    """right, left, bilateral, or empty."""
    lobe: str = ""
    """upper, middle, lower, or empty."""
    centre_mm: tuple[float, float, float] | None = None
    """(x, y, z) from the scan centre."""
    size_mm: float = 0.0
    """Largest radius, thickness or depth."""
    hu: float = 0.0
    severity: int = 2
    """1 to 3."""
    centres_mm: tuple[Point, ...] = ()
    """(x, y, z) from the scan centre of every part (deposit, node, band, side); empty for diffuse findings."""
    voxels: int = 0
    """Number of voxels changed by more than 40 HU; for cardiomegaly the size of the heart."""


class DrawContext:
    """A random patient's body on a canvas, and the random generator of the drawers."""

    def __init__(
        self, generator: np.random.Generator, *, voxels_in_plane: int, vascular: float = 0.0, enlarged_heart: bool = False
    ) -> None:
        self.generator = generator
        self.patient = sample_patient(generator, vascular=vascular)
        self.canvas = Canvas(voxels_in_plane=voxels_in_plane, length_mm=self.patient.length)
        heart_factor = float(generator.uniform(*(HEART_ENLARGED if enlarged_heart else HEART_NORMAL)))
        self.body = draw_body(self.canvas, self.patient, generator, heart_factor=heart_factor)

    @cached_property
    def lung_voxels(self) -> dict[str, np.ndarray]:
        """Side -> indices [n, (z, y, x)] of its lung voxels, from inferior to superior."""
        return {side: np.argwhere(weight > 0.9) for side, weight in self.body.lungs.items()}

    def uniform(self, low: float, high: float) -> float:
        """Uniform random number."""
        return float(self.generator.uniform(low, high))

    def radius(self, low: float, high: float) -> float:
        """Uniform random radius in mm, at least the smallest one visible on this grid."""
        return max(self.uniform(low, high), self.canvas.min_radius_mm)

    def side(self) -> str:
        """Random side."""
        return RIGHT if self.generator.random() < 0.5 else LEFT

    def lung_point(self, side: str, *, low: float = 0.0, high: float = 1.0) -> tuple[float, float, float]:
        """Random point in a lung between two relative heights (0 = base, 1 = apex)."""
        voxels = self.lung_voxels[side]
        bottom, top = voxels[0, 0], voxels[-1, 0]
        limits = [bottom + fraction * (top - bottom) for fraction in (low, high)]
        first, last = np.searchsorted(voxels[:, 0], limits[0]), np.searchsorted(voxels[:, 0], limits[1], side="right")
        return self.canvas.point(voxels[self.generator.integers(first, max(last, first + 1))])


def lobe_of(point: Point, side: str) -> str:
    """Lobe of a point; the fissures are oblique planes along z and y."""
    _, y, z = point
    if z - 0.6 * y > 5:
        return "upper"
    return "middle" if side == RIGHT and y < -10 else "lower"


def severity_of(value: float, low: float, high: float) -> int:
    """1, 2 or 3 by thirds of a range."""
    return 1 + min(2, int(3 * (value - low) / (high - low + 1e-9)))


DRAWERS: dict[str, Callable[[DrawContext], DrawnFinding]] = {}
"""Label -> drawer, in drawing order (that of this file): diffuse findings first, dense ones last."""


def _draws(label: str) -> Callable[[Callable[[DrawContext], DrawnFinding]], Callable[[DrawContext], DrawnFinding]]:
    """Register the drawer of a label."""

    def register(drawer: Callable[[DrawContext], DrawnFinding]) -> Callable[[DrawContext], DrawnFinding]:
        DRAWERS[label] = lambda context: drawer(context)._replace(label=label)
        return drawer

    return register


@_draws("Mosaic attenuation pattern")
def _mosaic(context: DrawContext) -> DrawnFinding:
    cells = [context.lung_point(context.side()) for _ in range(20)]
    level = context.generator.uniform(-120, 120, len(cells)).astype(np.float32)
    voxels, nearest, _ = _nearest_cell(context, np.array(cells, np.float32))
    context.canvas.hu[voxels] += context.body.both_lungs[voxels] * level[nearest]
    return DrawnFinding(side=BILATERAL, size_mm=40.0, hu=120.0)


@_draws("Emphysema")
def _emphysema(context: DrawContext) -> DrawnFinding:
    fraction, drawn_mm3, lung = context.uniform(0.03, 0.25), 0.0, context.body.both_lungs
    target_mm3 = fraction * float(lung.sum()) * context.canvas.voxel_mm**3
    while drawn_mm3 < target_mm3:
        radius = context.radius(2, 8)
        centre = context.lung_point(context.side(), low=float(context.generator.beta(2, 1.2)) * 0.85)
        context.canvas.fill(context.canvas.ellipsoid(centre, (radius,) * 3), -980.0, within=lung)
        drawn_mm3 += 4.19 * radius**3
    return DrawnFinding(
        side=BILATERAL, lobe="upper", size_mm=8.0, hu=-980.0, severity=severity_of(fraction, 0.03, 0.25)
    )  # fmt: skip


@_draws("Lung opacity")
def _lung_opacity(context: DrawContext) -> DrawnFinding:
    count, largest, centres = int(context.generator.integers(1, 4)), 0.0, []
    side = context.side()
    texture = 1 + 0.25 * context.canvas.smooth_noise(context.generator, cells=20)
    for part in range(count):
        part_side = side if part == 0 else context.side()
        radius, centre = context.radius(12, 45), context.lung_point(part_side)
        box, weight = context.canvas.ellipsoid(centre, (radius, radius, 0.8 * radius))
        haze = -850 + context.uniform(250, 400) * texture[box.index]
        lung = context.body.lungs[part_side][box.index]
        context.canvas.blend(box, weight * lung * (context.canvas.hu[box.index] < haze), haze)
        largest = max(largest, radius)
        centres.append(centre)
    return DrawnFinding(
        side=side, lobe=lobe_of(centres[0], side), centre_mm=centres[0], size_mm=largest, hu=-520.0,
        severity=severity_of(largest, 12, 45), centres_mm=tuple(centres),
    )  # fmt: skip


@_draws("Interlobular septal thickening")
def _septal_thickening(context: DrawContext) -> DrawnFinding:
    canvas = context.canvas
    low, high = (np.array([limit(axis) for axis in (canvas.x, canvas.y, canvas.z)]) for limit in (np.min, np.max))
    cells = context.generator.uniform(low, high, (260, 3)).astype(np.float32)
    voxels, _, gap = _nearest_cell(context, cells)
    width = max(context.uniform(1, 2), 0.35 * canvas.voxel_mm)
    wall = 0.7 * np.clip(width / np.maximum(gap, 1e-3), 0, 1) * (gap < 2 * width) * context.body.both_lungs[voxels]
    canvas.hu[voxels] += wall * (-300.0 - canvas.hu[voxels])
    return DrawnFinding(side=BILATERAL, size_mm=width, hu=-300.0)


@_draws("Bronchiectasis")
def _bronchiectasis(context: DrawContext) -> DrawnFinding:
    side, factor = context.side(), context.uniform(1.8, 3)
    start, end, radius = context.body.bronchi[side][1 + int(context.generator.integers(3))]
    context.canvas.fill(context.canvas.capsule(start, end, factor * radius + 2), 30.0)
    context.canvas.fill(context.canvas.capsule(start, end, factor * radius), -990.0)
    return DrawnFinding(
        side=side, lobe=lobe_of(end, side), centre_mm=tuple(end), size_mm=factor * radius, hu=-990.0,
        severity=severity_of(factor, 1.8, 3),
    )  # fmt: skip


@_draws("Peribronchial thickening")
def _peribronchial_thickening(context: DrawContext) -> DrawnFinding:
    extra = context.uniform(1.5, 3)
    for branches in context.body.bronchi.values():
        for start, end, radius in branches:
            box, outer = context.canvas.capsule(start, end, radius + 2 + extra, 0.8 * radius + 2 + extra)
            context.canvas.blend(box, outer * (context.canvas.hu[box.index] > -930), 30.0)
    return DrawnFinding(side=BILATERAL, size_mm=extra, hu=30.0, severity=severity_of(extra, 1.5, 3))


@_draws("Pulmonary fibrotic sequela")
def _fibrotic_sequela(context: DrawContext) -> DrawnFinding:
    side, count, middles = context.side(), int(context.generator.integers(2, 7)), []
    thickness = max(context.uniform(1, 2.5), 0.5 * context.canvas.voxel_mm)
    for _ in range(count):
        start = np.array(context.lung_point(side, low=0.65))
        end = start + (np.sign(start[0]) * context.uniform(15, 45), context.uniform(-20, 20), context.uniform(-10, 30))
        band = context.canvas.capsule(start, end, thickness)
        context.canvas.fill(band, context.uniform(-100, 40), within=context.body.lungs[side])
        middles.append((start + end) / 2)
    return DrawnFinding(
        side=side, lobe="upper", centre_mm=tuple(start), size_mm=thickness, hu=-30.0, severity=severity_of(count, 2, 6),
        centres_mm=tuple(middles),
    )  # fmt: skip


@_draws("Atelectasis")
def _atelectasis(context: DrawContext) -> DrawnFinding:
    canvas, side = context.canvas, context.side()
    thickness, length = context.uniform(3, 8), context.uniform(30, 70)
    x, y, z = context.lung_point(side, low=0.05, high=0.3)
    tilt = context.uniform(-0.3, 0.3)
    half, depth = length / 2, max(thickness, canvas.min_radius_mm) / 2
    box = canvas.box_around((x - half, y - half, z - half), (x + half, y + half, z + half))
    plate = canvas.coverage(depth - np.abs(box.z - z - tilt * (box.x - x)))
    disc = canvas.coverage(half - np.sqrt((box.x - x) ** 2 + (box.y - y) ** 2))
    canvas.fill((box, plate * disc), context.uniform(0, 40), within=context.body.lungs[side])
    return DrawnFinding(
        side=side, lobe="lower", centre_mm=(x, y, z), size_mm=length, hu=20.0, severity=severity_of(length, 30, 70)
    )  # fmt: skip


@_draws("Consolidation")
def _consolidation(context: DrawContext) -> DrawnFinding:
    side, radius = context.side(), context.radius(15, 45)
    centre = context.lung_point(side)
    lung = context.body.lungs[side]
    context.canvas.fill(context.canvas.ellipsoid(centre, (0.8 * radius, radius, radius)), 30.0, within=lung)
    for _ in range(3):
        end = np.asarray(centre) + context.generator.uniform(-0.8, 0.8, 3) * radius
        context.canvas.fill(context.canvas.capsule(centre, end, 1.8), -900.0, within=lung)  # air bronchogram
    return DrawnFinding(
        side=side, lobe=lobe_of(centre, side), centre_mm=centre, size_mm=radius, hu=30.0, severity=severity_of(radius, 15, 45)
    )  # fmt: skip


@_draws("Lung nodule")
def _lung_nodule(context: DrawContext) -> DrawnFinding:
    side, radius = context.side(), context.radius(2.5, 12)
    centre = context.lung_point(side)
    hu = float(context.generator.choice([30.0, -250.0, -600.0, 300.0], p=[0.6, 0.12, 0.13, 0.15]))
    context.canvas.fill(context.canvas.ellipsoid(centre, (radius,) * 3), hu, within=context.body.lungs[side])
    return DrawnFinding(
        side=side, lobe=lobe_of(centre, side), centre_mm=centre, size_mm=2 * radius, hu=hu, severity=severity_of(radius, 2.5, 12)
    )  # fmt: skip


@_draws("Pleural effusion")
def _pleural_effusion(context: DrawContext) -> DrawnFinding:
    both, side, depth = context.generator.random() < 0.4, context.side(), context.uniform(8, 60)
    hu, centres, canvas = context.uniform(0, 20), [], context.canvas
    box = canvas.full_box()
    for part in (RIGHT, LEFT) if both else (side,):
        lung = context.body.lungs[part] > 0.5
        back = float(canvas.y[np.flatnonzero(lung.any((0, 2)))[-1]])
        bottom = float(canvas.z[np.flatnonzero(lung.any((1, 2)))[0]])
        level = back - depth * np.clip(1.15 - (box.z - bottom) / 170, 0, 1)  # the fluid is deepest at the base
        meniscus = level - 6 * ((box.x - LUNG_X[part] * context.body.scale) / 50) ** 2
        fluid = canvas.coverage(box.y - meniscus) * context.body.lungs[part]
        canvas.blend(box, fluid, hu)
        centres += [_centre_of_mass(box, fluid)] if fluid.any() else []
    return DrawnFinding(
        side=BILATERAL if both else side, lobe="lower", size_mm=depth, hu=hu, severity=severity_of(depth, 8, 60),
        centres_mm=tuple(centres),
    )  # fmt: skip


@_draws("Lymphadenopathy")
def _lymphadenopathy(context: DrawContext) -> DrawnFinding:
    stations = ((-14, 2, 62), (-10, 18, 18), (-36, 20, 4), (36, 20, 4), (14, 5, 50))
    count, largest, centres = int(context.generator.integers(1, 7)), 0.0, []
    for station in context.generator.permutation(len(stations))[:count]:
        radius = context.radius(5, 12.5)
        centre = [value * context.body.scale + context.uniform(-4, 4) for value in stations[station]]
        context.canvas.fill(context.canvas.ellipsoid(centre, (radius, 0.9 * radius, 1.3 * radius)), context.uniform(35, 50))
        largest = max(largest, radius)
        centres.append(centre)
    return DrawnFinding(size_mm=2 * largest, hu=42.0, severity=severity_of(largest, 5, 12.5), centres_mm=tuple(centres))


@_draws("Cardiomegaly")
def _cardiomegaly(context: DrawContext) -> DrawnFinding:
    centre, radii = context.body.heart  # the enlarged heart was drawn with the body
    severity = severity_of(radii[0] / context.body.scale / 60, *HEART_ENLARGED)
    return DrawnFinding(centre_mm=centre, size_mm=radii[0], hu=45.0, severity=severity)


@_draws("Pericardial effusion")
def _pericardial_effusion(context: DrawContext) -> DrawnFinding:
    (centre, radii), depth, hu = context.body.heart, context.uniform(6, 20), context.uniform(5, 25)
    canvas, depth = context.canvas, max(depth, context.canvas.min_radius_mm)
    box, outer = canvas.ellipsoid(centre, tuple(radius + depth for radius in radii))
    shell = outer * (1 - canvas.coverage((1 - box.radius(centre, radii)) * min(radii)))
    free = (canvas.hu[box.index] < 20) & (box.z > centre[2] - 45)
    canvas.blend(box, shell * free, hu)
    return DrawnFinding(centre_mm=centre, size_mm=depth, hu=hu, severity=severity_of(depth, 6, 20))


@_draws("Hiatal hernia")
def _hiatal_hernia(context: DrawContext) -> DrawnFinding:
    radius, scale, canvas = context.radius(15, 40), context.body.scale, context.canvas
    centre = (5 * scale, 30 * scale, -85 * scale + 0.35 * radius)
    box, weight = canvas.ellipsoid(centre, (radius, 0.8 * radius, radius))
    canvas.blend(box, weight, 25.0)
    air = weight * (box.y < centre[1] - 0.15 * radius)  # anterior, because the patient is supine
    inner_box, inner = canvas.ellipsoid(centre, (radius - 4, 0.8 * radius - 4, radius - 4))
    lumen = np.zeros_like(weight)
    lumen[tuple(slice(i.start - b.start, i.stop - b.start) for i, b in zip(inner_box.index, box.index, strict=True))] = inner
    canvas.blend(box, air * lumen, -950.0)
    return DrawnFinding(centre_mm=centre, size_mm=radius, hu=25.0, severity=severity_of(radius, 15, 40))


@_draws("Arterial wall calcification")
def _arterial_calcification(context: DrawContext) -> DrawnFinding:
    count, largest, centres = int(context.generator.integers(3, 13)), 0.0, []
    for _ in range(count):
        start, end = context.body.aorta[context.generator.integers(len(context.body.aorta))]
        fraction, angle = context.uniform(0, 0.35), context.uniform(0, 2 * math.pi)
        centre = np.asarray(start) + fraction * (np.asarray(end) - start)
        centre = centre + 12 * context.body.scale * np.array([math.cos(angle), math.sin(angle), 0])
        radius = context.radius(1.5, 5)
        context.canvas.fill(context.canvas.ellipsoid(centre, (radius,) * 3), context.uniform(300, 1000))
        largest = max(largest, radius)
        centres.append(centre)
    return DrawnFinding(size_mm=largest, hu=600.0, severity=severity_of(count, 3, 12), centres_mm=tuple(centres))


@_draws("Coronary artery wall calcification")
def _coronary_calcification(context: DrawContext) -> DrawnFinding:
    (centre, radii), count, centres = context.body.heart, int(context.generator.integers(2, 9)), []
    for _ in range(count):
        angle, height = context.uniform(-math.pi, 0), context.uniform(0.1, 0.7)
        ring = math.sqrt(1 - height**2)
        direction = (ring * math.cos(angle), ring * math.sin(angle), height)
        deposit = [c + r * d for c, r, d in zip(centre, radii, direction, strict=True)]
        context.canvas.fill(context.canvas.ellipsoid(deposit, (context.radius(1, 3),) * 3), context.uniform(400, 900))
        centres.append(deposit)
    return DrawnFinding(size_mm=context.radius(1, 3), hu=650.0, severity=severity_of(count, 2, 8), centres_mm=tuple(centres))


@_draws("Medical material")
def _medical_material(context: DrawContext) -> DrawnFinding:
    scale, canvas = context.body.scale, context.canvas
    x, y, z = 78 * scale, -72 * scale, 75 * scale
    box = canvas.box_around((x - 23, y - 6, z - 20), (x + 23, y + 6, z + 20))
    weight = [canvas.coverage(half - np.abs(axis - c)) for axis, c, half in ((box.x, x, 22.5), (box.y, y, 5), (box.z, z, 20))]
    canvas.blend(box, weight[0] * weight[1] * weight[2], 3000.0)
    (heart, _), lead = context.body.heart, max(1.2, 0.4 * canvas.voxel_mm)
    for end in (heart, (heart[0] - 30 * scale, heart[1], heart[2] + 20)):
        canvas.fill(canvas.capsule((x, y + 10, z), (-20 * scale, -5, z + 15), lead), 2000.0)
        canvas.fill(canvas.capsule((-20 * scale, -5, z + 15), end, lead), 2000.0)
    return DrawnFinding(side=LEFT, centre_mm=(x, y, z), size_mm=45.0, hu=3000.0)


def _nearest_cell(context: DrawContext, cells: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Lung voxels (z, y, x), the index of the nearest cell of each, and the distance gap to the second nearest in mm."""
    canvas, voxels = context.canvas, np.nonzero(context.body.both_lungs > 0)
    points = np.stack([axis[index] for axis, index in zip((canvas.x, canvas.y, canvas.z), reversed(voxels), strict=True)], 1)
    distance, index = KDTree(cells).query(points, k=2)
    return voxels, index[:, 0], distance[:, 1] - distance[:, 0]


def _centre_of_mass(box: Box, weight: np.ndarray) -> Point:
    """(x, y, z) of weights [z, y, x] that are not all 0."""
    total = weight.sum(dtype=np.float64)
    return tuple(float((weight * axis).sum(dtype=np.float64) / total) for axis in (box.x, box.y, box.z))
