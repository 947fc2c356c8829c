"""COVID-19-20: hazy peripheral opacities of both lungs as the lesion, thick slices. `Train` is labelled, `Validation` is not."""

from pathlib import Path

import numpy as np

from mg3d.phantom.body import LEFT, RIGHT
from mg3d.phantom.downstream.chest import Chest, Scan, opacities
from mg3d.phantom.downstream.images import write_nifti
from mg3d.phantom.downstream.order import Order, for_all

TOP = "COVID-19-20_v2"
TRAIN, VALIDATION = 0, 1
SLICE_FACTORS = (1.0, 1.5, 2.0)


def write(order: Order) -> None:
    """Writes `order.cases` labelled scans and a quarter as many without labels."""
    jobs = [(order, TRAIN, number) for number in range(order.cases)]
    jobs += [(order, VALIDATION, number) for number in range(max(1, order.cases // 4))]
    for _ in for_all(_write_case, jobs, order.workers):
        pass


def draw(order: Order, group: int, number: int) -> Scan:
    """The scan of one case and its lesions."""
    chest = Chest((order.seed, 20, group, number), voxels_in_plane=order.voxels_in_plane)
    extra = [chest.hand.side() for _ in range(int(chest.generator.integers(0, 4)))]
    opacities(chest, [RIGHT, LEFT, *extra], low_mm=14, high_mm=34)
    return chest.scan(slice_factor=SLICE_FACTORS[number % len(SLICE_FACTORS)])


def _write_case(job: tuple[Order, int, int]) -> None:
    order, group, number = job
    scan = draw(order, group, number)
    stem = f"volume-covid19-A-{_number(number, group):04d}"
    codes = "LPS" if number % 2 == 0 else "RAS"
    folder: Path = order.root / TOP / ("Train" if group == TRAIN else "Validation")
    write_nifti(folder / f"{stem}_ct.nii.gz", scan.hu, scan, codes)
    if group == TRAIN:
        write_nifti(folder / f"{stem}_seg.nii.gz", scan.mask.astype(np.uint8), scan, codes)


def _number(number: int, group: int) -> int:
    return 3 * number + (3 if group == TRAIN else 5)  # with gaps, as in the public set
