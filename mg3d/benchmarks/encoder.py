"""Swin-B alone, beside MONAI's code over the same weights: forward, backward and memory, each side in processes of its own."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from mg3d.benchmarks.fresh import Memory, alternate, autocast, settler
from mg3d.benchmarks.monai_baseline import MonaiSwin, largest_difference
from mg3d.benchmarks.timing import Comparison, Options, median, seconds_of
from mg3d.models.vision.swin import SwinEncoder

OURS, STOCK, FUSED, COMPILED = "mg3d", "MONAI", "MONAI, fused", "mg3d, compiled"
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
    first_passes_s: float
    """One with and one without a graph, which compile; 0 where no side is compiled."""


def run(options: Options) -> list[Comparison]:
    """Inference beside both of MONAI's paths, training beside the one it has, and ours compiled beside ours if that is asked for;
    costs are medians over the processes."""
    options = options._replace(**QUICK) if options.quick else options
    found = alternate(measure, (OURS, STOCK, FUSED, *([COMPILED] if options.compile else [])), options)
    told = f"{'x'.join(map(str, options.size))}, batch {options.batch}, {options.precision}, {options.device}"
    rows = [
        ("inference", OURS, STOCK, "inference_s", INFERENCE_GOAL),
        ("inference", OURS, FUSED, "inference_s", INFERENCE_GOAL),
        ("inference memory", OURS, FUSED, "inference_bytes", None),
        ("forward of training", OURS, STOCK, "forward_s", None),
        ("forward + backward", OURS, STOCK, "training_s", TRAINING_GOAL),
        ("training memory", OURS, STOCK, "training_bytes", MEMORY_GOAL),
    ]
    if options.compile:
        rows += [
            ("inference", COMPILED, OURS, "inference_s", None),
            ("inference memory", COMPILED, OURS, "inference_bytes", None),
            ("forward of training", COMPILED, OURS, "forward_s", None),
            ("forward + backward", COMPILED, OURS, "training_s", None),
            ("training memory", COMPILED, OURS, "training_bytes", None),
        ]
    return [
        Comparison(
            name, ours, theirs,
            *(median(found[side], field) / (1e9 if field.endswith("bytes") else 1) for side in (ours, theirs)),
            goal=None if options.quick else goal, unit="GB" if field.endswith("bytes") else "s",
            note=told + _seen(found, COMPILED if ours == COMPILED else STOCK),
        )
        for name, ours, theirs, field, goal in rows
    ]  # fmt: skip


def _seen(found: dict[str, list[Measured]], side: str) -> str:
    """How far the outputs of `side` are from ours, and how long its first passes took where they compile."""
    if not found[side]:
        return ""
    gap = largest_difference(torch.tensor(found[OURS][0].last), torch.tensor(found[side][0].last))
    longest = max(one.first_passes_s for one in found[side]) if side == COMPILED else 0
    return f"; outputs differ by {gap:.1e} deviations" + (f"; compiled in up to {longest:.0f} s, not counted" if longest else "")


def measure(side: str, options: Options) -> Measured:
    """In this process; memory is over what the process held when the model and its volume were there, and
    where compiled code is asked for, after first passes."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder = SwinEncoder()
    model = (MonaiSwin(encoder, fused=side == FUSED) if side in (STOCK, FUSED) else encoder).to(options.device)
    volume = torch.rand(options.batch, 1, *options.size).to(options.device)
    settle, first_passes_s = settler(options), 0.0

    def last_map(volume: Tensor) -> Tensor:
        return model(volume)[-1]

    if side == COMPILED:
        last_map = torch.compile(last_map, fullgraph=True, dynamic=False)

    def forward() -> Tensor:
        with autocast(options):
            return last_map(volume)

    @torch.no_grad()
    def infer() -> Tensor:
        return forward()

    def train() -> None:
        forward().float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    if options.compile:  # on all sides, so that their memory counts from the same place
        begin = time.perf_counter()
        infer(), train()
        settle()
        first_passes_s = time.perf_counter() - begin
    memory = Memory(options)
    memory.restart()
    inference_s = seconds_of(infer, settle=settle)
    inference_bytes, last = memory.peak(), infer()
    memory.restart()
    training_s = seconds_of(train, settle=settle)
    training_bytes = memory.peak()
    forward_s = seconds_of(forward, settle=settle)
    shown = last.flatten(1).float().tolist()
    return Measured(inference_s, inference_bytes, forward_s, training_s, training_bytes, shown, first_passes_s)
