"""CC-CCII: folders of 8-bit slices. NCP: hazy peripheral opacities of both lungs, CP: a consolidation of one, Normal: neither."""

from typing import Any

import numpy as np

from mg3d.files import write_bytes
from mg3d.phantom.body import LEFT, RIGHT
from mg3d.phantom.ct_rate import write_csv
from mg3d.phantom.downstream.chest import Chest, Scan, opacities
from mg3d.phantom.downstream.images import write_picture
from mg3d.phantom.downstream.order import Order, for_all

CLASSES = ("Normal", "CP", "NCP")
"""In the order of the targets 0, 1, 2."""
FILES = ("zip_file", "label", "patient_id", "scan_id", "n_slice")
CLINICAL = (
    "patient_id", "scan_id", "Age", "Sex(Male1/Female2)", "Critical_illness", "Liver_function", "Lung_function",
    "Progression (Days)",
)  # fmt: skip
WINDOW_HU = (-1200.0, 300.0)
"""Of the grey values. The public set does not tell its own."""
SLICE_FACTORS = (1.0, 1.5, 2.0)


def write(order: Order, *, broken: bool = False) -> None:
    """Writes `order.cases` patients, a third of each class, one in four with a second scan, and the three tables.

    broken: the last scan gets pictures of another size, names without leading zeros (so that their order as text is wrong), and
    the last but one a picture that ends early.
    """
    jobs = [(order, patient, scan) for patient in range(order.cases) for scan in range(1 + (patient % 4 == 3))]
    rows = list(for_all(_write_scan, jobs, order.workers))
    write_csv(order.root / "unzip_filenames.csv", FILES, ({key: row[key] for key in FILES} for row in rows))
    lesions = ({"imgpath": path} for row in rows for path in row["lesions"])
    write_csv(order.root / "lesions_slices.csv", ("imgpath",), lesions)
    write_csv(order.root / "metadata.csv", CLINICAL, (_clinical(order, row) for row in rows if row["label"] == "NCP"))
    if broken:
        _break(order, rows)


def _write_scan(job: tuple[Order, int, int]) -> dict[str, Any]:
    order, patient, number = job
    label = CLASSES[patient % 3]
    chest = Chest((order.seed, 50, patient, number), voxels_in_plane=order.voxels_in_plane)
    if label == "NCP":
        extra = [chest.hand.side() for _ in range(int(chest.generator.integers(1, 5)))]
        opacities(chest, [RIGHT, LEFT, *extra], low_mm=16, high_mm=36)
    elif label == "CP":
        side, radius = chest.hand.side(), chest.hand.radius(26, 45)
        chest.lesion(chest.deep(side, 20), (0.8 * radius, radius, radius), chest.hand.uniform(0, 50), side=side)
    scan = chest.scan(slice_factor=SLICE_FACTORS[patient % len(SLICE_FACTORS)])
    scan_id = 10 * patient + number + 1
    folder, suffix = f"{label}/{patient + 1}/{scan_id}", "jpg" if patient % 5 == 4 else "png"
    paths = [f"{folder}/{place:04d}.{suffix}" for place in range(len(scan.hu))]
    for path, picture in zip(paths, grey(scan), strict=True):
        write_picture(order.root / path, picture)
    touched = scan.mask.any((1, 2))[::-1]
    values = (f"{label}-{1 + patient // 12}.zip", label, patient + 1, scan_id, len(paths))
    lesions = [path for path, here in zip(paths, touched, strict=True) if here]
    return dict(zip(FILES, values, strict=True)) | {"lesions": lesions, "paths": paths}


def grey(scan: Scan) -> np.ndarray:
    """uint8 [slice, y, x] from the top down, as the public folders are read."""
    low, high = WINDOW_HU
    return (np.clip((scan.hu[::-1].astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _clinical(order: Order, row: dict[str, Any]) -> dict[str, Any]:
    generator = order.generator(51, row["scan_id"])
    age, sex, critical, liver, lung, days = (int(generator.integers(*bounds)) for bounds in _RANGES)
    return dict(zip(CLINICAL, (row["patient_id"], row["scan_id"], age, sex, critical, liver, lung, days), strict=True))


_RANGES = ((20, 90), (1, 3), (0, 2), (1, 6), (1, 6), (0, 20))
"""Of age, sex, critical illness, liver function, lung function, days."""


def _break(order: Order, rows: list[dict[str, Any]]) -> None:
    for place, relative in enumerate(rows[-1]["paths"]):
        path = order.root / relative
        path.rename(path.with_name(f"{place}{path.suffix}"))
    smaller = np.zeros((order.voxels_in_plane // 2,) * 2, np.uint8)
    write_picture((order.root / rows[-1]["paths"][0]).with_name(f"1.{rows[-1]['paths'][0][-3:]}"), smaller)
    cut = order.root / rows[-2]["paths"][len(rows[-2]["paths"]) // 2]
    write_bytes(cut, cut.read_bytes()[:40])
