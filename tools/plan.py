"""Predict parameters, FLOPs, memory, time and cost of a pre-training run.

    python tools/plan.py with swin_b text_radbert                  on this machine, from its measured speed of products and copies
    python tools/plan.py --device h100 --devices 8 --price 2.5 with swin_b text_radbert max_steps=300000
    python tools/plan.py --calibrate with tiny                     on this machine, from measured training steps

Presets and settings come after `with`, as for main.py. FLOPs and memory traffic of every operator are counted from shapes; an
operator takes as long as the slower of the two needs (roofline). Memory is a lower bound: weights, gradients, Adam states,
activations. Nothing is downloaded: a text encoder other than `tiny` counts as BERT-base.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from mg3d.cli import ArgumentParser

if TYPE_CHECKING:
    from rich.table import Table

    from mg3d.benchmarks.planner import Plan
    from mg3d.settings.schema import Settings


def main(arguments: Sequence[str]) -> int:
    """Prints the plan; returns the exit code, 2 for a user's mistake."""
    arguments = list(arguments)
    at = arguments.index("with") if "with" in arguments else len(arguments)
    options, others = _parser().parse_known_args(arguments[:at])
    try:
        if others:
            raise ValueError(f"{others[0]!r} is not an option; presets and settings come after `with`")
        _require_valid(options)
        from mg3d.config import read_arguments

        show_plan(read_arguments(arguments[at + 1 :]), options)
    except ValueError as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="plan.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", metavar="NAME", help="published speed of a100, h100, h200, b200, l40s, rtx4090, rtx5090")
    parser.add_argument("--calibrate", action="store_true", help="measure some training steps on this machine instead")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="number of devices (default: 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of this machine to use (default: all)")
    parser.add_argument("--studies", type=int, default=0, metavar="N", help="training studies, to predict the time of an epoch")
    parser.add_argument("--volumes", type=int, default=0, metavar="N", help="prepared volumes, to predict disk space")
    parser.add_argument("--price", type=float, default=0.0, help="price of a device-hour, in any currency")
    return parser


def _require_valid(options: argparse.Namespace) -> None:
    for name, minimum in {"devices": 1, "threads": 1, "studies": 0, "volumes": 0, "price": 0}.items():
        if getattr(options, name) is not None and not getattr(options, name) >= minimum:
            raise ValueError(f"--{name} {getattr(options, name)}: must be at least {minimum}")
    if options.calibrate and options.device:
        raise ValueError("use either --calibrate (measures this machine) or --device (published values)")


def show_plan(settings: "Settings", options: argparse.Namespace) -> None:
    """Predicts and prints the plan; ValueError for an unknown chip."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from mg3d.benchmarks.planner import calibrate, describe_fit, predict
    from mg3d.benchmarks.roofline import CHIPS, measure_chip
    from mg3d.precision import resolve_precision
    from mg3d.settings.parse import refuse_unknown

    refuse_unknown([options.device] if options.device else [], CHIPS, "device")
    local = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(options.threads or torch.get_num_threads())
    precision, memory_gb, measured = resolve_precision(settings.run.precision, local), _local_memory_gb(local), None
    if options.device:
        chip = CHIPS[options.device]
        precision = "bf16-mixed" if settings.run.precision == "auto" else settings.run.precision
    elif options.calibrate:
        chip = None
        measured = calibrate(settings, devices=options.devices, device=local, threads=torch.get_num_threads())
    else:
        chip = measure_chip(torch.device(local), memory_gb, is_half="16" in precision)
    plan = predict(settings, devices=options.devices, chip=chip, precision=precision, measured=measured)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_part_table(plan))
    table = Table("quantity", "prediction", "source")
    for row in _rows(plan, settings, options, chip.name if chip else f"this {local}"):
        table.add_row(*row)
    if measured is not None:
        table.add_row("memory of a step", f"{measured.bytes / 1e9:.3g} GB in addition to weights", f"measured on this {local}")
    fit = describe_fit(plan.memory_gb, chip.memory_gb if chip else memory_gb)
    table.add_row("fits in memory", fit, f"{chip.name if chip else local}, {precision}")
    console.print(table)


def _part_table(plan: "Plan") -> "Table":
    """Costs per volume, and the predicted time per optimizer step and device."""
    from rich.table import Table

    table = Table("part", "passes", "forward GFLOP", "saved MB", "trained", "traffic GB", "ms per step", "limited by")
    for part, time in zip_longest(plan.parts, plan.times):
        counts = ("", "", "", "")
        if part is not None:
            flops, saved = f"{part.forward_flops / 1e9:.4g}", f"{part.saved_bytes / 1e6:.3g}"
            counts = (str(part.passes), flops, saved, "yes" if part.is_trained else "no")
        predicted = (f"{time.bytes / 1e9:.3g}", f"{time.seconds * 1e3:.3g}", time.bound) if time else ("", "", "")
        table.add_row((part or time).name, *counts, *predicted)
    return table


def _rows(plan: "Plan", settings: "Settings", options: argparse.Namespace, device: str) -> Iterator[tuple[str, str, str]]:
    yield "parameters", f"{plan.trained:,} trained, {plan.frozen:,} frozen", "counted"
    yield "FLOPs per step", f"{plan.step_flops / 1e12:.4g} T for {settings.optim.batch_size} volumes", "counted; 3 x forward"
    yield "memory per device", f"at least {plan.memory_gb:.3g} GB", "weights, gradients, Adam, activations"
    yield "checkpoints", f"{plan.checkpoint_gb:.3g} GB", "last and best"
    total = f", {plan.volume_mb * options.volumes / 1e3:.4g} GB in total" if options.volumes else ""
    yield "volumes on disk", f"{plan.volume_mb:.3g} MB each{total}", "int16"
    yield "time per step", f"{plan.step_s:.4g} s", "measured" if options.calibrate else f"roofline of {device}"
    if plan.mfu is not None:
        yield "MFU", f"{plan.mfu:.0%}", "required FLOPs over peak FLOPs in that time"
    if options.studies:
        hours = plan.step_s * options.studies / settings.optim.batch_size / 3600
        yield "time per epoch", f"{hours:.4g} h", f"{options.studies:,} studies"
    device_hours = plan.run_h * options.devices
    yield "time of the run", f"{plan.run_h:.4g} h, {device_hours:.4g} device-hours", f"max_steps={settings.optim.max_steps:,}"
    if options.price:
        yield "cost", f"{device_hours * options.price:,.2f}", f"{options.price:g} per device-hour"


def _local_memory_gb(device: str) -> float:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
