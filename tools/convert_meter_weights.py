"""Rename the weights of METER, PTUnifier, MG-3D (`released`) or mg3d to the names of another of these programs.

    python tools/convert_meter_weights.py meter_clip16.ckpt meter.safetensors --to mg3d

Prints the new name of every tensor, or why it has no counterpart. OUT ends in .safetensors, or in .ckpt, .pt or .pth, which all
four programs read ({"state_dict": ...}).
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.cli import ArgumentParser, run_and_print

PROGRAMS = ("mg3d", "released", "ptunifier", "meter")
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")


def main(arguments: Sequence[str]) -> int:
    """Converts and prints the table; returns the exit code."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = ArgumentParser(prog="convert_meter_weights.py", description=__doc__, formatter_class=formatter)
    parser.add_argument("file", metavar="IN", help="file of weights, folder saved by mg3d, or run (its last checkpoint)")
    parser.add_argument("out", metavar="OUT", help="file to write")
    parser.add_argument("--to", required=True, choices=PROGRAMS, help="program whose parameter names OUT uses")
    parser.add_argument("--merging", choices=("legacy", "monai", "monai_v2"), help="patch merging of IN, if not stored")
    parser.add_argument("--prefix", default="", help="prefix of the names in IN (default: known wrappers are detected)")
    parser.add_argument("--keep-unused", action="store_true", help="keep tensors that the MG-3D code builds but never reads")
    options = parser.parse_args(arguments)
    return run_and_print(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Converts one file; returns the table.

    Raises:
        ValueError: IN cannot be read or converted; OUT has another suffix, or would overwrite IN.
    """
    out = Path(options.out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"OUT={out}: must end in {', '.join(SUFFIXES)}")
    if Path(options.file).resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"OUT={out} would overwrite IN; choose another file")
    if not out.parent.is_dir():
        raise ValueError(f"OUT={out}: the folder {out.parent} does not exist")
    import torch
    from safetensors.torch import save

    from mg3d.checkpoints.convert import convert
    from mg3d.checkpoints.read import read_checkpoint
    from mg3d.files import write_bytes

    file = read_checkpoint(options.file)
    conversion = convert(file, options.to, keep_unused=options.keep_unused, prefix=options.prefix, merging=options.merging)
    tensors = {name: tensor.contiguous().clone() for name, tensor in conversion.tensors.items()}
    stored = {} if conversion.merging == "none" else {"settings": {"patch_merging": conversion.merging}}
    if out.suffix == ".safetensors":
        write_bytes(out, save(tensors, metadata={"format": "pt"} | ({"mg3d": json.dumps(stored)} if stored else {})))
    else:
        stream = io.BytesIO()
        torch.save({"state_dict": tensors} | ({"mg3d": stored} if stored else {}), stream)
        write_bytes(out, stream.getvalue())
    return conversion.table()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
