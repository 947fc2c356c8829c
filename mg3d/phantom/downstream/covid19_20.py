"""COVID-19-20: bilateral peripheral ground glass, thick slices. `Train` is labelled, `Validation` is not."""

from mg3d.phantom.body import LEFT, RIGHT
from mg3d.phantom.downstream.chest import Chest
from mg3d.phantom.spec import DatasetSpec
from mg3d.phantom.writers import write_volume

TOP = "COVID-19-20_v2"
TRAIN, VALIDATION = 0, 1
FIRST_NUMBER = {TRAIN: 3, VALIDATION: 5}
SLICE_FACTORS = (1.0, 1.5, 2.0)


def write(spec: DatasetSpec) -> None:
    """Write `spec.cases` labelled scans and a quarter as many unlabelled ones."""
    cases = [(spec, TRAIN, index) for index in range(spec.cases)]
    cases += [(spec, VALIDATION, index) for index in range(max(1, spec.cases // 4))]
    spec.map(_write_case, cases)


def _write_case(case: tuple[DatasetSpec, int, int]) -> None:
    spec, group, index = case
    chest = Chest((spec.seed, 20, group, index), voxels_in_plane=spec.voxels_in_plane)
    extra = [chest.side() for _ in range(int(chest.generator.integers(0, 4)))]
    chest.add_opacities([RIGHT, LEFT, *extra], low_mm=14, high_mm=34)
    volume = chest.scan(slice_factor=SLICE_FACTORS[index % len(SLICE_FACTORS)])
    folder = spec.root / TOP / ("Train" if group == TRAIN else "Validation")
    stem = f"volume-covid19-A-{3 * index + FIRST_NUMBER[group]:04d}"  # numbers have gaps, as in the public set
    axis_codes = "LPS" if index % 2 == 0 else "RAS"
    write_volume(folder / f"{stem}_ct.nii.gz", volume.hu, volume, axis_codes)
    if group == TRAIN:
        write_volume(folder / f"{stem}_seg.nii.gz", volume.mask, volume, axis_codes)
