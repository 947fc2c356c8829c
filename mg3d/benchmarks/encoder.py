"""Swin-B alone, beside MONAI's code over the same weights: forward, backward and memory, each side in processes of its own."""

from typing import NamedTuple

import torch
from torch import Tensor

from mg3d.benchmarks.fresh import Memory, alternate, autocast, settler
from mg3d.benchmarks.stock import StockSwin, largest_difference
from mg3d.benchmarks.timing import Comparison, Options, median, seconds_of
from mg3d.models.vision.swin import SwinEncoder

OURS, STOCK, FUSED = "mg3d", "MONAI", "MONAI, fused"
QUICK = {"size": (32, 24, 32), "repeats": 1}
TRAINING_GOAL, MEMORY_GOAL, INFERENCE_GOAL = 2.0, 4.0, 1.0


class Measured(NamedTuple):
    """One process."""

    inference_s: float
    inference_bytes: float
    forward_s: float
    """With a graph."""
    training_s: float
    """Forward and backward."""
    training_bytes: float
    last: list[list[float]]
    """The last map [B, places], for the comparison."""


def run(options: Options) -> list[Comparison]:
    """Inference beside both of MONAI's paths, training beside the one it has; costs are medians over the processes."""
    options = options._replace(**QUICK) if options.quick else options
    found = alternate(measure, (OURS, STOCK, FUSED), options)
    told = f"{'x'.join(map(str, options.size))}, batch {options.batch}, {options.precision}, {options.device}"
    if found[STOCK]:
        gap = largest_difference(torch.tensor(found[OURS][0].last), torch.tensor(found[STOCK][0].last))
        told += f"; outputs differ by {gap:.1e} deviations"
    rows = (
        ("inference", STOCK, "inference_s", INFERENCE_GOAL),
        ("inference", FUSED, "inference_s", INFERENCE_GOAL),
        ("inference memory", FUSED, "inference_bytes", None),
        ("forward of training", STOCK, "forward_s", None),
        ("forward + backward", STOCK, "training_s", TRAINING_GOAL),
        ("training memory", STOCK, "training_bytes", MEMORY_GOAL),
    )
    return [
        Comparison(
            name, OURS, theirs,
            *(median(found[side], field) / (1e9 if field.endswith("bytes") else 1) for side in (OURS, theirs)),
            goal=None if options.quick else goal, unit="GB" if field.endswith("bytes") else "s",
            note=told,
        )
        for name, theirs, field, goal in rows
    ]  # fmt: skip


def measure(side: str, options: Options) -> Measured:
    """In this process; memory is over what the process held when the model and its volume were there."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder = SwinEncoder()
    model = (encoder if side == OURS else StockSwin(encoder, fused=side == FUSED)).to(options.device)
    volume = torch.rand(options.batch, 1, *options.size).to(options.device)
    settle, memory = settler(options), Memory(options)

    def forward() -> Tensor:
        with autocast(options):
            return model(volume)[-1]

    @torch.no_grad()
    def infer() -> Tensor:
        return forward()

    def train() -> None:
        forward().float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    memory.restart()
    inference_s = seconds_of(infer, settle=settle)
    inference_bytes, last = memory.peak(), infer()
    memory.restart()
    training_s = seconds_of(train, settle=settle)
    training_bytes = memory.peak()
    forward_s = seconds_of(forward, settle=settle)
    return Measured(inference_s, inference_bytes, forward_s, training_s, training_bytes, last.flatten(1).float().tolist())
