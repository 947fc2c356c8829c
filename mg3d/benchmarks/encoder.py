"""Swin-B against MONAI's code on the same weights: forward, backward and memory, each side in fresh processes."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from mg3d.benchmarks.isolated import PeakMemory, autocast, run_isolated, synchronizer
from mg3d.benchmarks.monai_baseline import MonaiSwin, max_relative_difference
from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow, median_of, median_seconds
from mg3d.models.vision.swin import SwinEncoder

OURS, MONAI, MONAI_FUSED, COMPILED = "mg3d", "MONAI", "MONAI, fused attention", "mg3d, compiled"
QUICK = {"size": (32, 24, 32), "repeats": 1}
TRAINING_TARGET, MEMORY_TARGET, INFERENCE_TARGET = 2.0, 4.0, 1.0


class EncoderCost(NamedTuple):
    """Measurements of one process."""

    inference_s: float
    inference_bytes: float
    forward_s: float
    """With gradients enabled."""
    training_s: float
    """Forward and backward."""
    training_bytes: float
    output: list[list[float]]
    """The last map, [B, values]."""
    warm_up_s: float
    """First calls, which compile; 0 if no side is compiled."""


def run(options: BenchmarkOptions) -> list[BenchmarkRow]:
    """Inference against both attention paths of MONAI, training against the one that supports gradients; with `compile`, also
    the compiled encoder against the eager one."""
    options = options._replace(**QUICK) if options.quick else options
    results = run_isolated(measure, (OURS, MONAI, MONAI_FUSED, *([COMPILED] if options.compile else [])), options)
    rows = [
        ("inference", OURS, MONAI, "inference_s", INFERENCE_TARGET),
        ("inference", OURS, MONAI_FUSED, "inference_s", INFERENCE_TARGET),
        ("inference memory", OURS, MONAI_FUSED, "inference_bytes", None),
        ("training forward", OURS, MONAI, "forward_s", None),
        ("training forward + backward", OURS, MONAI, "training_s", TRAINING_TARGET),
        ("training memory", OURS, MONAI, "training_bytes", MEMORY_TARGET),
    ]
    if options.compile:
        compiled = [row for row in rows if row[2] != MONAI_FUSED or "memory" in row[0]]
        rows += [(name, COMPILED, OURS, field, None) for name, _, _, field, _ in compiled]
    table = []
    for name, candidate, baseline, field, target in rows:
        scale, unit = (1e9, "GB") if field.endswith("bytes") else (1, "s")
        costs = (median_of(results[side], field) / scale for side in (candidate, baseline))
        note = _note(results, COMPILED if candidate == COMPILED else MONAI, options)
        target = None if options.quick else target
        table.append(BenchmarkRow(name, candidate, baseline, *costs, target=target, unit=unit, note=note))
    return table


def _note(results: dict[str, list[EncoderCost]], side: str, options: BenchmarkOptions) -> str:
    """Sizes, difference of the outputs, and the compilation time."""
    note = f"{'x'.join(map(str, options.size))}, batch {options.batch}, {options.precision}, {options.device}"
    if not results[side]:
        return note
    difference = max_relative_difference(torch.tensor(results[OURS][0].output), torch.tensor(results[side][0].output))
    compiled = f"; compiled in {max(cost.warm_up_s for cost in results[side]):.0f} s (not included)" if side == COMPILED else ""
    return f"{note}; outputs differ by {difference:.1e} std{compiled}"


def measure(side: str, options: BenchmarkOptions) -> EncoderCost:
    """Costs of one side in this process; memory excludes the model and its input."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder = SwinEncoder()
    model = (MonaiSwin(encoder, fused=side == MONAI_FUSED) if side in (MONAI, MONAI_FUSED) else encoder).to(options.device)
    volume = torch.rand(options.batch, 1, *options.size).to(options.device)
    synchronize, warm_up_s = synchronizer(options), 0.0

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

    if options.compile:  # for every side, so that memory is measured from the same state
        start = time.perf_counter()
        infer(), train()
        synchronize()
        warm_up_s = time.perf_counter() - start
    memory = PeakMemory(options)
    memory.reset()
    inference_s = median_seconds(infer, synchronize=synchronize)
    inference_bytes, last = memory.bytes(), infer()
    memory.reset()
    training_s = median_seconds(train, synchronize=synchronize)
    training_bytes = memory.bytes()
    forward_s = median_seconds(forward, synchronize=synchronize)
    output = last.flatten(1).float().tolist()
    return EncoderCost(inference_s, inference_bytes, forward_s, training_s, training_bytes, output, warm_up_s)
