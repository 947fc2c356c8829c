"""A spreadsheet of scans with one label, as a user would bring them: pleural effusion or not, NIfTI and MetaImage."""

from mg3d.phantom.downstream.chest import Chest
from mg3d.phantom.spec import DatasetSpec
from mg3d.phantom.writers import write_csv, write_metaimage, write_volume

COLUMNS = ("path", "patient", "effusion")
OTHER_FINDINGS: tuple[tuple[str, ...], ...] = ((), ("Lung nodule",), ("Emphysema",))
SLICE_FACTORS = (1.0, 1.3, 1.6)


def write(spec: DatasetSpec) -> None:
    """Write the scans and labels.csv; half of them show an effusion."""
    rows = spec.map(_write_case, [(spec, number) for number in range(spec.cases)])
    write_csv(spec.root / "labels.csv", COLUMNS, rows)


def _write_case(case: tuple[DatasetSpec, int]) -> dict[str, int | str]:
    spec, number = case
    has_effusion = number % 2
    findings = (*OTHER_FINDINGS[number // 2 % 3], *("Pleural effusion",) * has_effusion)
    chest = Chest((spec.seed, 50, number), voxels_in_plane=spec.voxels_in_plane, other_findings=findings)
    volume = chest.scan(slice_factor=SLICE_FACTORS[number % 3])
    path = f"scans/scan{number:03d}" + (".mha" if number % 3 == 2 else ".nii.gz")
    if path.endswith(".mha"):
        write_metaimage(spec.root / path, volume)
    else:
        write_volume(spec.root / path, volume.hu, volume, "LPS")
    return dict(zip(COLUMNS, (path, f"P{number:03d}", has_effusion), strict=True))
