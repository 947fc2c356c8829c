"""Every file of a data set is read once before training: unusable cases are excluded with a reason, bad masks are refused."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mg3d.files import write_json
from mg3d.finetune.cases import ArrowRow, FinetuneCase, is_preprocessed
from mg3d.finetune.distributed import run_on_first_rank
from mg3d.finetune.images import read_volume

_VERSION = 3
"""Results of another version of the checks are not reused."""
_THREADS = 4
"""Scans that are in memory at the same time."""

InspectedFiles = Mapping[str, Mapping[str, Any]]
"""Case -> `error`, why it cannot be used; else the grid [shape, affine] of `image` and `mask`, and the `values` of the mask."""


def inspect_files(cases: Sequence[FinetuneCase], cache: Path, *, channel: int | None = None) -> InspectedFiles:
    """Reads the files of cases that pre-training has not prepared (and checked) already.

    cache: JSON file of earlier results; a file with the same name, size and times is not read again.
    """
    keys = {case.case_id: _key(case, channel) for case in cases if not is_preprocessed(case.image)}

    def read_new() -> None:
        known = dict(_load(cache))
        new = [case for case in cases if case.case_id in keys and keys[case.case_id] not in known]
        if new:
            with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
                results = tqdm(pool.map(lambda case: _inspect(case, channel), new), "checking files", len(new), disable=None)
                known |= {keys[case.case_id]: result for case, result in zip(new, results, strict=True)}
            write_json(cache, known)

    run_on_first_rank(read_new, done=lambda: set(keys.values()) <= set(_load(cache)), what=str(cache))
    known = _load(cache)
    return {name: known[key] for name, key in keys.items()}


def _load(cache: Path) -> Mapping[str, dict[str, Any]]:
    return json.loads(cache.read_text(encoding="utf-8")) if cache.is_file() else {}


def _key(case: FinetuneCase, channel: int | None) -> str:
    parts: list[Any] = [_VERSION, channel]
    for source in (case.mask, case.image):
        files = [] if source is None else [source] if isinstance(source, Path) else source
        for path in files[:1] if isinstance(source, ArrowRow) else files:
            stat = path.stat() if path.exists() else None
            parts.append([str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] if stat else [str(path)])
        parts.append(source[1:] if isinstance(source, ArrowRow) else [])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _inspect(case: FinetuneCase, channel: int | None) -> dict[str, Any]:
    try:
        image, affine = read_volume(case.image, channel=channel)
        result: dict[str, Any] = {"image": [list(image.shape), np.asarray(affine).tolist()]}
        if case.mask is not None:
            mask, affine = read_volume(case.mask)
            values = [value.item() for value in np.unique(mask)[:100]]
            whole = [int(value) if value == int(value) else value for value in values]
            result |= {"mask": [list(mask.shape), np.asarray(affine).tolist()], "values": whole}
        return result
    except (ValueError, OSError) as error:
        return {"error": str(error).split("\n")[0]}


def check_masks(cases: Sequence[FinetuneCase], files: InspectedFiles, *, structures: int) -> None:
    """Raises ValueError if masks are missing, on another grid than their scan, or have values above `structures`."""
    missing = [case.case_id for case in cases if case.mask is None]
    if missing:
        raise ValueError(f"{len(missing)} of {len(cases)} cases have no mask, such as {missing[:3]}")
    known = {case.case_id: files[case.case_id] for case in cases}
    other = [name for name, file in known.items() if not _same_grid(file["image"], file["mask"])]
    if other:
        first = known[other[0]]
        raise ValueError(
            f"{len(other)} of {len(known)} masks are not on the grid of their scan, such as {other[0]}: {first['mask'][0]} "
            f"voxels, the scan has {first['image'][0]}, or the affines differ; resample the masks to their scans"
        )
    wrong = [name for name, file in known.items() if not set(file["values"]) <= set(range(structures + 1))]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(known)} masks have undeclared values, such as {wrong[0]}: {known[wrong[0]]['values'][:8]}; "
            f"expected integers from 0 to {structures}"
        )


def check_structures(cases: Sequence[FinetuneCase], files: InspectedFiles, outputs: Sequence[str]) -> None:
    """Raises ValueError if no training mask has a voxel of a structure."""
    values = {value for case in cases for value in files[case.case_id]["values"]}
    absent = [name for value, name in enumerate(outputs, start=1) if value not in values]
    if absent:
        raise ValueError(
            f"none of the {len(cases)} training cases has a voxel of {', '.join(absent)}; check the masks, or use more cases"
        )


def _same_grid(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return one[0] == other[0] and np.allclose(one[1], other[1], atol=1e-2)
