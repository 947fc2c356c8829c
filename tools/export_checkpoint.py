"""Write a checkpoint of a pre-training run as one folder for others: config.json, model.safetensors, tokenizer, model card."""

import argparse
import sys
from collections.abc import Sequence

from mg3d.checkpoints.command import Parser, answer
from mg3d.checkpoints.export import TOKENIZER, export_run


def main(arguments: Sequence[str]) -> int:
    """Exports; returns the exit code."""
    parser = Parser(prog="export_checkpoint.py", description=__doc__)
    parser.add_argument("checkpoint", help="a run, such as result/tiny (its last checkpoint), or a checkpoint of it")
    parser.add_argument("out", help="folder to write; a model saved there before is replaced")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="stored with the model; found by itself beside a run's checkpoints")
    parser.add_argument("--note", action="append", default=[], metavar="NAME=TEXT", help="told on the model card")
    options = parser.parse_args(arguments)
    return answer(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Exports and says what was written.

    Raises:
        ValueError: a note has no name, or as `export_run`.
    """
    if any("=" not in note for note in options.note):
        raise ValueError("--note: expected NAME=TEXT, such as --note data='CT-RATE v2'")
    notes = dict(note.split("=", 1) for note in options.note)
    folder = export_run(options.checkpoint, options.out, tokenizer=options.tokenizer, provenance=notes)
    said = f"mg3d: wrote {folder}; load it with mg3d.from_pretrained({str(folder)!r})"
    if not (folder / TOKENIZER).is_dir():
        said += "\nmg3d: without a tokenizer, as none was found; --tokenizer FOLDER stores the one that reports were read with"
    return said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
