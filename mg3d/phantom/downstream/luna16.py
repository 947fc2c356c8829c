"""LUNA16: lung nodules, and true and false candidates; world coordinates in mm, LPS."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mg3d.phantom.downstream.chest import Chest
from mg3d.phantom.spec import DatasetSpec
from mg3d.phantom.writers import write_csv, write_metaimage

SUBSETS = 10
COORDINATES = ("coordX", "coordY", "coordZ")
FALSE_CANDIDATES = 12
"""Per scan, half on vessels and half in normal lung."""
SLICE_FACTORS = (1.0, 1.25)


class Nodule(NamedTuple):
    """A sphere; mm."""

    centre: np.ndarray
    radius: float


def write(spec: DatasetSpec) -> None:
    """Write the scans into ten subsets, and the three tables."""
    for subset in range(SUBSETS):
        (spec.root / f"subset{subset}").mkdir()
    tables = spec.map(_write_case, [(spec, number) for number in range(spec.cases)])
    for index, name in enumerate(("annotations.csv", "candidates.csv", "candidates_V2.csv")):
        columns = ("seriesuid", *COORDINATES, "class" if index else "diameter_mm")
        rows = (dict(zip(columns, row, strict=True)) for tables_of_case in tables for row in tables_of_case[index])
        write_csv(spec.root / name, columns, rows)


def series_uid(spec: DatasetSpec, number: int) -> str:
    """A UID under the root 2.25, which needs no registration."""
    return f"2.25.{int.from_bytes(spec.generator(60, number).bytes(15), 'big')}"


def _write_case(case: tuple[DatasetSpec, int]) -> tuple[list[tuple[Any, ...]], ...]:
    """Write a scan; returns its rows of annotations, candidates and candidates_V2."""
    spec, number = case
    chest = Chest((spec.seed, 61, number), voxels_in_plane=spec.voxels_in_plane)
    nodules = _draw_nodules(chest, 1 + number % 3 if number % 6 != 5 else 0)
    volume, uid = chest.scan(slice_factor=SLICE_FACTORS[number % 2]), series_uid(spec, number)
    offset = spec.generator(62, number).uniform(-200, 200, 3)  # origin of the scanner's coordinate system
    volume = volume._replace(origin=tuple(np.add(volume.origin, offset).tolist()))
    write_metaimage(spec.root / f"subset{number % SUBSETS}" / f"{uid}.mhd", volume, flipped=number % 4 == 2)

    def row(point: np.ndarray, value: float) -> tuple[Any, ...]:
        return (uid, *(round(float(c), 4) for c in point + offset), value)

    false = [row(point, 0) for point in _false_points(chest, nodules)]
    annotations = [row(nodule.centre, round(2 * nodule.radius, 3)) for nodule in nodules]
    true, repeated = ([row(_point_inside(chest, nodule), 1) for nodule in nodules] for _ in range(2))
    # The second version repeats nodules and has more false candidates.
    return annotations, [*true, *false[: FALSE_CANDIDATES * 3 // 4]], [*true, *repeated, *false]


def _draw_nodules(chest: Chest, count: int) -> list[Nodule]:
    nodules: list[Nodule] = []
    while len(nodules) < count:
        side, radius = chest.side(), chest.radius(4, 14)
        centre = np.array(chest.deep_point(side, radius))
        if all(np.linalg.norm(centre - other.centre) > radius + other.radius + 10 for other in nodules):
            chest.add_lung_lesion(centre, (radius,) * 3, chest.uniform(0, 100), side=side)
            nodules.append(Nodule(centre, radius))
    return nodules


def _point_inside(chest: Chest, nodule: Nodule) -> np.ndarray:
    """Random point within half a radius of the centre."""
    direction = chest.generator.standard_normal(3)
    return nodule.centre + direction / np.linalg.norm(direction) * chest.uniform(0, 0.5) * nodule.radius


def _false_points(chest: Chest, nodules: Sequence[Nodule]) -> np.ndarray:
    """[FALSE_CANDIDATES, (x, y, z)] at least 10 mm outside every nodule, alternating between vessels and normal lung."""
    z, y, x = np.nonzero(chest.lung["right"] | chest.lung["left"])
    points = np.stack([chest.canvas.x[x], chest.canvas.y[y], chest.canvas.z[z]], 1).astype(float)
    distances = [np.linalg.norm(points - nodule.centre, axis=1) - nodule.radius for nodule in nodules]
    outside = np.min(distances, axis=0) > 10 if distances else np.ones(len(points), bool)
    dense = chest.canvas.hu[z, y, x] > -500
    picked = [points[chest.generator.choice(np.flatnonzero(outside & kind), FALSE_CANDIDATES // 2)] for kind in (dense, ~dense)]
    return np.stack(picked, 1).reshape(-1, 3)
