"""CT-RATE alone: images, reports, metadata and labels of both splits."""

import shutil

from mg3d.phantom.generate import generate
from mg3d.phantom.spec import DatasetSpec, PhantomSettings


def write(spec: DatasetSpec) -> None:
    """Write three quarters of the patients into train and the others into valid, and `truth/`."""
    valid = max(1, spec.cases // 4)
    write_part(spec, "ct_rate/dataset", train_patients=spec.cases - valid, valid_patients=valid)


def write_part(spec: DatasetSpec, folder: str, *, train_patients: int = 0, valid_patients: int = 0, ctrg_cases: int = 0) -> None:
    """Generate a pre-training set and move the content of one folder, and `truth/`, to the root of the downstream set."""
    generated = spec.root / "generated"
    settings = PhantomSettings(
        train_patients=train_patients, valid_patients=valid_patients, ctrg_cases=ctrg_cases, grid=spec.voxels_in_plane,
        seed=spec.seed,
    )  # fmt: skip
    generate(generated, settings, workers=spec.workers)
    for path in (*(generated / folder).iterdir(), generated / "truth"):
        path.rename(spec.root / path.name)
    shutil.rmtree(generated)
