"""What is wrong with the masks of a segmentation, found before an epoch is spent."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mg3d.finetune.cases import Case

Found = Mapping[str, Mapping[str, Any]]
"""What `mg3d.finetune.usable.survey` gives."""


def refuse_bad_masks(cases: Sequence[Case], found: Found, *, structures: int) -> None:
    """Raises ValueError where masks are missing, on another grid, or of values above `structures`."""
    unlabelled = [case.case_id for case in cases if case.mask is None]
    if unlabelled:
        raise ValueError(f"{len(unlabelled)} of {len(cases)} cases have no mask, such as {unlabelled[:3]}")
    other = [name for name, facts in found.items() if not _same_grid(facts["image"], facts["mask"])]
    if other:
        first = found[other[0]]
        raise ValueError(
            f"{len(other)} of {len(found)} masks are not on their scan's grid, such as that of {other[0]}: {first['mask'][0]} "
            f"voxels, the scan has {first['image'][0]}, or they lie elsewhere in space; a mask needs its scan's voxels and affine"
        )
    strange = [name for name, facts in found.items() if not set(facts["values"]) <= set(range(structures + 1))]
    if strange:
        raise ValueError(
            f"{len(strange)} of {len(found)} masks hold values that are not declared, such as {strange[0]}: "
            f"{found[strange[0]]['values'][:8]}; expected whole numbers from 0 to {structures}"
        )


def refuse_empty_masks(found: Found, outputs: Sequence[str]) -> None:
    """Raises ValueError where a structure is in none of the training cases' masks."""
    values = {value for facts in found.values() for value in facts["values"]}
    absent = [name for value, name in enumerate(outputs, start=1) if value not in values]
    if absent:
        raise ValueError(
            f"none of the {len(found)} training cases has a voxel of {', '.join(absent)}; nothing could be learned: check the "
            "masks, or use more cases"
        )


def _same_grid(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return one[0] == other[0] and np.allclose(one[1], other[1], atol=1e-2)
