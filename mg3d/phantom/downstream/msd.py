"""Medical Segmentation Decathlon: lung, colon and pancreas, with the stray `._*` files of the public archives."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mg3d.files import write_bytes, write_json
from mg3d.phantom.downstream.chest import Chest
from mg3d.phantom.spec import DatasetSpec
from mg3d.phantom.writers import write_volume

AXIS_CODES = ("LPS", "RAS", "LAS")
SLICE_FACTORS = (1.0, 1.4, 1.8)
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "
"""Start of the files that macOS adds to an archive."""


class DecathlonTask(NamedTuple):
    """One task of the Decathlon."""

    stem: str
    labels: tuple[str, ...]
    """Of the values 1, 2, ..."""
    draw: Callable[[Chest], None]


def _draw_lung_tumours(chest: Chest) -> None:
    for _ in range(1 + int(chest.generator.random() < 0.25)):
        side, radius = chest.side(), max(chest.uniform(16, 30), 2.5 * chest.canvas.voxel_mm)
        radii = tuple(radius * chest.uniform(0.8, 1.1) for _ in range(3))
        centre = chest.deep_point(side, 0.7 * radius)
        chest.add_lung_lesion(centre, radii, chest.uniform(20, 70), side=side)


def _draw_colon(chest: Chest) -> None:
    start, end = np.array([-20.0, -62.0, -122.0]), np.array([85.0, -62.0, -135.0])
    chest.canvas.fill(chest.canvas.capsule(start, end, 19.0), 40.0)
    chest.canvas.fill(chest.canvas.capsule(start, end, 14.0), -900.0)
    centre = start + chest.uniform(0.15, 0.85) * (end - start) + (0, 8, 0)
    radius = max(chest.uniform(12, 20), 2 * chest.canvas.voxel_mm)
    chest.add(chest.canvas.ellipsoid(tuple(centre), (radius,) * 3), 110.0)


def _draw_pancreas(chest: Chest) -> None:
    start, end = np.array([-40.0, 8.0, -138.0]), np.array([60.0, 18.0, -118.0])
    radius = max(16.0, 2.2 * chest.canvas.voxel_mm)
    chest.add(chest.canvas.capsule(start, end, radius, 0.8 * radius), 110.0)
    centre = start + chest.uniform(0.15, 0.85) * (end - start)
    tumour_radius = max(chest.uniform(8, 12), 1.5 * chest.canvas.voxel_mm)
    chest.add(chest.canvas.ellipsoid(tuple(centre), (tumour_radius,) * 3), 0.0, 2)


TASKS: dict[str, DecathlonTask] = {
    "Task06_Lung": DecathlonTask("lung", ("cancer",), _draw_lung_tumours),
    "Task07_Pancreas": DecathlonTask("pancreas", ("pancreas", "cancer"), _draw_pancreas),
    "Task10_Colon": DecathlonTask("colon", ("colon cancer primaries",), _draw_colon),
}


def write(spec: DatasetSpec, *, tasks: Sequence[str] = ("Task06_Lung",)) -> None:
    """Write `spec.cases` labelled scans and a third as many unlabelled ones of each task.

    Raises:
        ValueError: a task is not in TASKS.
    """
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ValueError(f"unknown synthetic task {', '.join(unknown)}; choose from {', '.join(TASKS)}")
    unlabelled = max(1, spec.cases // 3)
    for name in tasks:
        spec.map(_write_case, [(spec, name, number) for number in range(1, 1 + spec.cases + unlabelled)])
        write_bytes(spec.root / name / "imagesTr" / f"._{TASKS[name].stem}_001.nii.gz", APPLE_DOUBLE)
        write_bytes(spec.root / name / "._dataset.json", APPLE_DOUBLE)
        write_json(spec.root / name / "dataset.json", _dataset_json(name, spec.cases, unlabelled))


def _write_case(case: tuple[DatasetSpec, str, int]) -> None:
    spec, name, number = case
    task, labelled = TASKS[name], number <= spec.cases
    chest = Chest((spec.seed, 30, int(name[4:6]), number), voxels_in_plane=spec.voxels_in_plane)
    task.draw(chest)
    volume = chest.scan(slice_factor=SLICE_FACTORS[number % len(SLICE_FACTORS)])
    axis_codes, file = AXIS_CODES[number % len(AXIS_CODES)], f"{task.stem}_{number:03d}.nii.gz"
    write_volume(spec.root / name / ("imagesTr" if labelled else "imagesTs") / file, volume.hu, volume, axis_codes)
    if labelled:
        write_volume(spec.root / name / "labelsTr" / file, volume.mask, volume, axis_codes)


def _dataset_json(name: str, labelled: int, unlabelled: int) -> dict[str, object]:
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
