"""Export a pre-training run as a folder for sharing: config.json, model.safetensors, tokenizer and model card.

    python tools/export_checkpoint.py result/tiny exported --note data="CT-RATE v2"

Load the folder with mg3d.from_pretrained("exported").
"""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import ArgumentParser, run_and_print


def main(arguments: Sequence[str]) -> int:
    """Exports; returns the exit code."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = ArgumentParser(prog="export_checkpoint.py", description=__doc__, formatter_class=formatter)
    parser.add_argument("checkpoint", help="run, such as result/tiny (its last checkpoint), RUN/best, or a checkpoint file")
    parser.add_argument("out", help="folder to write; replaces a model that was saved there")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer to store (default: that of the run or its text encoder)")
    parser.add_argument("--note", action="append", default=[], metavar="NAME=TEXT", help="line for the model card; repeatable")
    options = parser.parse_args(arguments)
    return run_and_print(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Exports; returns what was written.

    Raises:
        ValueError: a note without a name, and errors of `export_run`.
    """
    if any("=" not in note for note in options.note):
        raise ValueError("--note must be NAME=TEXT, such as --note data='CT-RATE v2'")
    from mg3d.checkpoints.pretrained import TOKENIZER, export_run  # imports torch

    notes = dict(note.split("=", 1) for note in options.note)
    folder = export_run(options.checkpoint, options.out, tokenizer=options.tokenizer, provenance=notes)
    text = f"mg3d: wrote {folder}; load it with mg3d.from_pretrained({str(folder)!r})"
    if not (folder / TOKENIZER).is_dir():
        text += "\nmg3d: no tokenizer was found or stored; --tokenizer FOLDER stores the one of the training"
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
