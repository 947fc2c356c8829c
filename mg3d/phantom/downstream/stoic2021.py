"""STOIC2021: COVID-19 as bilateral peripheral ground glass, severe if extensive; other patients have other findings."""

from mg3d.phantom.body import LEFT, RIGHT
from mg3d.phantom.downstream.chest import Chest
from mg3d.phantom.spec import DatasetSpec
from mg3d.phantom.writers import write_csv, write_metaimage

COLUMNS = ("PatientID", "probCOVID", "probSevere")
OTHER_FINDINGS: tuple[tuple[str, ...], ...] = ((), ("Pleural effusion",), ("Lung nodule",), ("Emphysema",))
"""Findings of patients without COVID-19."""
SLICE_FACTORS = (1.0, 1.25, 1.6)


def write(spec: DatasetSpec) -> None:
    """Write the scans and their reference table: six in ten are positive, one in three of these severe."""
    rows = spec.map(_write_case, [(spec, number) for number in range(spec.cases)])
    write_csv(spec.root / "metadata" / "reference.csv", COLUMNS, rows)


def _write_case(case: tuple[DatasetSpec, int]) -> dict[str, int]:
    spec, number = case
    positive = number % 5 in {0, 2, 4}
    severe = positive and (number // 5 + number % 5 // 2) % 3 == 0
    others = () if positive else OTHER_FINDINGS[number % len(OTHER_FINDINGS)]
    chest = Chest((spec.seed, 40, number), voxels_in_plane=spec.voxels_in_plane, other_findings=others)
    if positive:
        pairs = int(chest.generator.integers(5, 8)) if severe else 1
        low_mm, high_mm = (24, 42) if severe else (14, 26)
        chest.add_opacities([RIGHT, LEFT] * pairs, low_mm=low_mm, high_mm=high_mm)
    patient_id = int(spec.generator(41).permutation(9000)[number])  # independent of the class
    write_metaimage(spec.root / "data" / "mha" / f"{patient_id}.mha", chest.scan(slice_factor=SLICE_FACTORS[number % 3]))
    return dict(zip(COLUMNS, (patient_id, int(positive), int(severe)), strict=True))
