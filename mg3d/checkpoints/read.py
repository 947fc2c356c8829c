"""Opens a file of weights without running anything that it says, and names it when it is something else."""

import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mg3d.checkpoints.places import CONFIG, WEIGHTS, weights_at

ENTRIES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network_weights", "student", "teacher", "weights",
)  # fmt: skip
"""Where programs put their tensors, in the order in which they are looked for."""
_DEEPEST = 3
_DEEPEST_FACT = 8
_PICKLES = 5
"""Of which a torch file before version 1.6 consists, before its storages."""
_NAMED = 5
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What torch wrote first before version 1.6, after the two bytes of the pickle protocol."""
_OF_TENSORS = re.compile(r"torch\.(_utils\.\w+|_tensor\.\w+|\w*Storage|Size|device|storage\.\w+)|collections\.OrderedDict")
"""What a pickle of tensors alone names."""

_scalar = np._core.multiarray.scalar  # what pickles of numpy numbers call; it makes one number and nothing else
_HARMLESS = [
    _scalar,
    (_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")),
]


_SAVE_ALONE = (
    "In the program that wrote it, and only if you trust the file, save the tensors alone: "
    "torch.save(model.state_dict(), 'weights.pt')"
)


class CheckpointFile(NamedTuple):
    """What a file holds."""

    path: Path
    layout: str
    """`torch`, `torch, before 1.6`, `safetensors` or `folder` (our own format)."""
    entry: str
    """Where in the file the tensors lay; empty = at its top."""
    tensors: dict[str, Tensor]
    """On the CPU, of the file's own precision."""
    facts: dict[str, Any]
    """The builtins beside the tensors (step, epoch, settings ...)."""


def few(names: Iterable[str], most: int = _NAMED) -> str:
    """The first names, and whether there are more."""
    names = iter(names)
    return ", ".join(islice(names, most)) + (", ..." if next(names, None) is not None else "")


def read_checkpoint(path: str | Path, *, entry: str | None = None) -> CheckpointFile:
    """The tensors of a torch file, a safetensors file, a folder of ours, or of what `weights_at` finds in a run.

    entry: where in a torch file the tensors lie, such as `teacher`; found by itself when left out. Every byte of a zipped torch
    file is read once, to compare its checksums: torch itself does not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, cut off, needs code of another program, or holds no tensors.
    """
    path = weights_at(path)
    if path.is_dir():
        _refuse_entry(path, entry)
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as stream:
        head = stream.read(512)
    _refuse_foreign(path, head)
    if head[8:9] == b"{":
        _refuse_entry(path, entry)
        tensors, metadata = _read_safetensors(path)
        return CheckpointFile(path, "safetensors", "", tensors, _unpack(metadata))
    zipped = head.startswith(b"PK")
    if zipped:
        _check_archive(path)
    elif not head[2:].startswith(_TORCH_MAGIC):
        raise ValueError(
            f"{path} is a pickle that torch.save did not write, and is not opened: a pickle may run anything{_classes(path)}. "
            f"{_SAVE_ALONE}"
        )
    content = _read_torch(path, zipped=zipped)
    tensors, found, facts = _find_tensors(path, content, entry)
    return CheckpointFile(path, "torch" if zipped else "torch, before 1.6", found, tensors, facts)


def _refuse_entry(path: Path, entry: str | None) -> None:
    if entry:
        raise ValueError(f"{path} has no entries, its tensors lie at its top; leave entry={entry!r} out")


def _read_folder(path: Path) -> CheckpointFile:
    weights, config = path / WEIGHTS, path / CONFIG
    if not weights.is_file() or not config.is_file():
        held = few(sorted(entry.name for entry in path.iterdir()))
        raise ValueError(
            f"{path} is a directory without {CONFIG} and {WEIGHTS}; name the file of weights in it (it holds {held or 'nothing'})"
        )
    read = read_checkpoint(weights)
    try:
        facts = json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is no readable JSON ({error}); save the model again") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{config} holds a {type(facts).__name__}, not the fields of a saved model; save the model again")
    return CheckpointFile(path, "folder", "", read.tensors, {"mg3d": facts})


def _refuse_foreign(path: Path, head: bytes) -> None:
    """Raises ValueError for what is no file of weights, by its first bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    signs = [
        (not head, "is empty; the download or the copy did not finish, get it again"),
        (head.startswith(b"version https://git-lfs"),
         "is a Git LFS pointer, a short text that stands for the file; fetch the file itself with `git lfs pull`"),
        (text.startswith((b"<!doctype", b"<html", b"<head")),
         "is an HTML page, not weights: a cloud drive answered with a page (a sign-in, a quota or a virus warning); "
         "open the link in a browser and download the file itself"),
        (text.startswith(b"<?xml"), "is an XML answer of a server, not weights; download the file again"),
        (head.startswith(b"\x1f\x8b"), "is compressed with gzip; unpack it and name the file of weights inside"),
        (head[257:262] == b"ustar", "is a tar archive; unpack it and name the file of weights inside"),
        (head.startswith(b"\x89HDF"), "is an HDF5 file; only weights of torch or safetensors can be read"),
        (head.startswith(b"\x93NUMPY"), "is one numpy array; only weights of torch or safetensors can be read"),
        (text.startswith((b"{", b"[")), "is JSON text, not weights; name the .safetensors or .ckpt file beside it"),
    ]  # fmt: skip
    for holds, what in signs:
        if holds:
            raise ValueError(f"{path} {what}")
    if head.startswith((b"PK", b"\x80")) or head[8:9] == b"{":
        return
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        raise ValueError(f"{path} is a text, not weights; it begins with {head[:40].decode()!r}")
    raise ValueError(f"{path} is no torch or safetensors file; its first bytes are {head[:8].hex(' ')}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        what = "begins like a safetensors file and ends too early or is damaged"
        raise ValueError(f"{path} {what} ({error}); get it again") from error


def _unpack(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Metadata of a safetensors file, with our own entry as what it was before it became text."""
    facts: dict[str, Any] = dict(metadata)
    if "mg3d" in facts:
        with suppress(json.JSONDecodeError):  # of another program: not ours to read
            facts["mg3d"] = json.loads(facts["mg3d"])
    return facts


def _read_torch(path: Path, *, zipped: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which the refusals below name better
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} asks to run code and is not opened: its pickle wants more than tensors and plain values"
            f"{_classes(path)}. {_SAVE_ALONE}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        short = str(error).split("\n")[0][:120] or type(error).__name__
        raise ValueError(f"{path} begins like a torch file and ends too early or is damaged ({short}); get it again") from error


def _check_archive(path: Path) -> None:
    """Raises ValueError for a zip archive that is cut off or damaged, or that torch.save did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            summed = [entry.filename for entry in archive.infolist() if entry.CRC]  # torch can be told to leave them 0
            damaged = [name for name in summed if _is_damaged(archive, name)]
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        size = path.stat().st_size / 1e6
        raise ValueError(
            f"{path} is cut off or damaged: it begins like a torch file and after {size:.1f} MB its end is missing or does not "
            f"fit ({error}); get it again"
        ) from error
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(
            f"{path} is a zip archive without a torch checkpoint in it (it holds {few(names)}); unpack it and name the file "
            "of weights inside"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"{path} is a program that torch.jit.save wrote, not weights alone; where you trust it, save its tensors: "
            "torch.save(torch.jit.load(file).state_dict(), 'weights.pt')"
        )
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {few(damaged)} does not fit its content; get it again")


def _is_damaged(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        with archive.open(name) as stream:
            while stream.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return True
    return False


def _classes(path: Path) -> str:
    """`: its classes`, of those that a pickle names and a pickle of tensors does not, found without running it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                named = _globals(archive.open(inside))
        else:
            with path.open("rb") as stream:
                named = _globals(stream)
    except (OSError, StopIteration):
        named = []
    told = [name for name in named if not _OF_TENSORS.fullmatch(name)]
    return f": {few(told)}" if told else ""


def _globals(stream: IO[bytes]) -> list[str]:
    """`module.name` of everything that the pickles at the beginning of a stream import, each once."""
    named: list[str] = []
    with suppress(ValueError, EOFError, UnicodeDecodeError):  # there are fewer, or one is cut off
        for _ in range(_PICKLES):
            named += _imported(stream)
    return list(dict.fromkeys(named))


def _imported(stream: IO[bytes]) -> Iterator[str]:
    pushed, memo = [], []
    for code, argument, _ in pickletools.genops(stream):
        if code.name == "GLOBAL":
            yield argument.replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            yield ".".join(map(str, pushed[-2:]))
        elif code.name == "MEMOIZE":
            memo.append(pushed[-1])
        elif code.name != "FRAME":
            known = code.name in ("BINGET", "LONG_BINGET") and argument < len(memo)
            pushed.append(memo[argument] if known else argument)


def _find_tensors(path: Path, content: Any, entry: str | None) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """The named tensors, where they lay, and the builtins beside them."""
    facts: dict[str, Any] = {}
    where: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            inside = f"under {'.'.join(where)!r} " if where else ""
            raise ValueError(f"{path} holds {inside}a {type(content).__name__}, not named tensors; save a state dict")
        tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        facts = {name: value for name, value in content.items() if isinstance(name, str) and _is_plain(value)} | facts
        step = _next_entry(path, content, entry if not where else None, has_tensors=bool(tensors))
        if step is None:
            return tensors, ".".join(where), facts
        where.append(step)
        content = content[step]
    raise ValueError(f"{path} holds no tensors down to {'.'.join(where)!r}; pass entry=... to say where they lie")


def _next_entry(path: Path, content: Mapping[str, Any], entry: str | None, *, has_tensors: bool) -> str | None:
    """The entry to look into, or None where the tensors lie here."""
    if entry:
        if entry not in content:
            raise ValueError(f"{path} has no entry {entry!r}; it has {few(sorted(map(str, content)), 2 * _NAMED)}")
        return entry
    inner = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Mapping)}
    held = [name for name, value in inner.items() if _has_tensors(value)]
    known = [name for name in ENTRIES if name in held]
    if known:
        return known[0]
    if has_tensors:
        return None
    if len(held) == 1:
        return held[0]
    if held:
        raise ValueError(f"{path} holds tensors under {few(held)}, none a known place; pass entry=... to choose")
    raise ValueError(f"{path} holds no tensors; its entries are {few(sorted(map(str, content)), 2 * _NAMED)}")


def _has_tensors(content: Mapping[str, Any], depth: int = 1) -> bool:
    return any(
        isinstance(value, Tensor) or (depth < _DEEPEST and isinstance(value, Mapping) and _has_tensors(value, depth + 1))
        for value in content.values()
    )


def _is_plain(value: Any, depth: int = 1) -> bool:
    if isinstance(value, (Mapping, list, tuple)) and depth == _DEEPEST_FACT:
        return False  # a pickle may hold itself
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(inner, depth + 1) for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return len(value) < 1000 and all(_is_plain(inner, depth + 1) for inner in value)
    return value is None or isinstance(value, (str, bool, int, float))
