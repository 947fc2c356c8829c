"""A whole step of all objectives, beside the same step around MONAI's encoder, each side in processes of its own."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import AdamW

from mg3d.benchmarks.batches import build, on_device, random_batch
from mg3d.benchmarks.fresh import Memory, alternate, autocast, settler
from mg3d.benchmarks.monai_baseline import MonaiSwin
from mg3d.benchmarks.timing import Comparison, Options, median, seconds_of
from mg3d.models.mg3d import MG3D
from mg3d.settings.schema import Settings
from mg3d.training.chunks import features_in_chunks
from mg3d.types import Batch

OURS, STOCK = "mg3d", "around MONAI's Swin"
QUICK = {"size": (32, 64, 32), "repeats": 1, "batch": 2, "tokens": 20, "sentences": 3}
MEMORY_GOAL_GB = 12.0
"""At batch 2 in float32."""


class Measured(NamedTuple):
    """One process."""

    seconds: float
    bytes: float
    total: float
    """The loss of the first step, equal on both sides but for rounding."""


def run(options: Options) -> list[Comparison]:
    """Forward, losses, backward and optimiser, with a frozen report encoder of BERT-base's size."""
    options = options._replace(**QUICK) if options.quick else options
    found = alternate(measure, (OURS, STOCK), options)
    totals = [f"{rounds[0].total:.6f}" if rounds else "none, for the process was killed (memory)" for rounds in found.values()]
    told = (
        f"{'x'.join(map(str, options.size))}, batch {options.batch}, {options.tokens} tokens, {options.sentences} sentences, "
        f"{options.precision}, {options.device}; losses {totals[0]} and {totals[1]}"
    )
    costs = {field: [median(rounds, field) for rounds in found.values()] for field in ("seconds", "bytes")}
    memory = [cost / 1e9 for cost in costs["bytes"]]
    return [
        Comparison("step", OURS, STOCK, *costs["seconds"], note=told),
        Comparison("step, memory", OURS, STOCK, *memory, unit="GB", note=told),
        Comparison("step, memory", OURS, "12 GB at batch 2", memory[0], MEMORY_GOAL_GB * options.batch / 2, unit="GB",
                   goal=None if options.quick else 1.0, note=told),
    ]  # fmt: skip


def measure(side: str, options: Options) -> Measured:
    """In this process."""
    torch.set_num_threads(options.threads)
    model, losses, settings = build(options)
    if side == STOCK:
        model.vision = MonaiSwin(model.vision)
    return measure_step(model, losses, settings, random_batch(options), options)


def measure_step(
    model: MG3D, losses: Mapping[str, nn.Module], settings: Settings, batch: Batch, options: Options
) -> Measured:
    """Steps of this model on this batch, over and over; memory is over what the process held with both of them there."""
    model.to(options.device)
    batch = on_device(batch, options.device)
    optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)
    memory, totals = Memory(options), []

    def step() -> None:
        with autocast(options):
            features = features_in_chunks(model, batch, settings.optim.grad_cache_chunk)
            values = {name: loss(**{key: getattr(features, key) for key in loss.inputs}) for name, loss in losses.items()}
            total = sum(getattr(settings.loss, f"weight_{name}") * value for name, value in values.items())
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        totals.append(total.detach())

    memory.restart()
    seconds = seconds_of(step, settle=settler(options))
    return Measured(seconds, memory.peak(), float(totals[0]))
