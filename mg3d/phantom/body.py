"""Normal chest anatomy in HU of unenhanced CT. Coordinates (x, y, z) in mm."""

from typing import NamedTuple

import numpy as np

from mg3d.phantom.canvas import Canvas, Point
from mg3d.phantom.sampling import Patient

RIGHT, LEFT = "right", "left"
SIGN = {RIGHT: -1, LEFT: 1}
LUNG_X = {RIGHT: -70.0, LEFT: 70.0}
TISSUE = 30.0


class Body(NamedTuple):
    """Anatomy that findings refer to."""

    lungs: dict[str, np.ndarray]
    """Side -> weights [z, y, x] of lung tissue."""
    heart: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Centre and radii."""
    aorta: tuple[tuple[Point, Point], ...]
    """Centre line of each segment."""
    bronchi: dict[str, tuple[tuple[Point, Point, float], ...]]
    """Side -> start, end and radius of each branch."""
    scale: float

    @property
    def both_lungs(self) -> np.ndarray:
        """Weights [z, y, x] of lung tissue."""
        return self.lungs[RIGHT] + self.lungs[LEFT]


def draw_body(canvas: Canvas, patient: Patient, generator: np.random.Generator, *, heart_factor: float) -> Body:
    """Draw a chest without findings; `heart_factor` scales the heart. Moves the canvas origin to the body axis."""
    scale, (shift_x, shift_y) = patient.scale, patient.shift
    canvas.x, canvas.y = canvas.x - shift_x, canvas.y - shift_y
    _draw_wall(canvas, patient, generator)
    diaphragm = _draw_abdomen(canvas, scale)
    lungs = _draw_lungs(canvas, scale, diaphragm, generator)
    bronchi = _draw_airways(canvas, scale)
    _draw_pulmonary_vessels(canvas, lungs, scale, generator)
    _draw_spine(canvas, scale, generator)
    heart, aorta = _draw_mediastinum(canvas, scale, heart_factor)
    for side, weight in lungs.items():
        lungs[side] = weight * (canvas.hu < -600)  # remove what the mediastinum covers
    return Body(lungs, heart, aorta, bronchi, scale)


def scaled(points: tuple[Point, ...], scale: float) -> tuple[Point, ...]:
    """Points multiplied by the body scale."""
    return tuple(tuple(value * scale for value in point) for point in points)


def _draw_wall(canvas: Canvas, patient: Patient, generator: np.random.Generator) -> None:
    box = canvas.full_box()
    table = canvas.coverage(6 - np.abs(box.y - patient.half_depth - 8)) * canvas.coverage(200 - np.abs(box.x))
    canvas.blend(box, table, -600.0)
    rho = (np.abs(box.x / patient.half_width) ** 2.4 + np.abs(box.y / patient.half_depth) ** 2.4) ** (1 / 2.4)
    depth = (1 - rho) * patient.half_depth
    canvas.blend(box, canvas.coverage(depth), -100 + float(generator.normal(0, 8)))  # fat
    canvas.blend(box, canvas.coverage(depth - patient.fat), 50 + float(generator.normal(0, 8)))  # muscle
    canvas.blend(box, canvas.coverage(depth - patient.fat - 12), TISSUE)
    phase = float(generator.uniform(0, 24))
    ribs = np.mod(box.z + 0.35 * box.y + phase, 24) < 7
    ring = canvas.coverage(5 - np.abs(depth - patient.fat - 7))
    canvas.blend(box, ring * ribs, 350 + float(generator.normal(0, 60)))


def _draw_abdomen(canvas: Canvas, scale: float) -> dict[str, np.ndarray]:
    """Side -> height z [1, y, x] of the diaphragm."""
    box, domes = canvas.full_box(), {}
    for side, centre in LUNG_X.items():
        bulge = 28 * (1 - ((box.x - centre * scale) / 65) ** 2 - (box.y / 85) ** 2)
        domes[side] = (-88 * scale + (12 if side == RIGHT else 0) + bulge).astype(np.float32)
    canvas.fill(canvas.ellipsoid((-45 * scale, 0, -135 * scale), (95, 80, 62)), 58.0)  # liver
    canvas.fill(canvas.ellipsoid((95 * scale, 45 * scale, -135 * scale), (32, 40, 40)), 50.0)  # spleen
    canvas.fill(canvas.ellipsoid((60 * scale, -15 * scale, -128 * scale), (38, 34, 26)), 30.0)  # stomach
    canvas.fill(canvas.ellipsoid((60 * scale, -28 * scale, -120 * scale), (22, 14, 14)), -950.0)  # gastric air
    return domes


def _draw_lungs(
    canvas: Canvas, scale: float, diaphragm: dict[str, np.ndarray], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    box, lungs = canvas.full_box(), {}
    tissue = -850 + 0.4 * box.y + 25 * canvas.smooth_noise(generator, cells=24)
    for side, x in LUNG_X.items():
        centre, radii = (x * scale, 5 * scale, 10 * scale), (56 * scale, 78 * scale, 125 * scale)
        inside = canvas.coverage((1 - box.radius(centre, radii)) * min(radii))
        lungs[side] = inside * canvas.coverage(box.z - diaphragm[side])
        canvas.blend(box, lungs[side], tissue)
    return lungs


def _draw_airways(canvas: Canvas, scale: float) -> dict[str, tuple[tuple[Point, Point, float], ...]]:
    carina = (0.0, 20.0, 30.0)
    trees = {}
    for side, sign in SIGN.items():
        hilum = (sign * 42.0, 20.0, 2.0)
        branches = [(carina, hilum, 7.0)]
        branches += [(hilum, (sign * x, y, z), 5.2) for x, y, z in ((72, -8, 48), (78, 12, -2), (70, 42, -42))]
        trees[side] = tuple((*scaled(branch[:2], scale), branch[2]) for branch in branches)
    trachea = (*scaled(((0, 20, 165), carina), scale), 9.0)
    for wall, hu in ((2.0, TISSUE), (0.0, -995.0)):
        for start, end, radius in (trachea, *trees[RIGHT], *trees[LEFT]):
            canvas.fill(canvas.capsule(start, end, radius + wall, 0.8 * radius + wall), hu)
    return trees


def _draw_pulmonary_vessels(canvas: Canvas, lungs: dict[str, np.ndarray], scale: float, generator: np.random.Generator) -> None:
    for side, sign in SIGN.items():
        for _ in range(18):
            direction = generator.normal(size=3) * (0.7, 0.9, 1.1)
            direction[0] = sign * abs(direction[0])
            start = np.array([sign * 38.0, 15.0, 5.0])
            end = start + direction / np.linalg.norm(direction) * generator.uniform(45, 95)
            canvas.fill(canvas.capsule(*scaled((start, end), scale), 4.0, 0.8), 38.0, within=lungs[side])


def _draw_spine(canvas: Canvas, scale: float, generator: np.random.Generator) -> None:
    y, phase = 72 * scale, float(generator.uniform(0, 26))
    column = canvas.capsule((0, y, -400), (0, y, 400), 19 * scale)
    canvas.fill(column, 400.0)
    box, marrow = canvas.capsule((0, y, -400), (0, y, 400), 14 * scale)
    canvas.blend(box, marrow, 180.0)
    discs = np.mod(box.z + phase, 26) < 6
    canvas.blend(box, column[1][tuple(slice(0, side) for side in marrow.shape)] * discs * (marrow > 0), 70.0)
    canvas.fill(canvas.capsule((0, -88 * scale, -40), (0, -84 * scale, 90), 7.0), 250.0)  # sternum


def _draw_mediastinum(
    canvas: Canvas, scale: float, heart_factor: float
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], tuple[tuple[Point, Point], ...]]:
    """Return the heart (centre, radii) and the aorta segments."""
    aorta = (((-10, -15, -20), (-10, -15, 58)), ((-10, -15, 60), (18, 42, 62)), ((20, 45, 58), (20, 45, -400)))
    aorta = tuple(scaled(segment, scale) for segment in aorta)
    canvas.fill(canvas.capsule(*scaled(((5, 36, 400), (5, 36, -100)), scale), 7.0), TISSUE)  # oesophagus
    canvas.fill(canvas.capsule(*scaled(((-25, -8, 5), (-25, -8, 110)), scale), 9.0), 42.0)  # superior vena cava
    canvas.fill(canvas.capsule(*scaled(((14, -22, -10), (16, 0, 26)), scale), 13.0), 42.0)  # pulmonary trunk
    canvas.fill(canvas.capsule(*scaled(((0, 0, 70), (0, 10, 130)), scale), 20.0), TISSUE)  # upper mediastinum
    centre = (20.0 * scale, -25.0 * scale, -55.0 * scale)
    radii = tuple(side * scale * heart_factor for side in (60.0, 48.0, 56.0))
    canvas.fill(canvas.ellipsoid(centre, tuple(radius + 4 for radius in radii)), -80.0)  # epicardial fat
    canvas.fill(canvas.ellipsoid(centre, radii), 45.0)
    for segment in aorta:
        canvas.fill(canvas.capsule(*segment, 13.0 * scale), 42.0)
    return (centre, radii), aorta
