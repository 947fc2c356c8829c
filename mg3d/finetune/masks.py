"""What is wrong with the masks of a segmentation, found before an epoch is spent."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mg3d.files import write_json
from mg3d.finetune.cases import ArrowRow, Case
from mg3d.finetune.images import read_grid, read_image
from mg3d.finetune.ranks import first_does


def survey(cases: Sequence[Case], memory: Path) -> dict[str, dict[str, Any]]:
    """Case -> `values` of its mask, and its `mask` and `image` grids as [voxels, affine]; cases without a mask are left out.

    memory: a JSON file of what was read before; a file of equal name, size and time is not read again.
        The first process writes it.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read.
    """
    keys = {case.case_id: _key(case) for case in cases if case.mask is not None}
    first_does(lambda: _remember(cases, keys, memory), done=lambda: set(keys.values()) <= set(_known(memory)), what=str(memory))
    known = _known(memory)
    return {name: known[key] for name, key in keys.items()}


def _known(memory: Path) -> dict[str, dict[str, Any]]:
    return json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}


def _remember(cases: Sequence[Case], keys: Mapping[str, str], memory: Path) -> None:
    known = _known(memory)
    unread = [case for case in cases if case.case_id in keys and keys[case.case_id] not in known]
    if not unread:
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = tqdm(pool.map(_read, unread), "reading masks", len(unread), disable=None)
        known |= {keys[case.case_id]: found for case, found in zip(unread, read, strict=True)}
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_json(memory, known)


def refuse_bad_masks(cases: Sequence[Case], memory: Path, *, structures: int) -> None:
    """Raises ValueError where masks are missing, on another grid, of values above `structures`, or without any foreground."""
    unlabelled = [case.case_id for case in cases if case.mask is None]
    if unlabelled:
        raise ValueError(f"{len(unlabelled)} of {len(cases)} cases have no mask, such as {unlabelled[:3]}")
    found = survey(cases, memory)
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


def refuse_empty_masks(cases: Sequence[Case], memory: Path, outputs: Sequence[str]) -> None:
    """Raises ValueError where a structure is in none of the training cases' masks."""
    values = {value for facts in survey(cases, memory).values() for value in facts["values"]}
    absent = [name for value, name in enumerate(outputs, start=1) if value not in values]
    if absent:
        raise ValueError(
            f"none of the {len(cases)} training cases has a voxel of {', '.join(absent)}; nothing could be learned: check the "
            "masks, or use more cases"
        )


def _key(case: Case) -> str:
    parts = []
    for source in (case.mask, case.image):
        path = source if isinstance(source, Path) else source[0]
        stat = path.stat() if path.exists() else None
        parts.append([str(path.absolute()), stat.st_size, stat.st_mtime_ns] if stat else [str(path)])
        parts[-1] += source[1:] if isinstance(source, ArrowRow) else []
    return json.dumps(parts)


def _read(case: Case) -> dict[str, Any]:
    mask = read_image(case.mask)
    shape, affine = read_grid(case.image)
    array = mask.numpy()
    whole = array.astype(np.int32)
    held = np.flatnonzero(np.bincount(whole.ravel())) if whole.min() >= 0 and (whole == array).all() else np.unique(array)
    return {
        "values": [int(value) if value == int(value) else float(value) for value in held[:100]],
        "image": [list(shape), np.asarray(affine).tolist()],
        "mask": [list(array.shape[1:]), np.asarray(mask.affine).tolist()],
    }


def _same_grid(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return one[0] == other[0] and np.allclose(one[1], other[1], atol=1e-2)
