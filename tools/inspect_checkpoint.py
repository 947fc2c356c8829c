"""Print the passport of a file of weights: kind, width, patch merging, coverage, preprocessing, provenance. Builds no network.

Reads torch files (.ckpt .pt .pth .bin), safetensors and folders that mg3d saved, and runs no code that is in them.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from mg3d.checkpoints.command import answer
from mg3d.checkpoints.inspect import inspect_checkpoint


def main(arguments: Sequence[str]) -> int:
    """Prints the passport; returns the exit code."""
    parser = argparse.ArgumentParser(prog="inspect_checkpoint.py", description=__doc__)
    parser.add_argument("file", help="a file of weights, or a folder that mg3d saved")
    parser.add_argument("--json", action="store_true", help="as JSON, with all that the file says about itself")
    parser.add_argument("--prefix", help="what stands before the image encoder's names, where it is none of the usual words")
    parser.add_argument("--entry", help="where in the file the tensors lie, such as teacher")
    options = parser.parse_args(arguments)

    def work() -> str:
        told = inspect_checkpoint(options.file, prefix=options.prefix, entry=options.entry)
        return json_without_nan(told.json()) if options.json else str(told)

    return answer(work)


def json_without_nan(text: str) -> str:
    """JSON that every program reads: a file may tell of a loss that is NaN or infinite, which JSON has no number for."""
    return json.dumps(json.loads(text, parse_constant=str), indent=1, allow_nan=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
