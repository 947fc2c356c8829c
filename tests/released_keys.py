"""Names and shapes of the tensors in released weights, as the published code creates them."""

import json
from pathlib import Path

_FOLDER = Path(__file__).parent / "checkpoints" / "keys"


def released_keys(stem, *, without=""):
    """Name -> shape, of keys_<stem>.json; a leading `without` is cut from every name."""
    listed = json.loads((_FOLDER / f"keys_{stem}.json").read_text())
    assert all(name.startswith(without) for name in listed)
    return {name.removeprefix(without): tuple(shape) for name, shape in listed.items()}
