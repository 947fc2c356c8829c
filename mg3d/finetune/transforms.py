"""MONAI transforms that the downstream folders share. Axes are z, y, x with +z superior, +y posterior, +x left.

A folder declares three lists: `preprocess` (deterministic, cached), `crop` (training patches) and `augment` (random). All of them
read `image` [1, z, y, x] and, where there is one, `mask`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai import transforms as mt
from monai.data import MetaTensor

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.images import read_image

Sample = dict[str, Any]
KEYS = ("image", "mask")
AXES = "SPL"
"""MONAI's axis codes of z, y, x with +z superior, +y posterior, +x left."""
SUPERIOR_FIRST = np.diag([-1.0, -1.0, -1.0, 1.0])
"""RAS affine of array axes x (left), y (posterior), z (inferior)."""


class ReadCase(mt.Transform):
    """A case as a sample: `image` and, if `masks`, `mask`, oriented to z, y, x; its names and target."""

    def __init__(self, *, masks: bool, channel: int | None = None, superior_first: bool = False, orient: bool = True) -> None:
        self.masks, self.channel = masks, channel
        steps = [*([AssumeSuperiorFirst()] if superior_first else []), *([orientation()] if orient else [])]
        self.orient = mt.Compose(steps)

    def __call__(self, case: FinetuneCase) -> Sample:
        """Reads the files of a case."""
        sample: Sample = {"case_id": case.case_id, "patient_id": case.patient_id}
        sample["image"] = read_image(case.image, channel=self.channel)
        if case.target:
            sample["target"] = torch.tensor(case.target)
        if self.masks and case.mask is not None:
            sample["mask"] = read_image(case.mask)
        return self.orient(sample)


class CenterCropRaw(mt.Transform):
    """Crops to a central fraction (z, y, x), except for volumes of the pre-training preparation, which are cropped already."""

    def __init__(self, fraction: Sequence[float]) -> None:
        self.crop = mt.CenterScaleCropd(KEYS, roi_scale=fraction, allow_missing_keys=True)

    def __call__(self, sample: Sample) -> Sample:
        """Reads `meta["prepared"]` of the image."""
        return sample if sample["image"].meta.get("prepared") else self.crop(sample)


class AssumeSuperiorFirst(mt.Transform):
    """Sets the affine of a NIfTI file with a blank header whose slices run from superior to inferior. Use before orienting."""

    def __call__(self, sample: Sample) -> Sample:
        """Reads and writes `image`."""
        image = sample["image"]
        affine, centre = np.asarray(image.affine), (np.array(image.shape[1:]) - 1) / 2
        signs = np.diag(affine)[:3]
        # Libraries read a header without an affine as the identity, or with the origin in the centre of the volume.
        is_plain = np.allclose(affine[:3, :3], np.diag(signs)) and tuple(signs) in {(1, 1, 1), (-1, 1, 1)}
        is_blank = is_plain and any(np.allclose(affine[:3, 3], origin, atol=1e-3) for origin in (0, -signs * centre))
        if not is_blank:
            return sample
        meta = {name: value for name, value in image.meta.items() if name != "affine"}
        return sample | {"image": MetaTensor(image.as_tensor(), affine=torch.as_tensor(SUPERIOR_FIRST), meta=meta)}


def plain_tensors() -> mt.Transform:
    """Drops the history of transforms where nothing returns to the file's grid."""
    return mt.EnsureTyped(KEYS, track_meta=False, allow_missing_keys=True)


def orientation() -> mt.Transform:
    """Axes of any file to z, y, x."""
    return mt.Orientationd(KEYS, axcodes=AXES, labels=None, allow_missing_keys=True)


def spacing(spacing_mm: Sequence[float]) -> mt.Transform:
    """Resampling to voxels of this size (z, y, x) in mm."""
    return mt.Spacingd(
        KEYS, pixdim=spacing_mm, mode=("bilinear", "nearest"), padding_mode="border", allow_missing_keys=True
    )  # fmt: skip


def window(low: float, high: float) -> mt.Transform:
    """Intensities from `low` to `high` to 0 .. 1, clipped."""
    return mt.ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)


def z_score() -> mt.Transform:
    """Intensities to mean 0 and standard deviation 1 over non-zero voxels."""
    return mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True)


def crop_foreground() -> mt.Transform:
    """Crop to voxels above 0."""
    return mt.CropForegroundd(KEYS, source_key="image", allow_smaller=True, allow_missing_keys=True)


def crop_superior(depth: int) -> mt.Transform:
    """At most `depth` slices at the superior end."""
    return mt.SpatialCropd(KEYS, roi_slices=[slice(-depth, None), slice(None), slice(None)], allow_missing_keys=True)


def crop_or_pad(size: Sequence[int]) -> mt.Transform:
    """Crop or pad to this size around the centre; -1 leaves an axis unchanged."""
    return mt.ResizeWithPadOrCropd(KEYS, spatial_size=size, allow_missing_keys=True)


def resize(size: Sequence[int]) -> mt.Transform:
    """Trilinear resizing of the image to this size, with anti-aliasing."""
    return mt.Resized("image", spatial_size=size, mode="trilinear", anti_aliasing=True)


def pad(size: Sequence[int]) -> mt.Transform:
    """Pad with zeros to at least this size."""
    return mt.SpatialPadd(KEYS, spatial_size=size, allow_missing_keys=True)


def foreground_patches(size: Sequence[int], count: int, *, balanced_classes: int = 0) -> mt.Transform:
    """`count` training patches per case, half of them around foreground.

    balanced_classes: number of structures; each is the centre of equally many patches. 0: any foreground voxel.
    """
    shared: dict[str, Any] = {"keys": KEYS, "label_key": "mask", "spatial_size": size, "num_samples": count}
    if not balanced_classes:
        return mt.RandCropByPosNegLabeld(**shared, pos=0.5, neg=0.5)
    ratios = [0.5, *[0.5 / balanced_classes] * balanced_classes]
    return mt.RandCropByLabelClassesd(**shared, ratios=ratios, num_classes=balanced_classes + 1)


def flips(*chances: float) -> list[mt.Transform]:
    """Mirroring along z, y, x with these probabilities."""
    return [
        mt.RandFlipd(KEYS, prob=chance, spatial_axis=axis, allow_missing_keys=True)
        for axis, chance in enumerate(chances)
        if chance
    ]


def rotate_and_scale(chance: float, rotate_rad: Sequence[float], scale: Sequence[float] = (0.0, 0.0, 0.0)) -> mt.Transform:
    """Rotation about z, y, x by at most `rotate_rad` and scaling by at most `scale`, with this probability."""
    return mt.RandAffined(
        KEYS, prob=chance, rotate_range=rotate_rad, scale_range=scale, mode=("bilinear", "nearest"), padding_mode="border",
        allow_missing_keys=True,
    )  # fmt: skip


def rotate_90(chance: float) -> mt.Transform:
    """One to three quarter turns in the axial plane."""
    return mt.RandRotate90d(KEYS, prob=chance, max_k=3, spatial_axes=(1, 2), allow_missing_keys=True)
