"""Read tensors from torch files, safetensors files, saved folders and runs; no code in a file is ever executed."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mg3d.checkpoints.resolve import CONFIG, WEIGHTS, resolve_checkpoint

ENTRIES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network_weights", "student", "teacher", "weights",
)  # fmt: skip
"""Keys under which programs store their state dict, in order of preference."""
_MAX_DEPTH = 3
_MAX_METADATA_DEPTH = 8
_SHOWN = 5

_scalar = np._core.multiarray.scalar
_SAFE_GLOBALS = [
    _scalar,
    (_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")),
]
"""NumPy scalars, such as metrics that training loops store with the weights."""


class CheckpointFile(NamedTuple):
    """Content of a file of weights."""

    path: Path
    format: str
    """`torch`, `safetensors` or `folder` (written by `save_pretrained`)."""
    entry: str
    """Key path of the state dict in the file; empty = top level."""
    tensors: dict[str, Tensor]
    """On the CPU, in the precision of the file."""
    metadata: dict[str, Any]
    """Builtins stored with the tensors: step, epoch, settings, ..."""


def shorten(names: Iterable[str], count: int = _SHOWN) -> str:
    """The first names, with an ellipsis if there are more."""
    names = iter(names)
    return ", ".join(islice(names, count)) + (", ..." if next(names, None) is not None else "")


def read_checkpoint(path: str | Path, *, entry: str | None = None) -> CheckpointFile:
    """Tensors and metadata of a torch file, a safetensors file, a folder of `save_pretrained` or a run (`resolve_checkpoint`).

    Checksums of zipped torch files are verified, which torch itself does not do.

    Args:
        entry: key of the state dict in a torch file, such as `teacher`; detected if None.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format, is incomplete or damaged, needs code to be unpickled, or has no tensors.
    """
    path = resolve_checkpoint(path)
    if path.is_dir():
        _refuse_entry(path, entry)
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as stream:
        head = stream.read(64)
    _refuse_other_format(path, head)
    if head[8:9] == b"{":
        _refuse_entry(path, entry)
        tensors, metadata = _read_safetensors(path)
        return CheckpointFile(path, "safetensors", "", tensors, metadata)
    if head.startswith(b"PK"):
        _verify_archive(path)
    tensors, found, metadata = _find_state_dict(path, _load_torch(path, mmap=head.startswith(b"PK")), entry)
    return CheckpointFile(path, "torch", found, tensors, metadata)


def _refuse_entry(path: Path, entry: str | None) -> None:
    if entry:
        raise ValueError(f"{path} has its tensors at the top level; remove entry={entry!r}")


def _read_folder(folder: Path) -> CheckpointFile:
    weights, config = folder / WEIGHTS, folder / CONFIG
    if not weights.is_file():
        raise ValueError(f"{folder} has {CONFIG}, but no {WEIGHTS}; copy or save the model again")
    try:
        metadata = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is not valid JSON ({error}); save the model again") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{config} contains a {type(metadata).__name__} instead of an object; save the model again")
    return CheckpointFile(folder, "folder", "", read_checkpoint(weights).tensors, {"mg3d": metadata})


def _refuse_other_format(path: Path, head: bytes) -> None:
    """Raises ValueError for files that are not weights, by their first bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise ValueError(f"{path} is empty; download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer; fetch the file itself with `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<head")):
        raise ValueError(
            f"{path} is an HTML page (a sign-in, quota or virus-scan page of a cloud drive); download the file in a browser"
        )
    if not head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        raise ValueError(f"{path} is not a torch or safetensors file; it starts with {head[:40]!r}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            metadata: dict[str, Any] = stream.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is incomplete or damaged ({error}); download it again") from error
    if "mg3d" in metadata:
        with suppress(json.JSONDecodeError):  # written by another program
            metadata["mg3d"] = json.loads(metadata["mg3d"])
    return tensors, metadata


def _load_torch(path: Path, *, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} contains objects that only code can unpickle{_unsafe_globals(path)}, and is not opened. If you trust the "
            "file, save the tensors alone in the program that wrote it: torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise ValueError(f"{path} is incomplete, damaged or not written by torch.save ({reason}); download it again") from error


def _unsafe_globals(path: Path) -> str:
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return f" ({shorten(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))})"
    except (ValueError, RuntimeError):  # not a zip archive
        return ""


def _verify_archive(path: Path) -> None:
    """Raises ValueError for a zip archive that is incomplete, damaged or without a torch checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            archive.filelist = [entry for entry in archive.filelist if entry.CRC]  # torch.save may omit checksums
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        size_mb = path.stat().st_size / 1e6
        raise ValueError(f"{path} is incomplete or damaged after {size_mb:.1f} MB ({error}); download it again") from error
    if damaged:
        raise ValueError(f"{path} is damaged: wrong checksum of {damaged}; download it again")
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(f"{path} is a zip archive without a torch checkpoint ({shorten(names)}); unpack it first")


def _find_state_dict(path: Path, content: Any, entry: str | None) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Named tensors, their key path, and the builtins stored with them."""
    metadata: dict[str, Any] = {}
    keys: list[str] = []
    for _ in range(_MAX_DEPTH):
        if not isinstance(content, Mapping):
            where = f" under {'.'.join(keys)!r}" if keys else ""
            raise ValueError(f"{path} contains a {type(content).__name__}{where} instead of named tensors; save a state dict")
        named = {name: value for name, value in content.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        metadata = {name: value for name, value in named.items() if _is_builtin(value)} | metadata
        key = _next_key(path, content, None if keys else entry, has_tensors=bool(tensors))
        if key is None:
            return tensors, ".".join(keys), metadata
        keys.append(key)
        content = content[key]
    raise ValueError(f"{path} contains no tensors down to {'.'.join(keys)!r}; pass entry=...")


def _next_key(path: Path, content: Mapping[str, Any], entry: str | None, *, has_tensors: bool) -> str | None:
    """The key to descend into; None if the tensors are at this level."""
    names = shorten(sorted(map(str, content)), 2 * _SHOWN)
    if entry:
        if entry not in content:
            raise ValueError(f"{path} has no entry {entry!r}; its entries are {names}")
        return entry
    inner = [name for name, value in content.items() if isinstance(name, str) and _has_tensors(value)]
    known = [name for name in ENTRIES if name in inner]
    if known or has_tensors:
        return known[0] if known else None
    if len(inner) != 1:
        reason = f"has several state dicts ({shorten(inner)}); pass entry=..." if inner else f"has no tensors ({names})"
        raise ValueError(f"{path} {reason}")
    return inner[0]


def _has_tensors(value: Any, depth: int = 1) -> bool:
    is_open = isinstance(value, Mapping) and depth <= _MAX_DEPTH
    return is_open and any(isinstance(inner, Tensor) or _has_tensors(inner, depth + 1) for inner in value.values())


def _is_builtin(value: Any, depth: int = 1) -> bool:
    if isinstance(value, (Mapping, list, tuple)) and depth == _MAX_METADATA_DEPTH:
        return False  # a pickle may contain itself
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_builtin(inner, depth + 1) for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return len(value) < 1000 and all(_is_builtin(inner, depth + 1) for inner in value)
    return value is None or isinstance(value, (str, bool, int, float))
