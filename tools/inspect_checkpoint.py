"""Print the passport of a file of weights: kind, width, patch merging, coverage, preprocessing, provenance. Builds no network.

Reads torch files (.ckpt .pt .pth .bin), safetensors and folders that mg3d saved, and runs no code that is in them. The exit
code is 1 where nothing in the file is known, or so little of its image encoder is there that loading it would be refused.
"""

import json
import sys
from collections.abc import Sequence

from mg3d.checkpoints.command import Parser, answer
from mg3d.checkpoints.inspect import Passport, inspect_checkpoint
from mg3d.settings.schema import RunSettings

FOREIGN = "elsewhere (not of ours)"
"""The one part of a passport that knows none of the names."""


def main(arguments: Sequence[str]) -> int:
    """Prints the passport; returns the exit code."""
    parser = Parser(prog="inspect_checkpoint.py", description=__doc__)
    parser.add_argument("file", help="a file of weights, a run (its last checkpoint), or a folder that mg3d saved")
    parser.add_argument("--json", action="store_true", help="as JSON, with all that the file says about itself")
    parser.add_argument("--prefix", help="what stands before the image encoder's names, where it is none of the usual words")
    parser.add_argument("--entry", help="where in the file the tensors lie, such as teacher")
    options = parser.parse_args(arguments)

    found: list[Passport] = []

    def work() -> str:
        found.append(inspect_checkpoint(options.file, prefix=options.prefix, entry=options.entry))
        return json_without_nan(found[0].json()) if options.json else str(found[0])

    return answer(work) or too_little(found[0])


def too_little(told: Passport) -> int:
    """1, and a line that says so, where nothing is known or loading would refuse the image encoder as incomplete; else 0."""
    least = RunSettings().load_minimum_coverage
    if told.style == "unknown" and told.encoder == "none" and set(told.parts) <= {FOREIGN}:
        print(f"mg3d: {told.path} holds nothing that is known here; --prefix and --entry name where to look", file=sys.stderr)
        return 1
    if told.coverage is None or told.coverage >= least:
        return 0
    print(
        f"mg3d: {told.path} holds {told.coverage:.1%} of the parameters of its image encoder ({told.encoder}); loading it is "
        f"refused below {least:.0%}",
        file=sys.stderr,
    )
    return 1


def json_without_nan(text: str) -> str:
    """JSON that every program reads: a file may tell of a loss that is NaN or infinite, which JSON has no number for."""
    return json.dumps(json.loads(text, parse_constant=str), indent=1, allow_nan=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
