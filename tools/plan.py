"""Predict what a pre-training costs before it is started.

    python tools/plan.py --device h100 --devices 8 --price 2.5 with swin_b text_radbert max_steps=300000
    python tools/plan.py --calibrate with tiny                     steps are taken and timed here

Settings come after `with`, as for main.py. FLOPs are counted by `torch.utils.flop_counter` from shapes, without numbers; memory
is what weights, gradients, Adam and the backward pass keep, at least. Nothing is downloaded: a report encoder that is not `tiny`
counts as one of BERT-base's size.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.table import Table

from mg3d.benchmarks.planner import DEVICES, Plan, calibrate, predict, verdict
from mg3d.checkpoints.command import Parser
from mg3d.config import read_arguments
from mg3d.settings.schema import Settings


def main(arguments: Sequence[str]) -> int:
    """Prints the plan; returns the exit code: 2 for a mistake of the user's."""
    arguments = list(arguments)
    at = arguments.index("with") if "with" in arguments else len(arguments)
    given, others = _parser().parse_known_args(arguments[:at])
    try:
        if others:
            raise ValueError(f"unknown option {others[0]!r} (--help lists them); settings come after the word `with`")
        _require_sensible(given)
        settings = read_arguments(arguments[at + 1 :])
        if given.calibrate and given.device:
            raise ValueError("--calibrate measures the device that is here, --device takes a published one; give one of them")
        _show(settings, given)
    except ValueError as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    return 0


def _require_sensible(given: argparse.Namespace) -> None:
    for name, least in {"devices": 1, "threads": 1, "studies": 0, "volumes": 0, "price": 0}.items():
        if not getattr(given, name) >= least:
            raise ValueError(f"--{name} {getattr(given, name)}: must be at least {least}")
    if not 0 < given.utilisation <= 1:
        raise ValueError(f"--utilisation {given.utilisation:g}: a share above 0 and up to 1 is expected")


def _show(settings: Settings, given: argparse.Namespace) -> None:
    device, here = DEVICES.get(given.device), "cuda" if torch.cuda.is_available() else "cpu"
    measured = calibrate(settings, devices=given.devices, device=here, threads=given.threads) if given.calibrate else None
    peak = None
    if device is not None:
        peak = device.float32_flops if settings.run.precision == "32-true" else device.bf16_flops
    plan = predict(settings, devices=given.devices, peak_flops=peak, utilisation=given.utilisation, measured=measured)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_parts(plan))
    table = Table("what", "predicted", "from")
    for row in _rows(plan, settings, given):
        table.add_row(*row)
    if measured is not None:
        table.add_row("memory of a step, measured", f"{measured.bytes / 1e9:.3g} GB beside the weights", f"steps on this {here}")
    there = device.memory_gb if device else _memory_here_gb(here)
    table.add_row("room", verdict(plan.memory_gb, there), device.name if device else f"this {here}")
    console.print(table)


def _rows(plan: Plan, settings: Settings, given: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    yield "parameters", f"{plan.trained:,} to train, {plan.frozen:,} frozen", "counted"
    yield "FLOPs of a step", f"{plan.step_flops / 1e12:.4g} T for {settings.optim.batch_size} volumes", "counted; 3 x forward"
    yield "memory of a device", f"at least {plan.memory_gb:.3g} GB", "weights, gradients, Adam, what passes keep"
    yield "checkpoints", f"{plan.checkpoint_gb:.3g} GB", "last and best"
    everything = f", {plan.volume_mb * given.volumes / 1e3:.4g} GB" if given.volumes else ""
    yield "volumes", f"{plan.volume_mb:.3g} MB each{everything}", "int16"
    if plan.step_s is None:
        yield "time", "not known", "give --device or --calibrate"
        return
    source = "measured here" if given.calibrate else f"published peak x {given.utilisation:g}, assumed"
    yield "step", f"{plan.step_s:.4g} s", source
    if given.studies:
        yield "epoch", f"{plan.step_s * given.studies / settings.optim.batch_size / 3600:.4g} h", f"{given.studies:,} studies"
    hours = plan.run_h * given.devices
    yield "run", f"{plan.run_h:.4g} h, {hours:.4g} device-hours", f"max_steps={settings.optim.max_steps:,}"
    if given.price:
        yield "cost", f"{hours * given.price:,.2f}", f"{given.price:g} a device-hour"


def _parts(plan: Plan) -> Table:
    table = Table("part, of one volume", "passes", "forward GFLOP", "kept GB, float32", "learns")
    for part in plan.parts:
        flops, kept = f"{part.forward_flops / 1e9:.4g}", f"{part.kept_bytes / 1e9:.3g}"
        table.add_row(part.name, str(part.passes), flops, kept, "yes" if part.learns else "no")
    return table


def _memory_here_gb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, help="a device by its published numbers")
    parser.add_argument("--calibrate", action="store_true", help="take some steps on the device that is here")
    parser.add_argument("--devices", type=int, default=1, help="how many of them (1)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the published peak that is assumed (0.4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads for --calibrate")
    parser.add_argument("--studies", type=int, default=0, help="training studies, for the time of an epoch")
    parser.add_argument("--volumes", type=int, default=0, help="prepared volumes, for the disk")
    parser.add_argument("--price", type=float, default=0.0, help="of a device-hour, in any currency")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
