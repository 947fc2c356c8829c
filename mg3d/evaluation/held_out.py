"""A model's embeddings and reconstructions of held-out studies."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.collate import Collator
from mg3d.datasets.studies import Studies
from mg3d.datasets.tokenizer import pad_reports
from mg3d.datasets.windowing import convert_volumes, move_to_device, sample_intensities
from mg3d.evaluation.reconstruction import ReconstructionError
from mg3d.glossary import LABELS, prompts
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.masking import upsample_mask
from mg3d.types import Batch


class Embeddings(NamedTuple):
    """Of n studies, in their order; all on the CPU and of length 1."""

    volumes: Tensor
    """[n, E]."""
    reports: Tensor
    """[n, E]."""
    prompts: Tensor
    """[18, 2, E], present first."""
    logit_scale: float


def batches(studies: Studies, collator: Collator, *, size: int, device: torch.device) -> Iterator[Batch]:
    """Every study once, in order, the first reconstruction of each; masks are the same at every call."""
    for start in range(0, len(studies), size):
        batch = collator([studies.sample(study) for study in range(start, min(start + size, len(studies)))])
        yield convert_volumes(move_to_device(batch, device))


@torch.no_grad()
def embed(model: MG3D, loader: Iterator[Batch], tokenizer: PreTrainedTokenizerBase) -> Embeddings:
    """Embeddings of every volume, every report and the prompt pairs of the 18 findings."""
    model.eval()
    device = next(model.parameters()).device
    volumes, reports = [], []
    for batch in loader:
        volumes.append(model.embed_volume(batch.volume).float().cpu())
        reports.append(model.embed_report(batch.report_ids, batch.attention_mask, batch.sentence_index).float().cpu())
    texts = [text for label in LABELS for text in prompts(label)]
    embedded = embed_texts(model, tokenizer, texts, device=device).reshape(len(LABELS), 2, -1)
    scale = float(model.cml_scale(embedded))
    return Embeddings(torch.cat(volumes), torch.cat(reports), embedded, scale)


@torch.no_grad()
def embed_texts(model: MG3D, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, device: torch.device) -> Tensor:
    """[n, E] of single sentences, on the CPU."""
    rows = [(text, ((0, len(text)),)) for text in texts]
    ids, mask, index = (part.to(device) for part in pad_reports(tokenizer, rows, model.text.longest))
    return model.embed_report(ids, mask, index).float().cpu()


@torch.no_grad()
def reconstruct(model: MG3D, loader: Iterator[Batch], mean_image: Tensor) -> dict[str, float]:
    """Errors at hidden voxels, beside those of the mean image [1, D, H, W]."""
    model.eval()
    error = ReconstructionError(mean_image)
    for batch in loader:
        features = model(batch, frozenset({"mim"}))
        hidden = upsample_mask(batch.patch_mask, batch.volume.shape[2:])[:, None]
        error.update(features.mim_prediction.float().cpu(), batch.volume.cpu(), hidden.cpu())
    return error.result()


@torch.no_grad()
def sentence_vectors(model: MG3D, loader: Iterator[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """(text side of SSM [n, d], polarity int8 [n], patient key int64 [n]) of every sentence of every study, in reading order."""
    parts: list[tuple[Tensor, ...]] = []
    for batch in loader:
        mask = batch.sentence_mask
        vectors = model.sentence_vectors(batch.report_ids, batch.attention_mask, batch.sentence_index, mask.shape[1])
        patients = batch.patient_key[:, None].expand_as(mask)
        parts.append(tuple(part[mask].cpu() for part in (vectors, batch.sentence_polarity, patients)))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def mean_volume(studies: Studies, *, most: int) -> Tensor:
    """[1, D, H, W]: mean of the first `most` studies' volumes."""
    count = min(len(studies), most)
    total = np.zeros((1, *studies.index.shape), dtype=np.float64)
    for study in range(count):
        total += sample_intensities(studies.sample(study))
    return torch.from_numpy(total / max(count, 1)).float()
