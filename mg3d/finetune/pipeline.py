"""Scans on their way to the network: fixed steps, random changes, and the order in which cases are drawn."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai import transforms as mt
from torch.utils.data import Dataset, Sampler

from mg3d.finetune.cases import Case
from mg3d.finetune.images import read_image
from mg3d.finetune.task import Augment, Preprocess

OURS = "SPL"
"""MONAI's letters for array axes z, y, x with +z superior, +y posterior, +x left."""
Sample = dict[str, Any]
Ticket = int
"""epoch * (number of cases) + place of the case. A draw depends on it and on nothing else, such as a worker or rank."""


class ReadCase(mt.Transform):
    """A case as a sample: `image` and, where there is one, `mask`, both [1, ...] with their affine, and what names it."""

    def __init__(self, *, masks: bool, channel: int | None = None) -> None:
        self.masks, self.channel = masks, channel

    def __call__(self, case: Case) -> Sample:
        """Reads the files of a case; ValueError where mask and image do not lie on one grid."""
        sample: Sample = {"case_id": case.case_id, "patient_id": case.patient_id}
        sample["image"] = read_image(case.image, channel=self.channel)
        if case.target:
            sample["target"] = torch.tensor(case.target)
        if self.masks and case.mask is not None:
            sample["mask"] = read_image(case.mask)
            image, mask = sample["image"], sample["mask"]
            if image.shape != mask.shape or not np.allclose(image.affine, mask.affine, atol=1e-2):
                raise ValueError(
                    f"{case.case_id}: the mask has {tuple(mask.shape[1:])} voxels and the scan {tuple(image.shape[1:])}, or they "
                    "lie elsewhere in space; a mask must lie on its scan's grid"
                )
        return sample


class CropTop(mt.MapTransform):
    """Keeps at most `depth` slices from the superior end (the last along z)."""

    def __init__(self, keys: Sequence[str], depth: int) -> None:
        super().__init__(keys)
        self.crop = mt.SpatialCrop
        self.depth = depth

    def __call__(self, sample: Sample) -> Sample:
        """Crops `image` [1, z, y, x] and whatever goes with it."""
        sample = dict(sample)
        for key in self.key_iterator(sample):
            depth, height, width = sample[key].shape[1:]
            start = max(depth - self.depth, 0)
            sample[key] = self.crop(roi_start=(start, 0, 0), roi_end=(depth, height, width))(sample[key])
        return sample


def reordered(values: Sequence[Any], axes: str) -> tuple[Any, ...]:
    """Numbers along z, y, x in the order of the array axes `axes` (MONAI's letters)."""
    place = {"S": 0, "I": 0, "A": 1, "P": 1, "L": 2, "R": 2}
    return tuple(values[place[letter]] for letter in axes)


def fixed_steps(steps: Preprocess, *, keys: Sequence[str], axes: str = OURS) -> list[mt.Transform]:
    """From the file's own grid to the network's, the same for training and evaluation; but for `keep` and `extent_top`,
    MONAI can invert each step.

    keys: `image`, and `mask` where there is one. axes: order and directions of the array axes.
    """
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    made: list[mt.Transform] = [mt.Orientationd(keys, axcodes=axes, labels=None)]
    if steps.spacing_mm:
        made.append(mt.Spacingd(keys, pixdim=reordered(steps.spacing_mm, axes), mode=modes, padding_mode="border"))
    if steps.window:
        low, high = steps.window
        made.append(mt.ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True))
    else:
        made.append(mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True))
    if steps.foreground:
        made.append(mt.CropForegroundd(keys, source_key="image", allow_smaller=True))
    if steps.keep:
        made.append(KeepCentre(keys, reordered(steps.keep, axes)))
    if steps.extent:
        if steps.extent_top:
            made.append(CropTop(keys, steps.extent[0]))
        made.append(mt.ResizeWithPadOrCropd(keys, spatial_size=reordered(steps.extent, axes)))
    if steps.size:
        fine = ["trilinear" if key == "image" else "nearest" for key in keys]
        made.append(
            mt.Resized(keys, spatial_size=reordered(steps.size, axes), mode=fine, anti_aliasing=[m == "trilinear" for m in fine])
        )
    if steps.patch:
        made.append(mt.SpatialPadd(keys, spatial_size=reordered(steps.patch, axes)))
    return made


class KeepCentre(mt.MapTransform):
    """Crops to a central share of each array axis."""

    def __init__(self, keys: Sequence[str], shares: Sequence[float]) -> None:
        super().__init__(keys)
        self.shares = tuple(shares)

    def __call__(self, sample: Sample) -> Sample:
        """Crops every key to round(share * side) voxels."""
        sample = dict(sample)
        for key in self.key_iterator(sample):
            sides = [max(1, round(side * share)) for side, share in zip(sample[key].shape[1:], self.shares, strict=True)]
            sample[key] = mt.CenterSpatialCrop(sides)(sample[key])
        return sample


def random_steps(changes: Augment, *, keys: Sequence[str], axes: str = OURS) -> list[mt.Transform]:
    """The random changes of a training volume, spatial ones with its mask."""
    letters = [axes.index(letter) for letter in (_one_of(axes, "SI"), _one_of(axes, "AP"), _one_of(axes, "LR"))]
    fine = ["bilinear" if key == "image" else "nearest" for key in keys]
    made: list[mt.Transform] = []
    if changes.zoom:
        low, high = changes.zoom_range
        modes = ["area" if key == "image" else "nearest" for key in keys]
        made.append(mt.RandZoomd(keys, prob=changes.zoom, min_zoom=low, max_zoom=high, mode=modes, keep_size=True))
    if changes.affine:
        made.append(
            mt.RandAffined(
                keys, prob=changes.affine, rotate_range=reordered(changes.rotate_rad, axes),
                scale_range=reordered(changes.scale, axes), mode=fine, padding_mode="border",
            )
        )  # fmt: skip
    made += [
        mt.RandFlipd(keys, prob=chance, spatial_axis=axis) for chance, axis in zip(changes.flip, letters, strict=True) if chance
    ]
    if changes.rot90:
        made.append(mt.RandRotate90d(keys, prob=changes.rot90, max_k=3, spatial_axes=(letters[1], letters[2])))
    if changes.noise:
        made.append(mt.RandGaussianNoised("image", prob=changes.noise, std=changes.noise_deviation))
    if changes.intensity_scale:
        made.append(mt.RandScaleIntensityd("image", factors=changes.intensity_factor, prob=changes.intensity_scale))
    if changes.intensity_shift:
        made.append(mt.RandShiftIntensityd("image", offsets=changes.intensity_factor, prob=changes.intensity_shift))
    return made


def _one_of(axes: str, letters: str) -> str:
    return next(letter for letter in axes if letter in letters)


@contextmanager
def own_words() -> Iterator[None]:
    """What a step says of a bad file (ValueError, OSError) in place of MONAI's "applying transform <object>" around it."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException = error
        while type(cause) is RuntimeError and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (ValueError, OSError)):
            raise cause from None
        raise


class CaseDataset(Dataset):
    """Cases through fixed and random steps; what is drawn for a ticket depends on the seed and the ticket alone.

    Args:
        cases: in the order that tickets count.
        fixed: case -> sample.
        random: applied after; a list of samples where it cuts several patches.
        keep: hold what `fixed` gave in memory, for each worker.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        fixed: Callable[[Case], Sample],
        *,
        random: mt.Compose | None = None,
        seed: int = 0,
        keep: bool = False,
    ) -> None:
        self.cases, self.fixed, self.random, self.seed = list(cases), fixed, random, seed
        self.kept: dict[int, Sample] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, ticket: Ticket) -> Sample | list[Sample]:
        place = ticket % len(self.cases)
        sample = self._fixed(place)
        if self.random is None:
            return sample
        words = np.random.SeedSequence([self.seed, ticket]).generate_state(1)
        self.random.set_random_state(seed=int(words[0]))
        return self.random(dict(sample))

    def _fixed(self, place: int) -> Sample:
        if self.kept is not None and place in self.kept:
            return self.kept[place]
        with own_words():
            sample = self.fixed(self.cases[place])
        if self.kept is not None:
            self.kept[place] = sample
        return sample


class TicketSampler(Sampler[Ticket]):
    """This rank's tickets of an epoch, in an order that depends on seed and epoch alone.

    Args:
        draw: generator of the epoch -> places of the cases to draw, in order; `in_order`, `shuffled` or `balanced`.
        count: cases of the data set.
    """

    def __init__(
        self, draw: Callable[[np.random.Generator], np.ndarray], *, count: int, seed: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.draw, self.count, self.seed, self.rank, self.ranks = draw, count, seed, rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def _places(self) -> np.ndarray:
        places = self.draw(np.random.default_rng((self.seed, self.epoch)))
        return np.resize(places, -(-len(places) // self.ranks) * self.ranks)  # the first again, so that all ranks have as many

    def __len__(self) -> int:
        return len(self._places()) // self.ranks

    def __iter__(self) -> Iterator[Ticket]:
        return iter((self.epoch * self.count + self._places()[self.rank :: self.ranks]).tolist())


def in_order(count: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Every case once, always in the same order."""
    return lambda generator: np.arange(count)


def shuffled(count: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Every case once, in another order in every epoch."""
    return lambda generator: generator.permutation(count)


def balanced(classes: Sequence[Any]) -> Callable[[np.random.Generator], np.ndarray]:
    """As many draws as cases, every class (equal entries of `classes`) equally often on average."""
    words, which = np.unique([str(entry) for entry in classes], return_inverse=True)
    chances = 1 / np.bincount(which)[which] / len(words)
    return lambda generator: generator.choice(len(which), size=len(which), p=chances)
