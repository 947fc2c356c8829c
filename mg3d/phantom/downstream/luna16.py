"""LUNA16: nodules, the candidates that are nodules, and candidates that are vessels or plain lung; world places in mm, LPS."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mg3d.phantom.ct_rate import write_csv
from mg3d.phantom.downstream.chest import Chest
from mg3d.phantom.downstream.images import write_meta
from mg3d.phantom.downstream.order import Order, for_all

SUBSETS = 10
PLACE = ("coordX", "coordY", "coordZ")
FALSE_CANDIDATES = 12
"""Of a scan, half on vessels and half in plain lung."""
SLICE_FACTORS = (1.0, 1.25)


class Nodule(NamedTuple):
    """A ball; mm."""

    centre: np.ndarray
    radius: float


def write(order: Order) -> None:
    """Writes the scans into ten subsets and the three tables."""
    for subset in range(SUBSETS):
        (order.root / f"subset{subset}").mkdir()
    rows = list(for_all(_write_case, [(order, number) for number in range(order.cases)], order.workers))
    for position, name in enumerate(("annotations.csv", "candidates.csv", "candidates_V2.csv")):
        columns = ("seriesuid", *PLACE, "class" if position else "diameter_mm")
        write_csv(order.root / name, columns, (dict(zip(columns, row, strict=True)) for case in rows for row in case[position]))


def series_uid(order: Order, number: int) -> str:
    """An identifier under the root 2.25, which needs no registration."""
    return f"2.25.{int.from_bytes(order.generator(60, number).bytes(15), 'big')}"


def _write_case(job: tuple[Order, int]) -> tuple[list[tuple[Any, ...]], ...]:
    """Writes a scan; gives its rows of annotations, candidates, candidates_V2."""
    order, number = job
    chest = Chest((order.seed, 61, number), voxels_in_plane=order.voxels_in_plane)
    nodules = _draw_nodules(chest, 1 + number % 3 if number % 6 != 5 else 0)
    scan, name = chest.scan(slice_factor=SLICE_FACTORS[number % 2]), series_uid(order, number)
    table = order.generator(62, number).uniform(-200, 200, 3)  # the scanner's own zero
    scan = scan._replace(origin=tuple(np.add(scan.origin, table).tolist()))
    write_meta(order.root / f"subset{number % SUBSETS}" / f"{name}.mhd", scan, flipped=number % 4 == 2)
    false = [(name, *_rounded(place + table), 0) for place in _false_places(chest, nodules)]
    annotations = [(name, *_rounded(nodule.centre + table), round(2 * nodule.radius, 3)) for nodule in nodules]
    true = [(name, *_rounded(_near(chest, nodule) + table), 1) for nodule in nodules]
    again = [(name, *_rounded(_near(chest, nodule) + table), 1) for nodule in nodules]
    # The second list finds some nodules twice and has some more false candidates.
    return annotations, [*true, *false[: FALSE_CANDIDATES * 3 // 4]], [*true, *again, *false]


def _draw_nodules(chest: Chest, count: int) -> list[Nodule]:
    nodules: list[Nodule] = []
    while len(nodules) < count:
        side, radius = chest.hand.side(), chest.hand.radius(4, 14)
        centre = np.array(chest.deep(side, radius))
        if all(np.linalg.norm(centre - other.centre) > radius + other.radius + 10 for other in nodules):
            chest.lesion(centre, (radius,) * 3, chest.hand.uniform(0, 100), side=side)
            nodules.append(Nodule(centre, radius))
    return nodules


def _near(chest: Chest, nodule: Nodule) -> np.ndarray:
    """A place within half a radius of the centre."""
    direction = chest.generator.standard_normal(3)
    return nodule.centre + direction / np.linalg.norm(direction) * chest.hand.uniform(0, 0.5) * nodule.radius


def _false_places(chest: Chest, nodules: Sequence[Nodule]) -> np.ndarray:
    """[FALSE_CANDIDATES, 3]: x, y, z well outside every nodule, vessels and plain lung in turn."""
    lung = chest.lung["right"] | chest.lung["left"]
    z, y, x = np.nonzero(lung)
    points = np.stack([chest.canvas.x[x], chest.canvas.y[y], chest.canvas.z[z]], 1).astype(float)
    away = [np.linalg.norm(points - nodule.centre, axis=1) - nodule.radius for nodule in nodules]
    free = np.min(away, axis=0) > 10 if away else np.ones(len(points), bool)
    dense = chest.canvas.hu[z, y, x] > -500
    picked = [points[chest.generator.choice(np.flatnonzero(free & kind), FALSE_CANDIDATES // 2)] for kind in (dense, ~dense)]
    return np.stack(picked, 1).reshape(-1, 3)


def _rounded(place: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in place]
