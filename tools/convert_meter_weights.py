"""Rename weights between METER, PTUnifier, MG-3D (`released`) and mg3d (`ours`), where tensors correspond.

Prints where every tensor went and why the others did not. OUT ends in .safetensors (our names keep their patch merging there)
or in .ckpt/.pt (as {"state_dict": ...}, which the four programs read).
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save

from mg3d.checkpoints.command import Parser, answer
from mg3d.checkpoints.convert import Conversion, Program, convert
from mg3d.checkpoints.read import read_checkpoint
from mg3d.files import write_bytes
from mg3d.settings.schema import PatchMerging


def write(conversion: Conversion, out: Path) -> None:
    """Writes the tensors, whole or not at all, with their patch merging."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in conversion.tensors.items()}
    identity = {} if conversion.merging == "none" else {"patch_merging": conversion.merging}
    if out.suffix == ".safetensors":
        write_bytes(out, save(tensors, metadata={"format": "pt"} | ({"mg3d": json.dumps(identity)} if identity else {})))
        return
    stream = io.BytesIO()
    torch.save({"state_dict": tensors} | ({"mg3d": identity} if identity else {}), stream)
    write_bytes(out, stream.getvalue())


def run(options: argparse.Namespace) -> Conversion:
    """Converts one file.

    Raises:
        ValueError: it cannot be read or converted, or OUT has another ending or is the file itself.
    """
    out = Path(options.out)
    if out.suffix not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise ValueError(f"OUT={out}: expected a name that ends in .safetensors, .ckpt, .pt or .pth")
    if Path(options.file).resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"OUT={out} is IN or lies in it; name another file")
    if not out.parent.is_dir():
        raise ValueError(f"OUT={out}: there is no folder {out.parent}; make it, or name a file in a folder that is there")
    file = read_checkpoint(options.file)
    conversion = convert(file, options.to, keep_unused=options.keep_unused, prefix=options.prefix, merging=options.merging)
    write(conversion, out)
    return conversion


def main(arguments: Sequence[str]) -> int:
    """Converts and prints the table; returns the exit code."""
    parser = Parser(
        prog="convert_meter_weights.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="IN", help="a file of weights, a run (its last checkpoint), or a folder that mg3d saved")
    parser.add_argument("out", metavar="OUT", help="file to write")
    parser.add_argument("--to", required=True, choices=get_args(Program), help="whose names OUT has")
    parser.add_argument("--merging", choices=get_args(PatchMerging), help="patch merging of IN, where the file does not tell")
    parser.add_argument("--prefix", default="", help="what stands before the names, where it is none of the usual words")
    parser.add_argument("--keep-unused", action="store_true", help="carry along what the released code builds and never reads")
    options = parser.parse_args(arguments)
    return answer(lambda: run(options).table())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
