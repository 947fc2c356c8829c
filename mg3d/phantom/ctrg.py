"""Synthetic studies in the layout of CTRG-Chest: folders of JPEG slices and one JSON list."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg3d.files import write_bytes

ANNOTATIONS = "chest_ctrg_jpg.json"
SLICES = "Chest_New"


def case_folder(number: int, seed: int) -> str:
    """The folder of a case, as meaningless as a hash."""
    return hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:16]


def write_slices(root: Path, number: int, seed: int, volume: np.ndarray) -> None:
    """int16 HU [z, y, x] as grey JPEG slices from the top down; -1000 to 1000 HU become 0 to 255."""
    folder = root / SLICES / case_folder(number, seed)
    grey = (np.clip((volume.astype(np.float32) + 1000) / 2000, 0, 1) * 255).astype(np.uint8)
    for place, picture in enumerate(grey[::-1], start=1):
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "JPEG", quality=92)
        path = folder / slice_name(number, place)
        write_bytes(path, encoded.getvalue(), durable=False)


def slice_name(number: int, place: int) -> str:
    """<case>_<series>_<number>_<number>.jpg, numbers from 1."""
    return f"case{number}_05_{place:04d}_{place:04d}.jpg"


def annotation(number: int, seed: int, truth: Mapping[str, Any]) -> dict[str, Any]:
    """The case's entry in the JSON list; paths are relative to the root."""
    folder = f"./{SLICES}/{case_folder(number, seed)}"
    paths = [f"{folder}/{slice_name(number, place)}" for place in range(1, truth["shape"][0] + 1)]
    report = truth["report"]
    return {"id": str(number), "image_path": paths, "report": report["findings"], "result": report["impression"]}
