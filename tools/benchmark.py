"""Measure the speed and memory of mg3d against a baseline, alternately in one run, and print the ratios.

data           preparation of raw files and reading of prepared files, against MONAI (parts: preparation, reading)
encoder        Swin-B against MONAI's code on the same weights
architectures  Swin-B, ViT-B and U-Net: time, memory, fraction of the speed of large matrix products
step           a training step of all objectives, against the same step with MONAI's encoder; fraction spent in the losses
text           the frozen text encoder: padded, trimmed, cached
loader         fraction of the training time spent waiting for batches, by number of workers
planner        steps as tools/plan.py predicts them, against measured ones
"""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow
from mg3d.cli import ArgumentParser, output_file, positive_int

if TYPE_CHECKING:
    from rich.table import Table

MODULES = ("encoder", "architectures", "step", "text", "loader", "planner")
TOPICS = {"data": ("preparation", "reading"), **{name: (name,) for name in MODULES}}
"""Topic -> modules of mg3d.benchmarks with a function `run(options: BenchmarkOptions) -> list[BenchmarkRow]`."""
DEFAULT_BATCH = {"text": 4, "loader": 4, "step": 2}


def main(arguments: Sequence[str]) -> int:
    """Runs a benchmark; returns the exit code: 1 if a target was missed."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    topic, parts, json = given.pop("topic"), given.pop("parts"), given.pop("json")
    unknown = [part for part in parts if part not in TOPICS[topic]]
    if unknown:
        parser.error(f"{topic} has no part {unknown[0]!r}; its parts are {', '.join(TOPICS[topic])}")
    _check_device(parser, given)
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None}
    options = BenchmarkOptions(**{"batch": DEFAULT_BATCH.get(topic, 1)} | chosen)
    rows: list[BenchmarkRow] = []
    for part in parts or TOPICS[topic]:
        rows += importlib.import_module(f"mg3d.benchmarks.{part}").run(options)
    from rich.console import Console

    from mg3d.files import write_json

    Console(width=None if sys.stdout.isatty() else 200).print(_table(rows))
    if json:
        entries = [{**row._asdict(), "ratio": row.ratio} for row in rows]
        write_json(json, {"topic": topic, "options": options._asdict(), "rows": entries})
    return int(any(row.target is not None and row.ratio < row.target for row in rows))


def _check_device(parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> None:
    if given["device"] == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: no GPU is available to PyTorch")


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", choices=TOPICS, help="what to measure (see above)")
    parser.add_argument("parts", nargs="*", metavar="PART", help="data only: preparation or reading (default: both)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: checks that it runs; times mean nothing")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--size", type=positive_int, nargs=3, metavar=("Z", "Y", "X"), help="voxels (default: 128 96 128)")
    parser.add_argument("--batch", type=positive_int, metavar="N", help="volumes or reports (default: 1; step 2; text, loader 4)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads per measured process (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="device (default: cpu)")
    parser.add_argument("--precision", choices=("32", "bf16"), help="float32, or autocast to bfloat16 (default: 32)")
    parser.add_argument("--repeats", type=positive_int, metavar="N", help="rounds; medians are shown (default: 3)")
    parser.add_argument("--tokens", type=positive_int, metavar="N", help="step, text: tokens per report (default: 250)")
    parser.add_argument("--sentences", type=positive_int, metavar="N", help="step: sentences per report (default: 32)")
    parser.add_argument("--workers", type=positive_int, nargs="+", metavar="N", help="loader: workers (default: 1 2 4 8)")
    parser.add_argument(
        "--step-ms", type=float, metavar="MS", help="loader: duration of the simulated training step in ms (default: 250)"
    )
    parser.add_argument("--compile", action="store_true", help="encoder: also measure torch.compile against eager mode")
    return parser


def _table(rows: Sequence[BenchmarkRow]) -> "Table":
    from rich.table import Table

    table = Table("measured", "candidate", "cost", "baseline", "cost", "ratio", "target", "note")
    for row in rows:
        costs = (f"{row.candidate_cost:.3g} {row.unit}", f"{row.baseline_cost:.3g} {row.unit}")
        target = "" if row.target is None else f"{row.target:g}"
        table.add_row(row.name, row.candidate, costs[0], row.baseline, costs[1], f"{row.ratio:.2f}", target, row.note)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
