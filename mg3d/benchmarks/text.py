"""A frozen report encoder once for each text of a step, or read from a file, beside three passes padded to the longest text."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mg3d.benchmarks.batches import bert_base, random_batch
from mg3d.benchmarks.fresh import autocast, settler
from mg3d.benchmarks.timing import Comparison, Options, compare

LONGEST = 250
"""Tokens to which the original pads every report."""
QUICK = {"batch": 2, "tokens": 12, "repeats": 1, "sentences": 2, "size": (32, 64, 32)}
PASSES = 3
"""Of the original: masked once, unmasked twice."""


@torch.no_grad()
def run(options: Options) -> list[Comparison]:
    """`tokens` is the length of the batch's longest report; a mean report of CT-RATE has far fewer than 250."""
    options = options._replace(**QUICK) if options.quick else options
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder, batch = bert_base(small=options.quick).to(options.device), random_batch(options)
    settle, longest = settler(options), max(LONGEST, options.tokens)
    trimmed = [part.to(options.device) for part in (batch.report_ids, batch.attention_mask)]
    padded = [torch.nn.functional.pad(part, (0, longest - options.tokens)) for part in trimmed]

    def encode(parts: list[Tensor], passes: int) -> Tensor:
        with autocast(options):
            found = [encoder(*parts) for _ in range(passes)]
        settle()
        return found[-1]

    with tempfile.TemporaryDirectory() as folder:
        stored = _store(Path(folder) / "features.npy", encode(trimmed, 1))

        def read() -> Tensor:
            """One pass, of the masked report; the unmasked one comes from the file."""
            encode(trimmed, 1)
            found = torch.from_numpy(np.array(stored)).to(options.device)
            settle()
            return found

        gap = float((encode(padded, 1)[:, : options.tokens] - encode(trimmed, 1)).abs().max())
        three = (f"{PASSES} passes at {longest} tokens", lambda: encode(padded, PASSES))
        told = f"B={options.batch}, {options.tokens} tokens, {options.precision}, {options.device}; padding changes {gap:.1e}"
        ways = (
            (f"{PASSES} passes, trimmed", lambda: encode(trimmed, PASSES), ""),
            ("2 passes, trimmed", lambda: encode(trimmed, 2), ""),
            ("1 pass, trimmed, and a file", read, f"; float16, {stored.nbytes / options.batch / 1e3:.0f} kB a report"),
        )
        return [compare("report encoder", way[:2], three, rounds=options.repeats, note=told + way[2]) for way in ways]


def _store(path: Path, features: Tensor) -> np.ndarray:
    np.save(path, features.cpu().to(torch.float16).numpy())
    return np.load(path, mmap_mode="r")
