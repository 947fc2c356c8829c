"""Export the image encoder with `torch.export` and verify it against the model."""

import io
import time
from pathlib import Path
from typing import NamedTuple

import torch

from mg3d.files import write_bytes
from mg3d.inference.scan_model import ScanModel


class ExportResult(NamedTuple):
    """File, accuracy and speed of an export."""

    path: Path
    max_difference: float
    """Over the embeddings of the test volumes."""
    seconds: tuple[float, float]
    """Per volume: model, exported program."""
    megabytes: float

    def __str__(self) -> str:
        model, exported = self.seconds
        return (
            f"{self.path}: {self.megabytes:.1f} MB; maximum difference of embeddings {self.max_difference:.1e}; "
            f"{exported:.3f} s per volume, {model:.3f} s with the model"
        )


def export_encoder(model: ScanModel, path: Path, *, tolerance: float = 1e-4) -> ExportResult:
    """Write a `.pt2` file atomically, after the reloaded program reproduced the model's embeddings of other volumes.

    Raises:
        ValueError: another suffix, or embeddings differ by more than `tolerance`.
    """
    if path.suffix != ".pt2":
        raise ValueError(f"{path}: expected the suffix .pt2, for torch.export.load")
    embedder = model.embedder
    generator = torch.Generator().manual_seed(0)
    parameter = next(embedder.parameters())
    volumes = torch.rand(3, 1, *model.preprocessing.recipe.shape, generator=generator).to(parameter.device, parameter.dtype)
    with torch.no_grad():
        embedder(volumes[:1])  # caches the window plan, which cannot be traced
        stream = io.BytesIO()
        torch.export.save(torch.export.export(embedder, (volumes[:1],)), stream)
        stream.seek(0)
        program = torch.export.load(stream).module()
        start = time.perf_counter()
        expected = torch.cat([embedder(volume[None]) for volume in volumes])
        middle = time.perf_counter()
        exported = torch.cat([program(volume[None]) for volume in volumes])
        end = time.perf_counter()
    difference = float((expected - exported).abs().max())
    if not difference <= tolerance:
        raise ValueError(f"embeddings of the export differ by {difference:.1e}, more than {tolerance:g}; nothing was written")
    content = stream.getvalue()
    write_bytes(path, content)
    seconds = (middle - start) / len(volumes), (end - middle) / len(volumes)
    return ExportResult(path, difference, seconds, len(content) / 1e6)
