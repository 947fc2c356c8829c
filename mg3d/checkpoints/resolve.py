"""Paths of weights: a file, a saved folder, a run (its last or best checkpoint) or a Hugging Face id."""

import os
import re
import sys
from functools import cache
from pathlib import Path

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Files of a folder written by `save_pretrained`."""
_CHECKPOINTS = ("last", "best")
_SHOWN = 5
_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint of a run, if `path` is its folder (last, else best), `RUN/last` or `RUN/best`; any other path unchanged.

    The first rank logs once on stderr which file is used.

    Raises:
        ValueError: the path is a folder, but neither a saved model nor a run with a checkpoint.
    """
    path = Path(path)
    candidates = [path / "checkpoints" / f"{name}.ckpt" for name in _CHECKPOINTS] if path.is_dir() else []
    if path.name in _CHECKPOINTS and not path.exists():
        candidates.append(path.parent / "checkpoints" / f"{path.name}.ckpt")
    if (path / CONFIG).is_file():
        return path
    checkpoint = next((file for file in candidates if file.is_file()), None)
    if checkpoint is not None:
        _log_once(f"using {checkpoint} of the run {path}")
        return checkpoint
    if path.is_dir():
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:_SHOWN]) or "nothing"
        raise ValueError(
            f"{path} contains {names}, but neither a saved model ({CONFIG}, {WEIGHTS}) nor a checkpoint of a run "
            "(checkpoints/last.ckpt); name one of these folders or a file of weights"
        )
    return path


def find_local(path: str | Path) -> Path | None:
    """Like `resolve_checkpoint` for a path that exists; None for a name that can only be a Hugging Face id.

    Raises:
        FileNotFoundError: the path does not exist and is not of the form OWNER/NAME.
        ValueError: see `resolve_checkpoint`.
    """
    found = resolve_checkpoint(path)
    if found.exists():
        return found
    if not _HUB_ID.fullmatch(str(path)) or found.suffix in _SUFFIXES or found.parent.is_dir() or found.name in _CHECKPOINTS:
        raise FileNotFoundError(f"{path} does not exist; name a saved folder, a run, a file of weights or a Hugging Face id")
    return None


@cache
def _log_once(sentence: str) -> None:
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK")):
        print(f"mg3d: {sentence}", file=sys.stderr)
