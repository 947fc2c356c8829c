"""Features of a frozen text encoder, computed once: which report's lie where, and reading them from a mapped file."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FEATURES, INDEX, ORIGIN = "features.npy", "index.npy", "made_from.json"
"""float32 [tokens, width]; (key, start, length) by key; what the cache was made from."""
_ENTRY = np.dtype([("key", np.int64), ("start", np.int64), ("length", np.int64)])
HOW = "python tools/cache_text.py with ... (the words of the training) makes it anew"


def ids_key(ids: np.ndarray) -> int:
    """A 63-bit number that is equal for equal token ids int64 [T], in every process."""
    content = np.ascontiguousarray(ids, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def write_index(folder: Path, keys: Sequence[int], lengths: Sequence[int]) -> None:
    """Writes where the features of each report lie, which were written in this order."""
    entries = np.empty(len(keys), _ENTRY)
    entries["key"], entries["length"] = keys, lengths
    entries["start"] = np.cumsum(lengths) - lengths
    np.save(folder / INDEX, entries[np.argsort(entries["key"])])


class TextCache:
    """Features by token ids. The file is mapped, so loader processes share its pages.

    Raises:
        FileNotFoundError: the folder holds no cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / ORIGIN).is_file():
            raise FileNotFoundError(f"text_cache={self.folder}: no cache is there; {HOW}")
        self.origin = json.loads((self.folder / ORIGIN).read_text(encoding="utf-8"))
        self.index = np.load(self.folder / INDEX, mmap_mode="r")
        self.features = np.load(self.folder / FEATURES, mmap_mode="r")

    def __reduce__(self) -> tuple[type["TextCache"], tuple[Path]]:
        """Another process opens the files itself; a pickled map would be a copy of all features."""
        return TextCache, (self.folder,)

    def require_made_for(self, fingerprint: str, max_text_len: int) -> None:
        """Raises ValueError when the features are those of another text encoder, or of reports cut at another length."""
        if self.origin["encoder"] != fingerprint:
            raise ValueError(
                f"text_cache={self.folder} holds features of another text encoder ({self.origin['encoder'][:12]}..., this one is "
                f"{fingerprint[:12]}...); {HOW}"
            )
        theirs = self.origin.get("max_text_len", max_text_len)  # older caches do not tell; a report that is not there is refused
        if theirs != max_text_len:
            raise ValueError(
                f"text_cache={self.folder} was made with another max_text_len, {theirs} instead of {max_text_len}; {HOW}"
            )

    def __call__(self, rows: Iterable[np.ndarray]) -> Tensor:
        """float32 [B, T, width] for token ids int64 [T'] of B reports, zero after each report's end.

        Raises:
            ValueError: a report is not in the cache.
        """
        entries = [self._entry(ids) for ids in rows]
        stacked = np.zeros((len(entries), max(entry["length"] for entry in entries), self.features.shape[1]), np.float32)
        for place, entry in zip(stacked, entries, strict=True):
            place[: entry["length"]] = self.features[entry["start"] : entry["start"] + entry["length"]]
        return torch.from_numpy(stacked)

    def _entry(self, ids: np.ndarray) -> np.void:
        key = ids_key(ids)
        place = int(np.searchsorted(self.index["key"], key))
        if place == len(self.index) or self.index["key"][place] != key or self.index["length"][place] != len(ids):
            raise ValueError(
                f"text_cache={self.folder} does not hold a report of {len(ids)} tokens: it was made from other reports, with "
                f"another tokenizer, or with another max_text_len; {HOW}"
            )
        return self.index[place]
