"""Describe a file of weights: encoder, patch merging, coverage, text encoder, preprocessing, provenance.

Reads torch files (.ckpt .pt .pth .bin), safetensors, folders saved by mg3d and runs; executes no code in them. Exits with 1 if
nothing in the file is recognised, or if its image encoder is too incomplete to be loaded.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mg3d.cli import ArgumentParser, run_and_print

if TYPE_CHECKING:
    from mg3d.checkpoints.info import CheckpointInfo


def main(arguments: Sequence[str]) -> int:
    """Prints the description; returns the exit code."""
    parser = ArgumentParser(
        prog="inspect_checkpoint.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="file of weights, folder saved by mg3d, or folder of a run (its last checkpoint)")
    parser.add_argument("--json", action="store_true", help="print JSON, including all stored settings")
    parser.add_argument("--prefix", help="prefix of the image encoder's parameter names (default: detected)")
    parser.add_argument("--entry", help="key of the state dict in the file, such as teacher (default: detected)")
    options = parser.parse_args(arguments)
    found: list[CheckpointInfo] = []

    def work() -> str:
        from mg3d.checkpoints.info import inspect_checkpoint  # imports torch

        found.append(inspect_checkpoint(options.file, prefix=options.prefix, entry=options.entry))
        return _valid_json(found[0].json()) if options.json else str(found[0])

    return run_and_print(work) or _exit_code(found[0])


def _exit_code(info: "CheckpointInfo") -> int:
    """1, with a line on stderr, if nothing is recognised or loading would refuse an incomplete image encoder."""
    from mg3d.settings.schema import RunSettings

    minimum = RunSettings().load_minimum_coverage
    if info.style == "unknown" and set(info.parts) <= {"outside"}:
        reason = "contains nothing that mg3d recognises; --prefix and --entry select a part of the file"
    elif info.coverage is not None and info.coverage < minimum:
        reason = f"contains {info.coverage:.1%} of its image encoder ({info.encoder}); loading requires {minimum:.0%}"
    else:
        return 0
    print(f"mg3d: {info.path} {reason}", file=sys.stderr)
    return 1


def _valid_json(text: str) -> str:
    """JSON without NaN and Infinity, which other programs do not read."""
    return json.dumps(json.loads(text, parse_constant=str), indent=1, allow_nan=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
