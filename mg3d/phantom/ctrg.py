"""Layout of CTRG-Chest: folders of JPEG slices and one JSON list."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mg3d.phantom.writers import grey_values, write_image

ANNOTATIONS = "chest_ctrg_jpg.json"
SLICES = "Chest_New"
WINDOW_HU = (-1000.0, 1000.0)


def case_folder(number: int, seed: int) -> str:
    """Folder name of a case: a hash, as in the public set."""
    return hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:16]


def write_slices(root: Path, number: int, seed: int, volume: np.ndarray) -> None:
    """Write int16 HU [z, y, x] as greyscale JPEG slices from superior to inferior."""
    folder = root / SLICES / case_folder(number, seed)
    for index, pixels in enumerate(grey_values(volume, WINDOW_HU), start=1):
        write_image(folder / slice_name(number, index), pixels)


def slice_name(number: int, index: int) -> str:
    """<case>_<series>_<index>_<index>.jpg, counted from 1."""
    return f"case{number}_05_{index:04d}_{index:04d}.jpg"


def annotation(number: int, seed: int, truth: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of a case in the JSON list; paths are relative to the root."""
    folder = f"./{SLICES}/{case_folder(number, seed)}"
    paths = [f"{folder}/{slice_name(number, index)}" for index in range(1, truth["shape"][0] + 1)]
    report = truth["report"]
    return {"id": str(number), "image_path": paths, "report": report["findings"], "result": report["impression"]}
