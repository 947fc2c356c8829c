"""A training step of all objectives with our encoder and with MONAI's, each in fresh processes; and the time of the losses."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import AdamW

from mg3d.benchmarks.isolated import PeakMemory, autocast, run_isolated, synchronizer
from mg3d.benchmarks.monai_baseline import MonaiSwin
from mg3d.benchmarks.synthetic import MASKED_FRACTION, random_batch, random_model
from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow, median_of, median_seconds
from mg3d.datasets.windowing import move_to_device
from mg3d.models.flops import ReportShape, count_step, needed_flops
from mg3d.models.mg3d import MG3D
from mg3d.settings.schema import Settings
from mg3d.training.chunks import features_in_chunks
from mg3d.training.speed import peak_flops
from mg3d.types import Batch, Features

OURS, MONAI = "mg3d", "MONAI's Swin"
QUICK = {"size": (32, 64, 32), "repeats": 1, "batch": 2, "tokens": 20, "sentences": 3}
MEMORY_TARGET_GB = 12.0
"""At batch 2 in float32."""
LOSSES_TARGET = 10.0
"""A step takes at least this many times as long as its losses."""


class StepCost(NamedTuple):
    """Measurements of one process."""

    seconds: float
    losses_s: float
    """Forward and backward of the losses alone."""
    bytes: float
    total: float
    """Loss of the first step; equal for both encoders up to rounding."""
    peak_s: float
    """Time of the step's FLOPs at the rate of a large matrix product."""
    waits: int
    """Synchronisations of host and GPU in a step; 0 on a CPU."""


def run(options: BenchmarkOptions) -> list[BenchmarkRow]:
    """Forward, losses, backward and optimizer, with a frozen text encoder of BERT-base's size."""
    options = options._replace(**QUICK) if options.quick else options
    results = run_isolated(measure, (OURS, MONAI), options)
    totals = [f"{rounds[0].total:.6f}" if rounds else "none (out of memory)" for rounds in results.values()]
    note = (
        f"{'x'.join(map(str, options.size))}, batch {options.batch}, {options.tokens} tokens, {options.sentences} sentences, "
        f"{options.precision}, {options.device}; losses {totals[0]} and {totals[1]}"
    )
    seconds, memory = ([median_of(rounds, field) for rounds in results.values()] for field in ("seconds", "bytes"))
    gigabytes = [value / 1e9 for value in memory]
    losses_s = median_of(results[OURS], "losses_s")
    memory_target, losses_target = (None, None) if options.quick else (1.0, LOSSES_TARGET)
    limit = MEMORY_TARGET_GB * options.batch / 2
    return [
        BenchmarkRow("step", OURS, MONAI, *seconds, note=note),
        BenchmarkRow("step memory", OURS, MONAI, *gigabytes, unit="GB", note=note),
        BenchmarkRow("step memory", OURS, f"limit of {limit:g} GB", gigabytes[0], limit, unit="GB", target=memory_target,
                     note=note),
        BenchmarkRow("MFU of a step", OURS, "large matrix products", seconds[0], median_of(results[OURS], "peak_s"),
                     note=f"ratio: MFU; waits for the GPU per step: {results[OURS][0].waits}"),
        BenchmarkRow("losses in a step", "losses", "whole step", losses_s, seconds[0], target=losses_target,
                     note=f"{losses_s / seconds[0]:.1%} of a step"),
    ]  # fmt: skip


def measure(side: str, options: BenchmarkOptions) -> StepCost:
    """Costs of one side in this process."""
    torch.set_num_threads(options.threads)
    model, settings = random_model(options)
    if side == MONAI:
        model.vision = MonaiSwin(model.vision)
    return measure_step(model, settings, random_batch(options), options)


def measure_step(model: MG3D, settings: Settings, batch: Batch, options: BenchmarkOptions) -> StepCost:
    """Repeat steps on one batch; memory excludes the model and the batch."""
    model.to(options.device)
    batch = move_to_device(batch, options.device)
    optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)
    memory, totals = PeakMemory(options), []

    def total_loss(features: Features) -> Tensor:
        return sum(getattr(settings.loss, f"weight_{name}") * value for name, value in model.losses(features).items())

    def compute_features() -> Features:
        return features_in_chunks(model, batch, settings.optim.grad_cache_chunk)

    def step() -> None:
        with autocast(options):
            total = total_loss(compute_features())
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        totals.append(total.detach())

    memory.reset()
    seconds = median_seconds(step, synchronize=synchronizer(options))
    peak = memory.bytes()
    with torch.no_grad(), autocast(options):
        fixed = compute_features()
    leaves = {
        name: value.detach().requires_grad_() if value.is_floating_point() else value for name, value in fixed.items()
    }

    def losses_only() -> None:
        with autocast(options):
            total = total_loss(leaves)
        total.backward()

    losses_s = median_seconds(losses_only, synchronize=synchronizer(options), min_total_s=0.2)
    report = ReportShape(options.tokens, options.sentences, *batch.view_ids.shape[1:], MASKED_FRACTION)
    flops = needed_flops(count_step(model, options.size, report)) * options.batch
    rate = peak_flops(torch.device(options.device), "bf16-mixed" if options.precision == "bf16" else "32-true")
    return StepCost(seconds, losses_s, peak, float(totals[0]), flops / rate, _count_waits(step, options))


def _count_waits(step: Callable[[], None], options: BenchmarkOptions) -> int:
    """Operations of one step after which the host waited for the GPU."""
    if options.device != "cuda":
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
