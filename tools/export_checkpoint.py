"""Write a checkpoint of a pre-training run as one folder for others: config.json, model.safetensors, tokenizer, model card."""

import argparse
import sys
from collections.abc import Sequence

from mg3d.checkpoints.export import export_run


def main(arguments: Sequence[str]) -> int:
    """Exports; returns the exit code."""
    parser = argparse.ArgumentParser(prog="export_checkpoint.py", description=__doc__)
    parser.add_argument("checkpoint", help="a file such as result/tiny/.../checkpoints/last.ckpt")
    parser.add_argument("out", help="folder to write; a model saved there before is replaced")
    parser.add_argument("--note", action="append", default=[], metavar="NAME=TEXT", help="told on the model card")
    options = parser.parse_args(arguments)
    try:
        if any("=" not in note for note in options.note):
            raise ValueError("--note: expected NAME=TEXT, such as --note data='CT-RATE v2'")
        folder = export_run(options.checkpoint, options.out, provenance=dict(note.split("=", 1) for note in options.note))
    except (ValueError, FileNotFoundError) as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    print(f"mg3d: wrote {folder}; load it with mg3d.from_pretrained({str(folder)!r})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
