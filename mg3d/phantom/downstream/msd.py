"""Medical Segmentation Decathlon: tasks with one label (lung, colon) and two (pancreas), with the archives' stray `._*` files."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mg3d.files import write_bytes, write_json
from mg3d.phantom.canvas import Point
from mg3d.phantom.downstream.chest import Chest
from mg3d.phantom.downstream.images import write_nifti
from mg3d.phantom.downstream.order import Order, for_all

ORIENTATIONS = ("LPS", "RAS", "LAS")
SLICE_FACTORS = (1.0, 1.4, 1.8)
STRAY = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "
"""How the files that macOS adds to an archive begin."""


class Task(NamedTuple):
    """One task of the Decathlon."""

    stem: str
    labels: tuple[str, ...]
    """Of values 1, 2, ..."""
    draw: Callable[[Chest], None]


def _lung(chest: Chest) -> None:
    for _ in range(1 + int(chest.generator.random() < 0.25)):
        side, radius = chest.hand.side(), max(chest.hand.uniform(16, 30), 2.5 * chest.canvas.voxel_mm)
        radii = tuple(radius * chest.hand.uniform(0.8, 1.1) for _ in range(3))
        chest.lesion(chest.deep(side, 0.7 * radius), radii, chest.hand.uniform(20, 70), side=side)


def _solid(chest: Chest, centre: Point, radius: float, hu: float, value: int) -> None:
    box, weight = chest.canvas.ellipsoid(centre, (radius,) * 3)
    chest.canvas.blend(box, weight, hu)
    chest.mask[box.place][weight > 0.5] = value


def _colon(chest: Chest) -> None:
    start, end = np.array([-20.0, -62.0, -122.0]), np.array([85.0, -62.0, -135.0])
    chest.canvas.fill(chest.canvas.capsule(start, end, 19.0), 40.0)
    chest.canvas.fill(chest.canvas.capsule(start, end, 14.0), -900.0)
    middle = start + chest.hand.uniform(0.15, 0.85) * (end - start) + (0, 8, 0)
    _solid(chest, tuple(middle), max(chest.hand.uniform(12, 20), 2 * chest.canvas.voxel_mm), 110.0, 1)


def _pancreas(chest: Chest) -> None:
    start, end = np.array([-40.0, 8.0, -138.0]), np.array([60.0, 18.0, -118.0])
    thick = max(16.0, 2.2 * chest.canvas.voxel_mm)
    box, weight = chest.canvas.capsule(start, end, thick, 0.8 * thick)
    chest.canvas.blend(box, weight, 110.0)
    chest.mask[box.place][weight > 0.5] = 1
    middle = start + chest.hand.uniform(0.15, 0.85) * (end - start)
    _solid(chest, tuple(middle), max(chest.hand.uniform(8, 12), 1.5 * chest.canvas.voxel_mm), 0.0, 2)


TASKS: dict[str, Task] = {
    "Task06_Lung": Task("lung", ("cancer",), _lung),
    "Task07_Pancreas": Task("pancreas", ("pancreas", "cancer"), _pancreas),
    "Task10_Colon": Task("colon", ("colon cancer primaries",), _colon),
}


def write(order: Order, *, tasks: Sequence[str] = ("Task06_Lung",)) -> None:
    """Writes each task: `order.cases` labelled scans and a third as many without labels.

    Raises:
        ValueError: a task is not among TASKS.
    """
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ValueError(f"no synthetic task {', '.join(unknown)}; there are {', '.join(TASKS)}")
    for name in tasks:
        unlabelled = max(1, order.cases // 3)
        jobs = [(order, name, number) for number in range(1, 1 + order.cases + unlabelled)]
        for _ in for_all(_write_case, jobs, order.workers):
            pass
        write_bytes(order.root / name / "imagesTr" / f"._{TASKS[name].stem}_001.nii.gz", STRAY)
        write_bytes(order.root / name / "._dataset.json", STRAY)
        write_json(order.root / name / "dataset.json", _description(name, order.cases, unlabelled))


def _write_case(job: tuple[Order, str, int]) -> None:
    order, name, number = job
    task, labelled = TASKS[name], number <= order.cases
    chest = Chest((order.seed, 30, int(name[4:6]), number), voxels_in_plane=order.voxels_in_plane)
    task.draw(chest)
    scan = chest.scan(slice_factor=SLICE_FACTORS[number % len(SLICE_FACTORS)])
    codes, file = ORIENTATIONS[number % len(ORIENTATIONS)], f"{task.stem}_{number:03d}.nii.gz"
    write_nifti(order.root / name / ("imagesTr" if labelled else "imagesTs") / file, scan.hu, scan, codes)
    if labelled:
        write_nifti(order.root / name / "labelsTr" / file, scan.mask, scan, codes)


def _description(name: str, labelled: int, unlabelled: int) -> dict[str, object]:
    stem, labels, _ = TASKS[name]
    files = [f"{stem}_{number:03d}.nii.gz" for number in range(1, 1 + labelled + unlabelled)]
    return {
        "name": name.split("_")[1],
        "description": "synthetic stand-in drawn by mg3d.phantom; no patient",
        "reference": "none",
        "licence": "as the code's",
        "release": "synthetic",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background"} | {str(value): label for value, label in enumerate(labels, 1)},
        "numTraining": labelled,
        "numTest": unlabelled,
        "training": [{"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"} for file in files[:labelled]],
        "test": [f"./imagesTs/{file}" for file in files[labelled:]],
    }
