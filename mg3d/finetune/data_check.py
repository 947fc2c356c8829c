"""Every file of a data set is read once before training: cases with unusable files are excluded with a reason."""

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

_VERSION = 4
"""Results of another version of the checks are not reused."""
_THREADS = 4
"""Scans that are in memory at the same time."""

InspectedFiles = Mapping[str, Mapping[str, Any]]
"""Case -> `error`, why it cannot be used; else the grid [shape, affine] of `image` and `mask`, the `minimum` of the image and the
`values` of the mask."""


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
        result: dict[str, Any] = {"image": [list(image.shape), np.asarray(affine).tolist()], "minimum": float(image.min())}
        if case.mask is not None:
            mask, affine = read_volume(case.mask)
            values = [value.item() for value in np.unique(mask)[:100]]
            whole = [int(value) if value == int(value) else value for value in values]
            result |= {"mask": [list(mask.shape), np.asarray(affine).tolist()], "values": whole}
        return result
    except (ValueError, OSError) as error:
        return {"error": str(error).split("\n")[0]}


def mask_error(file: Mapping[str, Any], *, structures: int) -> str:
    """Why a mask cannot be used: it is missing, on another grid than its scan, or has values above `structures`; or empty."""
    if "mask" not in file:
        return "it has no mask"
    if not _same_grid(file["image"], file["mask"]):
        return (
            f"the mask is not on the grid of its scan: {file['mask'][0]} voxels, the scan has {file['image'][0]}, or the affines "
            "differ; resample the mask to its scan"
        )
    if not set(file["values"]) <= set(range(structures + 1)):
        return f"the mask has undeclared values, {file['values'][:8]}; expected integers from 0 to {structures}"
    return ""


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
