"""How fusion, pooling and losses grow when sentences, words or patients double."""

from collections.abc import Sequence
from statistics import median

import torch

from mg3d.benchmarks.losses import batched, build_inputs, build_parts, timed
from mg3d.benchmarks.timing import Comparison, Options

CURVES = {"sentences": (8, 16, 32, 64), "tokens": (64, 128, 256, 512), "batch": (4, 8, 16, 32)}
QUICK = {"sentences": (2, 4), "tokens": (8, 16), "batch": (2, 4)}
QUICK_SHAPE = {"size": (32, 64, 32), "batch": 2, "tokens": 16, "sentences": 4, "repeats": 1}
LINEAR, QUADRATIC = 0.4, 0.2
"""Cost before doubling over cost after it: 1/2 and 1/4, less what timing varies."""
WORK = {"sentences": ("pooling", "sal"), "tokens": ("fusion", "pooling", "mlm"), "batch": ("cml", "dcl")}
"""What grows linearly in it; pairs of patients and, in SSM, of sentences grow with their square."""


def run(options: Options) -> list[Comparison]:
    """One row for every doubling: the larger as ours, the smaller beside it. SSM, over all pairs of sentences, has its own."""
    torch.set_num_threads(options.threads)
    options = options._replace(**QUICK_SHAPE) if options.quick else options
    rows: list[Comparison] = []
    for axis, values in (QUICK if options.quick else CURVES).items():
        goal = None if options.quick else (QUADRATIC if axis == "batch" else LINEAR)
        rows += _curve(axis, values, WORK[axis], options, goal)
    return [*rows, *_curve("sentences", (QUICK if options.quick else CURVES)["sentences"], ("ssm",), options,
                           None if options.quick else QUADRATIC)]  # fmt: skip


def _curve(axis: str, values: Sequence[int], work: Sequence[str], options: Options, goal: float | None) -> list[Comparison]:
    costs = []
    for value in values:
        shaped = options._replace(**{axis: value})
        torch.manual_seed(0)
        found = batched(build_parts(options.device), build_inputs(shaped))
        once = [sum(timed(found[name], shaped)[0] for name in work) for _ in range(options.repeats + 1)]
        costs.append(median(once[1:]))
    name = f"{', '.join(work)} by {axis}"
    pairs = zip(values, values[1:], costs, costs[1:])
    return [Comparison(name, f"{axis}={more}", f"{axis}={less}", dear, cheap, goal=goal) for less, more, cheap, dear in pairs]
