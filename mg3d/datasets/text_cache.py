"""Features of the frozen text encoder, computed once by tools/cache_text.py and read from a memory-mapped file."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FEATURES, INDEX, ORIGIN = "features.npy", "index.npy", "made_from.json"
"""float32 [tokens, width]; (key, start, length) sorted by key; what the cache was computed from."""
_ENTRY = np.dtype([("key", np.int64), ("start", np.int64), ("length", np.int64)])
REBUILD = "Rebuild it with `python tools/cache_text.py with ...` and the presets and settings of the training run"


def ids_key(ids: np.ndarray) -> int:
    """63-bit hash of token ids int64 [T], the same in every process."""
    content = np.ascontiguousarray(ids, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def write_index(folder: Path, keys: Sequence[int], lengths: Sequence[int]) -> None:
    """Write the index of features that were written in the order of `keys`."""
    entries = np.empty(len(keys), _ENTRY)
    entries["key"], entries["length"] = keys, lengths
    entries["start"] = np.cumsum(lengths) - lengths
    np.save(folder / INDEX, entries[np.argsort(entries["key"])])


class TextCache:
    """Features by token ids. The file is memory-mapped, so loader workers share its pages.

    Raises:
        FileNotFoundError: the folder holds no cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / ORIGIN).is_file():
            raise FileNotFoundError(f"text_cache={self.folder} holds no cache. {REBUILD}")
        self.origin = json.loads((self.folder / ORIGIN).read_text(encoding="utf-8"))
        self.index = np.load(self.folder / INDEX, mmap_mode="r")
        self.features = np.load(self.folder / FEATURES, mmap_mode="r")

    def __reduce__(self) -> tuple[type["TextCache"], tuple[Path]]:
        """Workers map the files themselves; a pickled memory map would copy all features."""
        return TextCache, (self.folder,)

    def require_made_for(self, fingerprint: str, max_text_len: int) -> None:
        """Raise ValueError if the cache is of another text encoder or was computed with another `max_text_len`."""
        encoder, length = self.origin["encoder"], self.origin["max_text_len"]
        if encoder != fingerprint:
            raise ValueError(
                f"text_cache={self.folder} was computed with another text encoder ({encoder[:12]}... instead of "
                f"{fingerprint[:12]}...). {REBUILD}"
            )
        if length != max_text_len:
            raise ValueError(
                f"text_cache={self.folder} was computed with max_text_len={length} instead of {max_text_len}. {REBUILD}"
            )

    def __call__(self, rows: Iterable[np.ndarray]) -> Tensor:
        """float32 [B, T, width] for token ids int64 [T'] of B reports, zero-padded.

        Raises:
            ValueError: a report is not in the cache.
        """
        entries = [self._find(ids) for ids in rows]
        padded = np.zeros((len(entries), max(entry["length"] for entry in entries), self.features.shape[1]), np.float32)
        for row, entry in zip(padded, entries, strict=True):
            row[: entry["length"]] = self.features[entry["start"] : entry["start"] + entry["length"]]
        return torch.from_numpy(padded)

    def _find(self, ids: np.ndarray) -> np.void:
        key = ids_key(ids)
        position = int(np.searchsorted(self.index["key"], key))
        if position == len(self.index) or self.index["key"][position] != key or self.index["length"][position] != len(ids):
            raise ValueError(
                f"text_cache={self.folder} does not contain a report of {len(ids)} tokens: the reports, the tokenizer or "
                f"max_text_len have changed. {REBUILD}"
            )
        return self.index[position]
