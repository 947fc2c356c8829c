"""The frozen text encoder: three padded passes per step (as in the original) against trimmed passes and cached features."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mg3d.benchmarks.isolated import autocast, synchronizer
from mg3d.benchmarks.synthetic import random_batch, random_bert
from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow, compare

PADDED_LENGTH = 250
"""Tokens to which the original pads every report."""
PASSES = 3
"""Forward passes per step in the original: masked once, unmasked twice."""
QUICK = {"batch": 2, "tokens": 12, "repeats": 1, "sentences": 2, "size": (32, 64, 32)}


@torch.no_grad()
def run(options: BenchmarkOptions) -> list[BenchmarkRow]:
    """`tokens` is the length of the longest report of the batch; an average report of CT-RATE is much shorter than 250."""
    options = options._replace(**QUICK) if options.quick else options
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder, batch = random_bert(small=options.quick).to(options.device), random_batch(options)
    synchronize, length = synchronizer(options), max(PADDED_LENGTH, options.tokens)
    trimmed = [part.to(options.device) for part in (batch.report_ids, batch.attention_mask)]
    padded = [torch.nn.functional.pad(part, (0, length - options.tokens)) for part in trimmed]

    def encode(inputs: list[Tensor], passes: int) -> Tensor:
        with autocast(options):
            outputs = [encoder(*inputs) for _ in range(passes)]
        synchronize()
        return outputs[-1]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        np.save(path, encode(trimmed, 1).float().cpu().numpy())
        cached = np.load(path, mmap_mode="r")

        def encode_and_read() -> None:
            """The masked report is encoded, the unmasked one is read."""
            encode(trimmed, 1)
            torch.from_numpy(np.array(cached)).to(options.device)
            synchronize()

        difference = float((encode(padded, 1)[:, : options.tokens] - encode(trimmed, 1)).abs().max())
        note = f"batch {options.batch}, {options.tokens} tokens, {options.precision}, {options.device}"
        baseline = (f"{PASSES} passes at {length} tokens", lambda: encode(padded, PASSES))
        candidates = (
            (f"{PASSES} passes, trimmed", lambda: encode(trimmed, PASSES), f"; padding changes the output by {difference:.1e}"),
            ("2 passes, trimmed", lambda: encode(trimmed, 2), ""),
            ("1 pass, trimmed, and the cache", encode_and_read, f"; {cached.nbytes / options.batch / 1e3:.0f} kB per report"),
        )
        return [
            compare("text encoder", (name, work), baseline, rounds=options.repeats, note=note + extra)
            for name, work, extra in candidates
        ]
