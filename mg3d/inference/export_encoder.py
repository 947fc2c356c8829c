"""The image encoder as one `torch.export` program, checked against the model that it comes from."""

import io
import time
from pathlib import Path
from typing import NamedTuple

import torch

from mg3d.files import write_bytes
from mg3d.inference.model import ScanModel

TOLERANCE = 1e-4
"""Largest difference of an exported embedding, of length 1, from the model's own."""


class Exported(NamedTuple):
    """What an export is worth."""

    path: Path
    largest_difference: float
    """Over all numbers of the embeddings of the check's volumes."""
    seconds: tuple[float, float]
    """For one volume: the model, the exported program."""
    megabytes: float

    def __str__(self) -> str:
        own, exported = self.seconds
        return (
            f"{self.path}: {self.megabytes:.1f} MB; embeddings differ by {self.largest_difference:.1e} at most; "
            f"one volume takes {exported:.3f} s, the model itself {own:.3f} s"
        )


def export_encoder(model: ScanModel, path: Path, *, tolerance: float = TOLERANCE) -> Exported:
    """Writes `.pt2`, whole or not at all, after the loaded program gave the model's own numbers for other volumes.

    Raises:
        ValueError: another ending, or numbers that differ by more than `tolerance`.
    """
    if path.suffix != ".pt2":
        raise ValueError(f"{path}: expected a name that ends in .pt2, which torch.export.load reads")
    embedder = model.embedder
    generator = torch.Generator().manual_seed(0)
    shape = (1, *model.preprocessing.recipe.shape)
    parameter = next(embedder.parameters())
    volumes = torch.rand(3, *shape, generator=generator).to(parameter.device, parameter.dtype)
    with torch.no_grad():
        embedder(volumes[:1])  # plans its windows with numbers, which an export cannot look at
        program = torch.export.export(embedder, (volumes[:1],))
        stream = io.BytesIO()
        torch.export.save(program, stream)
        stream.seek(0)
        again = torch.export.load(stream).module()
        begin = time.perf_counter()
        own = torch.cat([embedder(volume[None]) for volume in volumes])
        between = time.perf_counter()
        exported = torch.cat([again(volume[None]) for volume in volumes])
        end = time.perf_counter()
    difference = float((own - exported).abs().max())
    if not difference <= tolerance:
        raise ValueError(
            f"the exported program differs by {difference:.1e} from the model, more than {tolerance:g}; nothing is written"
        )
    content = stream.getvalue()
    write_bytes(path, content)
    seconds = (between - begin) / len(volumes), (end - between) / len(volumes)
    return Exported(path, difference, seconds, len(content) / 1e6)
