"""Export the image encoder with `torch.export` and verify it against the model."""

import io
from pathlib import Path

import torch

from mg3d.files import write_bytes
from mg3d.inference.scan_model import ScanModel


def export_encoder(model: ScanModel, path: Path, *, tolerance: float = 1e-4) -> float:
    """Write a `.pt2` file atomically, after the reloaded program reproduced the model's embeddings of random volumes.

    Returns:
        The maximum absolute difference of the embeddings.

    Raises:
        ValueError: embeddings differ by more than `tolerance`; nothing is written.
    """
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
        difference = max(float((embedder(volume[None]) - program(volume[None])).abs().max()) for volume in volumes)
    if not difference <= tolerance:
        raise ValueError(f"embeddings of the export differ by {difference:.1e}, more than {tolerance:g}; nothing was written")
    write_bytes(path, stream.getvalue())
    return difference
