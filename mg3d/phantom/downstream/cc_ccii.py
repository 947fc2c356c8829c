"""CC-CCII: folders of 8-bit slices. NCP: bilateral ground glass, CP: unilateral consolidation, Normal: neither."""

from typing import Any

from mg3d.phantom.body import LEFT, RIGHT
from mg3d.phantom.downstream.chest import Chest
from mg3d.phantom.spec import DatasetSpec
from mg3d.phantom.writers import grey_values, write_csv, write_image

CLASSES = ("Normal", "CP", "NCP")
"""In the order of the targets 0, 1, 2."""
FILE_COLUMNS = ("zip_file", "label", "patient_id", "scan_id", "n_slice")
CLINICAL_RANGES = {
    "Age": (20, 90), "Sex(Male1/Female2)": (1, 3), "Critical_illness": (0, 2), "Liver_function": (1, 6), "Lung_function": (1, 6),
    "Progression (Days)": (0, 20),
}  # fmt: skip
"""Column -> range of its integers."""
WINDOW_HU = (-1200.0, 300.0)
"""Window of the grey values; that of the public set is not documented."""
SLICE_FACTORS = (1.0, 1.5, 2.0)


def write(spec: DatasetSpec) -> None:
    """Write `spec.cases` patients, a third of each class, one in four with a second scan, and the three tables."""
    cases = [(spec, patient, scan) for patient in range(spec.cases) for scan in range(1 + (patient % 4 == 3))]
    rows = spec.map(_write_scan, cases)
    write_csv(spec.root / "unzip_filenames.csv", FILE_COLUMNS, ({key: row[key] for key in FILE_COLUMNS} for row in rows))
    lesions = ({"imgpath": path} for row in rows for path in row["lesions"])
    write_csv(spec.root / "lesions_slices.csv", ("imgpath",), lesions)
    clinical = (_clinical_row(spec, row) for row in rows if row["label"] == "NCP")
    write_csv(spec.root / "metadata.csv", ("patient_id", "scan_id", *CLINICAL_RANGES), clinical)


def _write_scan(case: tuple[DatasetSpec, int, int]) -> dict[str, Any]:
    spec, patient, number = case
    label = CLASSES[patient % 3]
    chest = Chest((spec.seed, 50, patient, number), voxels_in_plane=spec.voxels_in_plane)
    if label == "NCP":
        extra = [chest.side() for _ in range(int(chest.generator.integers(1, 5)))]
        chest.add_opacities([RIGHT, LEFT, *extra], low_mm=16, high_mm=36)
    elif label == "CP":
        side, radius = chest.side(), chest.radius(26, 45)
        centre = chest.deep_point(side, 20)
        chest.add_lung_lesion(centre, (0.8 * radius, radius, radius), chest.uniform(0, 50), side=side)
    volume = chest.scan(slice_factor=SLICE_FACTORS[patient % len(SLICE_FACTORS)])
    scan_id = 10 * patient + number + 1
    folder, suffix = f"{label}/{patient + 1}/{scan_id}", "jpg" if patient % 5 == 4 else "png"
    paths = [f"{folder}/{index:04d}.{suffix}" for index in range(len(volume.hu))]
    for path, pixels in zip(paths, grey_values(volume.hu, WINDOW_HU), strict=True):
        write_image(spec.root / path, pixels)
    has_lesion = volume.mask.any((1, 2))[::-1]
    values = (f"{label}-{1 + patient // 12}.zip", label, patient + 1, scan_id, len(paths))
    lesions = [path for path, has in zip(paths, has_lesion, strict=True) if has]
    return dict(zip(FILE_COLUMNS, values, strict=True)) | {"lesions": lesions}


def _clinical_row(spec: DatasetSpec, row: dict[str, Any]) -> dict[str, Any]:
    generator = spec.generator(51, row["scan_id"])
    values = {column: int(generator.integers(*limits)) for column, limits in CLINICAL_RANGES.items()}
    return {"patient_id": row["patient_id"], "scan_id": row["scan_id"], **values}
