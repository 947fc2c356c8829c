"""Where the weights lie that a path names: a file, a saved folder, or the last checkpoint of a run."""

import os
import re
import sys
from functools import cache
from pathlib import Path

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Files of a folder in our own format."""
_CHECKPOINTS = ("last", "best")
"""Of a run, in the order in which they are taken."""
_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
"""That no name on the hub has."""
_ON_THE_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def weights_at(path: str | Path) -> Path:
    """The checkpoint of a run where `path` is its folder (its last), `RUN/last` or `RUN/best`; else the path as it is.

    A line on the error stream of the first rank says which file was taken, once a process.
    """
    path = Path(path)
    places = [path / "checkpoints" / f"{name}.ckpt" for name in _CHECKPOINTS] if path.is_dir() else []
    if path.name in _CHECKPOINTS and not path.exists():
        places.append(path.parent / "checkpoints" / f"{path.name}.ckpt")
    taken = None if (path / CONFIG).is_file() else next((place for place in places if place.is_file()), None)
    if taken is not None:
        _say(f"{path} is a run; its checkpoint {taken} is taken")
    return taken or path


def find_weights(path: str | Path) -> Path | None:
    """`weights_at` where something lies there; None where nothing does and the name has the form of one on the hub.

    Raises:
        FileNotFoundError: nothing lies there, and it is no OWNER/NAME either, or names a place in a folder that is here.
        ValueError: a folder that is neither a saved model nor a run.
    """
    place = weights_at(path)
    if place.is_dir() and not (place / CONFIG).is_file():
        raise ValueError(
            f"{place} holds neither a saved model ({CONFIG}, {WEIGHTS}) nor a run (checkpoints/last.ckpt); name one of these, or "
            "a file of weights"
        )
    if place.exists():
        return place
    if not _ON_THE_HUB.fullmatch(str(path)) or place.suffix in _ENDINGS or place.parent.is_dir() or place.name in _CHECKPOINTS:
        raise FileNotFoundError(
            f"there is no {path}; name a saved folder, a run, a file of weights, or OWNER/NAME of a model on the hub"
        )
    return None


@cache
def _say(sentence: str) -> None:
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK")):
        print(f"mg3d: {sentence}", file=sys.stderr)
