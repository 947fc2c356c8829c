"""Image encoders next to each other: time, memory, and the fraction of the speed of large matrix products that each reaches."""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from mg3d.benchmarks.isolated import PeakMemory, autocast, run_isolated, synchronizer
from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow, best_seconds, median_of
from mg3d.models.build import build_vision
from mg3d.models.flops import FORWARD_AND_BACKWARD
from mg3d.settings.parse import resolve
from mg3d.training.speed import peak_flops

PRESETS = ("swin_b", "vit_b", "unet")


class ArchitectureCost(NamedTuple):
    """Measurements of one process, each the best of several rounds; so is the speed of products, between them."""

    forward_s: float
    training_s: float
    """Forward and backward."""
    training_bytes: float
    ideal_s: float
    """Time of the FLOPs of a forward pass at the speed of a large matrix product."""
    ideal_training_s: float
    parameters: int


def run(options: BenchmarkOptions) -> list[BenchmarkRow]:
    """Inference and training without masked patches; ratio: fraction of the speed of large products."""
    options = options._replace(size=(32, 32, 32), repeats=1) if options.quick else options
    results = run_isolated(measure, PRESETS, options)
    rows = []
    for preset in PRESETS:
        cost = {field: median_of(results[preset], field) for field in ArchitectureCost._fields}
        note = f"{cost['parameters'] / 1e6:.1f} M parameters, {'x'.join(map(str, options.size))}, {options.precision}"
        ideal = "large matrix products"
        rows += [
            BenchmarkRow("forward", preset, ideal, cost["forward_s"], cost["ideal_s"], note=note),
            BenchmarkRow("forward + backward", preset, ideal, cost["training_s"], cost["ideal_training_s"], note=note),
            BenchmarkRow(
                "training memory", preset, PRESETS[0], cost["training_bytes"] / 1e9,
                median_of(results[PRESETS[0]], "training_bytes") / 1e9, unit="GB",
            ),
        ]  # fmt: skip
    return rows


def measure(preset: str, options: BenchmarkOptions) -> ArchitectureCost:
    """Costs of one encoder in this process; memory excludes the model and its input."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder = build_vision(resolve([preset], {"weight_mim": 0.0})).to(options.device)
    volume = torch.rand(options.batch, 1, *options.size, device=options.device)
    synchronize = synchronizer(options)

    @torch.no_grad()
    def infer() -> None:
        with autocast(options):
            encoder.encode(volume)

    def train() -> None:
        with autocast(options):
            features = encoder.encode(volume)
        features.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as counter:
        infer()
    device, precision = torch.device(options.device), "bf16-mixed" if options.precision == "bf16" else "32-true"
    memory = PeakMemory(options)
    rates = [peak_flops(device, precision)]
    memory.reset()
    training_s = best_seconds(train, synchronize=synchronize)
    training_bytes = memory.bytes()
    rates.append(peak_flops(device, precision))
    forward_s = best_seconds(infer, synchronize=synchronize)
    ideal_s = counter.get_total_flops() / max(*rates, peak_flops(device, precision))
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return ArchitectureCost(forward_s, training_s, training_bytes, ideal_s, FORWARD_AND_BACKWARD * ideal_s, parameters)
