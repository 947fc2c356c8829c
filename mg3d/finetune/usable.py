"""Every file of a set, read once: cases that cannot be used are found before an epoch is spent and set aside with a reason."""

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
from mg3d.finetune.cases import ArrowRow, Case, PreparedRow, RawScan
from mg3d.finetune.images import read_image, read_volume
from mg3d.finetune.ranks import first_does

_CHECKS = 2
"""Version of the checks: results of another version are not reused."""
_AT_ONCE = 4
"""Scans that are read at the same time; each lies in memory whole."""


def set_aside(cases: Sequence[Case], memory: Path, *, channel: int | None = None) -> list[dict[str, str]]:
    """`case_id` and `reason` of cases of which a file cannot be used; arguments as of `survey`.

    Raises:
        ValueError: none is usable.
    """
    found = survey(cases, memory, channel=channel)
    refused = [{"case_id": name, "reason": facts["fault"]} for name, facts in found.items() if "fault" in facts]
    if cases and len(refused) == len(cases):
        raise ValueError(f"none of the {len(cases)} cases can be used; the first: {refused[0]['reason']}")
    return refused


def survey(cases: Sequence[Case], memory: Path, *, channel: int | None = None) -> dict[str, dict[str, Any]]:
    """Case -> `fault`, why it cannot be used; else the grid [voxels, affine] of its `image` and `mask`, and the mask's `values`.

    What the preparation of pre-training stored was looked at there and is left out.

    Args:
        memory: a JSON file of what was read before; a file of equal name, size and time is not read again. The first process
            writes it.
        channel: as of `read_image`.
    """
    keys = {case.case_id: _key(case, channel) for case in cases if not isinstance(case.image, (PreparedRow, RawScan))}

    def remember() -> None:
        known = _known(memory)
        unread = [case for case in cases if case.case_id in keys and keys[case.case_id] not in known]
        if unread:
            with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
                read = tqdm(pool.map(lambda case: _read(case, channel), unread), "reading files", len(unread), disable=None)
                known |= {keys[case.case_id]: facts for case, facts in zip(unread, read, strict=True)}
            write_json(memory, known)

    first_does(remember, done=lambda: set(keys.values()) <= set(_known(memory)), what=str(memory))
    known = _known(memory)
    return {name: known[key] for name, key in keys.items()}


def _known(memory: Path) -> Mapping[str, dict[str, Any]]:
    return json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}


def _key(case: Case, channel: int | None) -> str:
    parts: list[Any] = [_CHECKS, channel]
    for source in (case.mask, case.image):
        files = [] if source is None else [source] if isinstance(source, Path) else source
        for path in files[:1] if isinstance(source, ArrowRow) else files:
            stat = path.stat() if path.exists() else None
            parts.append([str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] if stat else [str(path)])
        parts.append(source[1:] if isinstance(source, ArrowRow) else [])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(case: Case, channel: int | None) -> dict[str, Any]:
    try:
        image, affine = read_volume(case.image, channel=channel)
        facts: dict[str, Any] = {"image": [list(image.shape), np.asarray(affine).tolist()]}
        return facts if case.mask is None else facts | _of_mask(case)
    except (ValueError, OSError) as error:
        return {"fault": str(error).split("\n")[0]}


def _of_mask(case: Case) -> dict[str, Any]:
    mask = read_image(case.mask)
    array = mask.numpy()
    whole = array.astype(np.int32)
    held = np.flatnonzero(np.bincount(whole.ravel())) if whole.min() >= 0 and (whole == array).all() else np.unique(array)
    values = [int(value) if value == int(value) else float(value) for value in held[:100]]
    return {"values": values, "mask": [list(array.shape[1:]), np.asarray(mask.affine).tolist()]}
