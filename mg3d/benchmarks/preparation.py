"""Preparation of CT-RATE volumes against MONAI's transforms on the same file, and two processes against one."""

import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch
from monai import transforms

from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow, compare
from mg3d.preparation.hounsfield import CLIP_HU
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import VolumeRecord
from mg3d.preparation.voxels import make_volume
from mg3d.settings.schema import CROP

PER_CORE_TARGET = 3.0
TWO_PROCESSES_TARGET = 1.8
SPACING_MM = (1.0, 0.7, 0.7)


def run(options: BenchmarkOptions) -> list[BenchmarkRow]:
    """A volume of 300 x 512 x 512 voxels (`quick`: 50 x 128 x 128) to 128 x 96 x 128, one thread per process."""
    source, rounds, files = ((50, 128, 128), 1, 2) if options.quick else ((300, 512, 512), 5, 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = write_phantom(Path(folder) / "volume.nii.gz", source)
            per_core = [_against_monai(path, source, resize, rounds) for resize in ("trilinear", "antialias")]
            rows = [*per_core, _two_processes(path, files, rounds)]
            return [row._replace(target=None) for row in rows] if options.quick else rows
    finally:
        torch.set_num_threads(threads)


def write_phantom(path: Path, shape: tuple[int, int, int], seed: int = 0) -> Path:
    """A noisy body in air, int16 HU, stored right to left so that it has to be reoriented."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, length, dtype=np.float32) for length in shape), indexing="ij", sparse=True)
    body = (y / 0.7) ** 2 + (x / 0.9) ** 2 < 1
    lungs = (y / 0.45) ** 2 + ((np.abs(x) - 0.42) / 0.3) ** 2 + z**2 < 1
    volume = np.where(body, np.where(lungs, -850, 40), -1000) + rng.normal(0, 12, shape).astype(np.float32)
    affine = np.diag([*SPACING_MM[::-1], 1.0])
    nib.save(nib.Nifti1Image(volume.astype(np.int16).transpose(2, 1, 0), affine), path)
    return path


def monai_chain(
    source: Sequence[int], shape: Sequence[int], window: tuple[float, float], scaled: tuple[float, float]
) -> transforms.Compose:
    """MONAI's transforms for the same steps: file -> [1, x, y, z]. Shapes are z, y, x."""
    cropped = [max(1, round(fraction * length)) for fraction, length in zip(CROP, source)]
    return transforms.Compose(
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.Orientation("LPS", labels=None),
            transforms.ScaleIntensityRange(*window, *scaled, clip=True),
            transforms.CenterSpatialCrop(cropped[::-1]),
            transforms.Resize(list(shape[::-1]), mode="trilinear"),
        ]
    )


def _prepare(path: Path, recipe: Recipe) -> np.ndarray:
    record = VolumeRecord(
        volume_id="ct_rate/0", study_id="0", patient_id="0", dataset="ct_rate", official_split="train", split="train",
        reconstruction=1, findings=None, impression=None, files=(path.name,), source=path.name, reader="nifti",
    )  # fmt: skip
    return make_volume(record, path.parent, recipe)[0]


def _against_monai(path: Path, source: Sequence[int], resize: Literal["trilinear", "antialias"], rounds: int) -> BenchmarkRow:
    recipe = Recipe(resize=resize)
    chain = monai_chain(source, recipe.shape, CLIP_HU, CLIP_HU)
    difference = np.abs(_prepare(path, recipe) - chain(path)[0].numpy().transpose(2, 1, 0)).max()
    note = f"largest difference {difference:.3f} HU (ours is rounded)" if resize == "trilinear" else "MONAI does not antialias"
    return compare(
        f"one volume on one core, {resize}", ("mg3d", lambda: _prepare(path, recipe)), ("MONAI", lambda: chain(path)),
        rounds=rounds, target=PER_CORE_TARGET, note=note,
    )  # fmt: skip


def _two_processes(path: Path, files: int, rounds: int) -> BenchmarkRow:
    """The same file `files` times with two worker processes and with one; both pools are started before the measurement."""
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(count, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) for count in (2, 1)]
    try:
        two, one = (lambda pool=pool: list(pool.map(_prepare, [path] * files, [Recipe()] * files)) for pool in pools)
        return compare(f"{files} volumes", ("2 processes", two), ("1 process", one), rounds=rounds, target=TWO_PROCESSES_TARGET)
    finally:
        for pool in pools:
            pool.shutdown()
