"""ACDC: short-axis cine MR of a beating heart. 1 = right ventricle, 2 = myocardium, 3 = left ventricle; thick slices."""

import math
from typing import NamedTuple

import nibabel as nib
import numpy as np

from mg3d.files import write_bytes, write_json
from mg3d.phantom.ct_rate import write_whole
from mg3d.phantom.downstream.order import Order, for_all

FIELD_MM, SLICE_MM, FRAMES = 150.0, 10.0, 10
LABELS = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
LUNG, BODY, MUSCLE, BLOOD = 0.12, 0.45, 0.35, 1.0
"""Signals, of the blood's."""


class Group(NamedTuple):
    """Radii in mm at end-diastole, and which share of them is left at end-systole."""

    left: float
    wall: float
    right: float
    squeeze: float


GROUPS = {
    "NOR": Group(24, 9, 30, 0.65),
    "MINF": Group(27, 8, 30, 0.82),
    "DCM": Group(34, 7, 32, 0.88),
    "HCM": Group(20, 16, 28, 0.55),
    "RV": Group(23, 9, 42, 0.70),
}


def write(order: Order, *, nnunet: bool = False) -> None:
    """Writes two thirds of the patients into `training`, one third into `testing`.

    nnunet: also the copy `Dataset027_ACDC` with three lists that part frames, not patients, as MG-3D's own lists do.
    """
    training = max(2, round(order.cases * 2 / 3))
    frames = list(for_all(_write_patient, [(order, number, training) for number in range(1, 1 + order.cases)], order.workers))
    if nnunet:
        flat = [name for names in frames for name in names]
        _write_nnunet(order, flat[: 2 * training], flat[2 * training :])


def _write_patient(job: tuple[Order, int, int]) -> list[str]:
    """Writes one patient; gives the names of the two labelled frames."""
    order, number, training = job
    generator = order.generator(70, number)
    name, group = f"patient{number:03d}", list(GROUPS)[(number - 1) % len(GROUPS)]
    folder = order.root / ("training" if number <= training else "testing") / name
    systole = int(generator.integers(4, 7))
    images, masks, affine = _beat(order, generator, GROUPS[group], systole)
    write_whole(folder / f"{name}_4d.nii.gz", _image(images, affine))
    labelled = []
    for frame in (1, systole):
        labelled.append(f"{name}_frame{frame:02d}")
        write_whole(folder / f"{labelled[-1]}.nii.gz", _image(images[..., frame - 1], affine))
        write_whole(folder / f"{labelled[-1]}_gt.nii.gz", _image(masks[..., frame - 1], affine))
    facts = {"ED": 1, "ES": systole, "Group": group, "Height": float(generator.integers(150, 195)), "NbFrame": FRAMES}
    facts["Weight"] = float(generator.integers(50, 110))
    write_bytes(folder / "Info.cfg", "".join(f"{key}: {value}\n" for key, value in facts.items()).encode())
    return labelled


def _image(values: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(np.ascontiguousarray(values), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    return image


def _beat(order: Order, generator: np.random.Generator, group: Group, systole: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int16 images and uint8 masks [x, y, slice, frame], and the affine of a plane that is turned about the slices' axis."""
    size, slices = order.voxels_in_plane, int(generator.integers(7, 11))
    spacing, grow = FIELD_MM / size, float(generator.normal(1, 0.06))
    across = (np.arange(size) - (size - 1) / 2) * spacing
    x = across[:, None, None] - generator.uniform(-8, 8)
    y = across[None, :, None] - generator.uniform(-8, 8)
    taper = np.sqrt(1 - (np.linspace(0.08, 0.93, slices)[None, None, :]) ** 2)  # base first; the apex closes
    bias = 1 + 0.2 * np.sin((x + generator.uniform(-60, 60)) / 50) * np.cos((y + generator.uniform(-60, 60)) / 60)
    gain, images, masks = generator.uniform(120, 400), [], []
    for frame in range(FRAMES):
        phase = frame / (systole - 1) if frame < systole else (FRAMES - frame) / (FRAMES - systole + 1)
        share = 1 - (1 - group.squeeze) * math.sin(0.5 * math.pi * phase)
        mask = _heart(x, y, taper * grow, group, share)
        signal = np.where(x**2 + y**2 < 62**2, BODY, LUNG) + 0.06 * np.sin(x / 7) * np.cos(y / 9)
        signal = np.choose(mask, [signal, BLOOD, MUSCLE, BLOOD]) * bias
        images.append(gain * (signal + 0.03 * generator.standard_normal(mask.shape)))
        masks.append(mask)
    angle = generator.uniform(-0.5, 0.5)
    turn = np.array([[-math.cos(angle), math.sin(angle), 0], [-math.sin(angle), -math.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (spacing, spacing, SLICE_MM)
    affine[:3, 3] = generator.uniform(-60, 60, 3)
    return np.rint(np.clip(np.stack(images, -1), 0, None)).astype(np.int16), np.stack(masks, -1).astype(np.uint8), affine


def _heart(x: np.ndarray, y: np.ndarray, taper: np.ndarray, group: Group, share: float) -> np.ndarray:
    """Labels [x, y, slice]; the right ventricle is a crescent on the septum."""
    left = group.left * share * taper
    wall = group.wall * (1 + 0.6 * (1 - share)) * np.sqrt(taper)  # muscle keeps its volume
    rho = np.hypot(x - 14, y)
    beside = np.hypot((x + 14) / 1.15, y) < group.right * (0.3 + 0.7 * share) * taper * 0.9
    return np.select([rho < left, rho < left + wall, beside], [3, 2, 1], 0)


def _write_nnunet(order: Order, labelled: list[str], unlabelled: list[str]) -> None:
    top = order.root / "Dataset027_ACDC"
    for place, names in (("training", labelled), ("testing", unlabelled)):
        for name in names:
            source = order.root / place / name.split("_")[0] / f"{name}.nii.gz"
            images = "imagesTr" if place == "training" else "imagesTs"
            write_bytes(top / images / f"{name}_0000.nii.gz", source.read_bytes())
            if place == "training":
                write_bytes(top / "labelsTr" / f"{name}.nii.gz", source.with_name(f"{name}_gt.nii.gz").read_bytes())
    entry = {name: {"image": f"./imagesTr/{name}_0000.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in labelled}
    head = {"name": "ACDC", "description": "synthetic", "modality": {"0": "cineMRI"}, "labels": LABELS}
    for fold in range(3):
        mixed = order.generator(71, fold).permutation(labelled).tolist()
        held = set(mixed[: len(mixed) // 5])
        train, held_out = ([entry[name] for name in labelled if (name in held) is kept] for kept in (False, True))
        counts = {"numTraining": len(train), "numTest": len(unlabelled)}
        test = [f"./imagesTs/{name}_0000.nii.gz" for name in unlabelled]
        write_json(top / f"ACDC_fold{fold}.json", head | counts | {"test": test, "training": train, "validation": held_out})
