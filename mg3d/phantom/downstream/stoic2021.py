"""STOIC2021: COVID-19 as peripheral opacities of both lungs, severe where they are many; the others have something else."""

from mg3d.phantom.body import LEFT, RIGHT
from mg3d.phantom.ct_rate import write_csv
from mg3d.phantom.downstream.chest import Chest, opacities
from mg3d.phantom.downstream.images import write_meta
from mg3d.phantom.downstream.order import Order, for_all

COLUMNS = ("PatientID", "probCOVID", "probSevere")
OTHERS: tuple[tuple[str, ...], ...] = ((), ("Pleural effusion",), ("Lung nodule",), ("Emphysema",))
"""What patients without COVID-19 have instead."""
SLICE_FACTORS = (1.0, 1.25, 1.6)


def write(order: Order) -> None:
    """Writes the scans and their reference: six in ten positive, one in three of these severe."""
    jobs = [(order, number) for number in range(order.cases)]
    write_csv(order.root / "metadata" / "reference.csv", COLUMNS, for_all(_write_case, jobs, order.workers))


def _write_case(job: tuple[Order, int]) -> dict[str, int]:
    order, number = job
    positive = number % 5 in {0, 2, 4}
    severe = positive and (number // 5 + number % 5 // 2) % 3 == 0
    others = () if positive else OTHERS[number % len(OTHERS)]
    chest = Chest((order.seed, 40, number), voxels_in_plane=order.voxels_in_plane, others=others)
    if positive:
        pairs = int(chest.generator.integers(5, 8)) if severe else 1
        size = (24, 42) if severe else (14, 26)
        opacities(chest, [RIGHT, LEFT] * pairs, low_mm=size[0], high_mm=size[1])
    identity = int(order.generator(41).permutation(9000)[number])  # no order that tells the class
    write_meta(order.root / "data" / "mha" / f"{identity}.mha", chest.scan(slice_factor=SLICE_FACTORS[number % 3]))
    return dict(zip(COLUMNS, (identity, int(positive), int(severe)), strict=True))
