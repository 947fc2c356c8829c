"""Preparation of CT-RATE volumes beside MONAI's transforms on the same files, and two processes beside one."""

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch
from monai import transforms

from mg3d.benchmarks.timing import Comparison, Options, compare
from mg3d.preparation.hounsfield import CLIP_HU
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import VolumeRecord
from mg3d.preparation.voxels import make_volume
from mg3d.settings.schema import CROP

PER_CORE_GOAL = 3.0
TWO_PROCESSES_GOAL = 1.8
_SPACING_MM = (1.0, 0.7, 0.7)


def run(options: Options) -> list[Comparison]:
    """Volumes of 300 x 512 x 512 voxels to 128 x 96 x 128 (`options.quick`: 50 x 128 x 128), one thread for each process."""
    source, rounds, files = ((50, 128, 128), 1, 2) if options.quick else ((300, 512, 512), 5, 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "volume.nii.gz"
            _write(path, source)
            per_core = [_beside_monai(path, source, resize, rounds) for resize in ("trilinear", "antialias")]
            return [*per_core, _two_beside_one(path, files, rounds)]
    finally:
        torch.set_num_threads(threads)


def _write(path: Path, shape: tuple[int, int, int]) -> None:
    """A noisy body in air, HU [i, j, k] right to left, so that orientation has something to do."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, length, dtype=np.float32) for length in shape), indexing="ij", sparse=True)
    inside = (y / 0.7) ** 2 + (x / 0.9) ** 2 < 1
    lung = (y / 0.45) ** 2 + ((np.abs(x) - 0.42) / 0.3) ** 2 + z**2 < 1
    volume = np.where(inside, np.where(lung, -850, 40), -1000) + rng.normal(0, 12, shape).astype(np.float32)
    affine = np.diag([_SPACING_MM[2], _SPACING_MM[1], _SPACING_MM[0], 1.0])
    nib.save(nib.Nifti1Image(volume.astype(np.int16).transpose(2, 1, 0), affine), path)


def _record(path: Path) -> VolumeRecord:
    return VolumeRecord(
        volume_id="ct_rate/0", study_id="0", patient_id="0", dataset="ct_rate", official_split="train", split="train",
        reconstruction=1, findings=None, impression=None, files=(path.name,), source=path.name, reader="nifti",
    )  # fmt: skip


def _ours(path: Path, recipe: Recipe) -> np.ndarray:
    return make_volume(_record(path), path.parent, recipe)[0]


def _monai(source: tuple[int, int, int], recipe: Recipe) -> Callable[[Path], np.ndarray]:
    """The same steps from MONAI: HU [z, y, x] as float32. Source z, y, x, MONAI's axes are x, y, z."""
    low, high = CLIP_HU
    cropped = [max(1, round(share * length)) for share, length in zip(CROP, source)]
    chain = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.Orientation("LPS", labels=None),
            transforms.ScaleIntensityRange(low, high, low, high, clip=True),
            transforms.CenterSpatialCrop(cropped[::-1]),
            transforms.Resize(recipe.shape[::-1], mode="trilinear"),
        ]
    )
    return lambda path: chain(path)[0].numpy().transpose(2, 1, 0)


def _beside_monai(path: Path, source: tuple[int, int, int], resize: Literal["trilinear", "antialias"], rounds: int) -> Comparison:
    recipe = Recipe(resize=resize)
    chain = _monai(source, recipe)
    gap = np.abs(_ours(path, recipe) - chain(path)).max()
    note = f"largest difference {gap:.3f} HU (ours is rounded)" if resize == "trilinear" else "outputs differ by the antialiasing"
    return compare(
        f"a volume on one core, {resize}", ("make_volume", lambda: _ours(path, recipe)), ("MONAI", lambda: chain(path)),
        rounds=rounds, goal=PER_CORE_GOAL, note=note,
    )  # fmt: skip


def _two_beside_one(path: Path, files: int, rounds: int) -> Comparison:
    """The same file `files` times by one process and by two, which are there before the clock runs."""
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(count, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) for count in (2, 1)]
    try:
        two, one = (lambda pool=pool: list(pool.map(_ours, [path] * files, [Recipe()] * files)) for pool in pools)
        return compare(f"{files} volumes", ("2 processes", two), ("1 process", one), rounds=rounds, goal=TWO_PROCESSES_GOAL)
    finally:
        for pool in pools:
            pool.shutdown()
