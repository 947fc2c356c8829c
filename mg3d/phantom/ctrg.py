"""Layout of CTRG-Chest: folders of JPEG slices and one JSON list."""

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
    """Folder name of a case: a hash, as in the public set."""
    return hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:16]


def write_slices(root: Path, number: int, seed: int, volume: np.ndarray) -> None:
    """Write int16 HU [z, y, x] as greyscale JPEG slices from superior to inferior; -1000 to 1000 HU become 0 to 255."""
    folder = root / SLICES / case_folder(number, seed)
    grey = (np.clip((volume.astype(np.float32) + 1000) / 2000, 0, 1) * 255).astype(np.uint8)
    for index, pixels in enumerate(grey[::-1], start=1):
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=92)
        write_bytes(folder / slice_name(number, index), encoded.getvalue(), durable=False)


def slice_name(number: int, index: int) -> str:
    """<case>_<series>_<index>_<index>.jpg, counted from 1."""
    return f"case{number}_05_{index:04d}_{index:04d}.jpg"


def annotation(number: int, seed: int, truth: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of a case in the JSON list; paths are relative to the root."""
    folder = f"./{SLICES}/{case_folder(number, seed)}"
    paths = [f"{folder}/{slice_name(number, index)}" for index in range(1, truth["shape"][0] + 1)]
    report = truth["report"]
    return {"id": str(number), "image_path": paths, "report": report["findings"], "result": report["impression"]}
