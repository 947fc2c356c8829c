"""Scans that are stacks of pictures from the top of the chest down, and say nothing of it."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from monai import transforms as mt
from monai.data import MetaTensor

from mg3d.finetune.cases import Case
from mg3d.finetune.images import slices_of
from mg3d.finetune.pipeline import Sample

TOP_FIRST = np.diag([-1.0, -1.0, -1.0, 1.0])
"""RAS of array axes x to the left, y to the back, z downwards, as the columns, rows and order of the pictures."""


def upwards(case: Case) -> Case:
    """A case of slices with the lowest first, however they came, by the numbers in their names; any other as it is."""
    if not isinstance(case.image, tuple) or not all(isinstance(file, Path) for file in case.image):
        return case
    return dataclasses.replace(case, image=slices_of(case.image)[::-1])


class StateTopFirst(mt.Transform):
    """States the directions of a NIfTI file whose header is blank; all others keep their own."""

    def __call__(self, sample: Sample) -> Sample:
        """`image` with its affine."""
        image = sample["image"]
        affine, centre = np.asarray(image.affine), (np.array(image.shape[1:]) - 1) / 2
        signs = np.diag(affine)[:3]
        # What a library makes of a header without any affine: the identity, or the volume's centre as the origin.
        plain = np.allclose(affine[:3, :3], np.diag(signs)) and tuple(signs) in {(1, 1, 1), (-1, 1, 1)}
        blank = plain and any(np.allclose(affine[:3, 3], origin, atol=1e-3) for origin in (0, -signs * centre))
        return sample | {"image": MetaTensor(image.as_tensor(), affine=torch.as_tensor(TOP_FIRST))} if blank else sample
