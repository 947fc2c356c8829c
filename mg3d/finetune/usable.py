"""Cases whose files cannot be used, found before an epoch is spent and set aside with a reason."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image
from tqdm import tqdm

from mg3d.finetune.cases import ArrowRow, Case, PreparedRow, RawScan, Source

_ENDS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}
"""Last bytes of a whole picture."""
_TAIL = 64
_ITK_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}


def set_aside(cases: Sequence[Case]) -> tuple[list[Case], list[dict[str, str]]]:
    """Usable cases in their order, and `case_id` and `reason` of the others. Headers, sizes and ends are read, not voxels.

    Raises:
        ValueError: none is usable.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faults = list(tqdm(pool.map(_fault, cases), "looking at files", len(cases), disable=None, leave=False))
    refused = [{"case_id": case.case_id, "reason": fault} for case, fault in zip(cases, faults, strict=True) if fault]
    if cases and len(refused) == len(cases):
        raise ValueError(f"none of the {len(cases)} cases can be used; the first: {refused[0]['reason']}")
    return [case for case, fault in zip(cases, faults, strict=True) if not fault], refused


def _fault(case: Case) -> str:
    try:
        return fault_of(case.image) or (fault_of(case.mask) if case.mask is not None else "")
    except (OSError, ValueError, SyntaxError, RuntimeError) as error:
        return f"a file of {case.case_id} cannot be opened ({type(error).__name__})"


def fault_of(source: Source) -> str:
    """What is wrong with the files of a scan, in a sentence; empty when nothing was found."""
    if isinstance(source, (ArrowRow, PreparedRow, RawScan)):
        return ""
    files = source if isinstance(source, tuple) else (source,)
    for file in files:
        if not file.is_file():
            return f"there is no file {file}"
        if file.stat().st_size == 0:
            return f"{file} is empty"
    if isinstance(source, tuple):
        return _fault_of_slices(source)
    checks = {".mhd": _fault_of_raw, ".npy": _fault_of_array}
    return checks[source.suffix.lower()](source) if source.suffix.lower() in checks else ""


def _fault_of_slices(files: tuple[Path, ...]) -> str:
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        with file.open("rb") as stream:
            stream.seek(-min(_TAIL, file.stat().st_size), os.SEEK_END)
            if _ENDS[file.suffix.lower()] not in stream.read():
                return f"{file} ends before the picture does"
        with Image.open(file) as picture:
            sizes.setdefault(picture.size, file)
    if len(sizes) > 1:
        told = " and ".join(map(str, list(sizes)[:2]))
        return f"pictures of {len(sizes)} sizes in {files[0].parent}, such as {told}; one is expected"
    return f"{files[0].parent} holds one picture; a scan needs two at least" if len(files) < 2 else ""


def _fault_of_raw(header: Path) -> str:
    """Of a .mhd: voxels that lie beside it, uncompressed."""
    lines = dict(line.split("=", 1) for line in header.read_text(encoding="latin-1").splitlines() if "=" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    raw = header.parent / fields.get("ElementDataFile", "")
    if not raw.is_file():
        return f"there is no {raw}, which {header.name} names"
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(header))
    reader.ReadImageInformation()
    bits = "".join(filter(str.isdigit, sitk.GetPixelIDValueAsString(reader.GetPixelID())))
    wanted = int(np.prod(reader.GetSize())) * _ITK_BYTES.get(bits, 0)
    if fields.get("CompressedData", "False") == "False" and raw.stat().st_size < wanted:
        return f"{raw} has {raw.stat().st_size} bytes; {header.name} tells of {wanted}"
    return ""


def _fault_of_array(file: Path) -> str:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    return "" if array.ndim == 3 else f"{file} holds an array of shape {array.shape}; three axes are expected"
