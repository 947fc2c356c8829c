"""ACDC: short-axis cine MRI with thick slices. Labels: 1 = right ventricle, 2 = myocardium, 3 = left ventricle."""

import math
from typing import NamedTuple

import numpy as np

from mg3d.files import write_bytes
from mg3d.phantom.spec import DatasetSpec
from mg3d.phantom.writers import write_nifti

FOV_MM, SLICE_MM, FRAMES = 150.0, 10.0, 10
LUNG, BODY, MUSCLE, BLOOD = 0.12, 0.45, 0.35, 1.0
"""Signal relative to blood."""


class HeartShape(NamedTuple):
    """Radii at end-diastole in mm, and the fraction of them that is left at end-systole."""

    left: float
    wall: float
    right: float
    systolic_fraction: float


GROUPS = {
    "NOR": HeartShape(24, 9, 30, 0.65),
    "MINF": HeartShape(27, 8, 30, 0.82),
    "DCM": HeartShape(34, 7, 32, 0.88),
    "HCM": HeartShape(20, 16, 28, 0.55),
    "RV": HeartShape(23, 9, 42, 0.70),
}


def write(spec: DatasetSpec) -> None:
    """Write two thirds of the patients into `training` and one third into `testing`."""
    n_training = max(2, round(spec.cases * 2 / 3))
    spec.map(_write_patient, [(spec, number, n_training) for number in range(1, 1 + spec.cases)])


def _write_patient(case: tuple[DatasetSpec, int, int]) -> None:
    spec, number, n_training = case
    generator = spec.generator(70, number)
    name, group = f"patient{number:03d}", list(GROUPS)[(number - 1) % len(GROUPS)]
    folder = spec.root / ("training" if number <= n_training else "testing") / name
    systole = int(generator.integers(4, 7))
    images, masks, affine = _draw_cine(spec, generator, GROUPS[group], systole)

    def save(stem: str, values: np.ndarray) -> None:
        write_nifti(folder / f"{stem}.nii.gz", values, affine, coded=True, units=("mm", "sec"))

    save(f"{name}_4d", images)
    for frame in (1, systole):
        save(f"{name}_frame{frame:02d}", images[..., frame - 1])
        save(f"{name}_frame{frame:02d}_gt", masks[..., frame - 1])
    info = {"ED": 1, "ES": systole, "Group": group, "Height": float(generator.integers(150, 195)), "NbFrame": FRAMES}
    info["Weight"] = float(generator.integers(50, 110))
    write_bytes(folder / "Info.cfg", "".join(f"{key}: {value}\n" for key, value in info.items()).encode())


def _draw_cine(
    spec: DatasetSpec, generator: np.random.Generator, shape: HeartShape, systole: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int16 images and uint8 masks [x, y, slice, frame], and the affine of a plane rotated about the slice axis."""
    size, slices = spec.voxels_in_plane, int(generator.integers(7, 11))
    spacing, size_factor = FOV_MM / size, float(generator.normal(1, 0.06))
    axis = (np.arange(size) - (size - 1) / 2) * spacing
    x = axis[:, None, None] - generator.uniform(-8, 8)
    y = axis[None, :, None] - generator.uniform(-8, 8)
    taper = np.sqrt(1 - (np.linspace(0.08, 0.93, slices)[None, None, :]) ** 2)  # from base to apex
    bias = 1 + 0.2 * np.sin((x + generator.uniform(-60, 60)) / 50) * np.cos((y + generator.uniform(-60, 60)) / 60)
    gain, images, masks = generator.uniform(120, 400), [], []
    for frame in range(FRAMES):
        phase = frame / (systole - 1) if frame < systole else (FRAMES - frame) / (FRAMES - systole + 1)
        contraction = 1 - (1 - shape.systolic_fraction) * math.sin(0.5 * math.pi * phase)
        mask = _heart_labels(x, y, taper * size_factor, shape, contraction)
        signal = np.where(x**2 + y**2 < 62**2, BODY, LUNG) + 0.06 * np.sin(x / 7) * np.cos(y / 9)
        signal = np.choose(mask, [signal, BLOOD, MUSCLE, BLOOD]) * bias
        images.append(gain * (signal + 0.03 * generator.standard_normal(mask.shape)))
        masks.append(mask)
    angle = generator.uniform(-0.5, 0.5)
    rotation = np.array([[-math.cos(angle), math.sin(angle), 0], [-math.sin(angle), -math.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * (spacing, spacing, SLICE_MM)
    affine[:3, 3] = generator.uniform(-60, 60, 3)
    return np.rint(np.clip(np.stack(images, -1), 0, None)).astype(np.int16), np.stack(masks, -1).astype(np.uint8), affine


def _heart_labels(x: np.ndarray, y: np.ndarray, taper: np.ndarray, shape: HeartShape, contraction: float) -> np.ndarray:
    """Labels [x, y, slice]; the right ventricle is a crescent on the septum."""
    left = shape.left * contraction * taper
    wall = shape.wall * (1 + 0.6 * (1 - contraction)) * np.sqrt(taper)  # myocardial volume is constant
    rho = np.hypot(x - 14, y)
    right = np.hypot((x + 14) / 1.15, y) < shape.right * (0.3 + 0.7 * contraction) * taper * 0.9
    return np.select([rho < left, rho < left + wall, right], [3, 2, 1], 0)
