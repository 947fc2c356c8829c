"""A model as evaluation sees it: volumes and texts in, vectors of length 1 out."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.studies import ReportText
from mg3d.datasets.tokenizer import encode_report, pad_reports
from mg3d.models.grounding import Texts, attended_shares, decisive_shares
from mg3d.models.mg3d import MG3D


class Embedder(Protocol):
    """Whatever places volumes and texts in one space; on the CPU, [n, E] each."""

    logit_scale: float

    def volumes(self, volumes: Tensor) -> Tensor:
        """Of float32 [B, 1, D, H, W] in [0, 1]."""

    def texts(self, texts: Sequence[ReportText]) -> Tensor:
        """Of reports, or of prompts as reports of one sentence (`sentence`)."""


def sentence(text: str) -> ReportText:
    """A text that is one sentence."""
    return ReportText(text, ((0, len(text)),))


class ModelEmbedder:
    """An MG3D with plain embeddings.

    Args:
        tokenizer: the one it was trained with.
        max_text_len: most tokens of a text.
        batch: texts at once.

    Raises:
        ValueError: the model contrasts fused vectors or was not trained to contrast, so that it has no such embedding.
    """

    def __init__(self, model: MG3D, tokenizer: PreTrainedTokenizerBase, *, max_text_len: int, batch: int = 16) -> None:
        self.model, self.tokenizer, self.max_text_len, self.batch = model.eval(), tokenizer, max_text_len, batch
        self.device = next(model.parameters()).device
        probe = self.texts([sentence("normal")])
        with torch.no_grad():
            self.logit_scale = float(model.cml_scale(probe.to(self.device)))

    @torch.no_grad()
    def volumes(self, volumes: Tensor) -> Tensor:
        """See `Embedder`."""
        return self.model.embed_volume(volumes.to(self.device)).float().cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[ReportText]) -> Tensor:
        """See `Embedder`."""
        parts = [texts[start : start + self.batch] for start in range(0, len(texts), self.batch)]
        return torch.cat([self._some(part) for part in parts])

    @torch.no_grad()
    def maps(self, volumes: Tensor, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        """Where in volumes [B, 1, D, H, W] the first text of each pair is found: [B, pairs, d, h, w], sums to 1 over places.

        `contrast`: what speaks for it rather than for the second text; `attention`: where it looks, where sentences do.
        """
        first, second = (self._padded([sentence(pair[place]) for pair in pairs]) for place in (0, 1))
        image = self.model.encode_volume(volumes.to(self.device))
        directions = self.model.embed_report(*first) - self.model.embed_report(*second)
        found = {
            "contrast": decisive_shares(self.model, image, directions),
            "attention": attended_shares(self.model, image, first),
        }
        return {name: part.unflatten(2, self.model.grid).float().cpu() for name, part in found.items() if part is not None}

    @torch.no_grad()
    def sentences(self, texts: Sequence[ReportText]) -> list[tuple[ReportText, Tensor]]:
        """Each report with those of its units that are read, and their vectors [S, d] on the text side of SSM."""
        found = []
        for text in texts:
            kept = encode_report(self.tokenizer, *text, self.max_text_len).sentence_spans
            ids, mask, index = (part.to(self.device) for part in pad_reports(self.tokenizer, [text], self.max_text_len))
            vectors = self.model.sentence_vectors(ids, mask, index, len(kept))
            found.append((text._replace(sentence_spans=tuple(kept)), vectors[0].float().cpu()))
        return found

    def _some(self, texts: Sequence[ReportText]) -> Tensor:
        return self.model.embed_report(*self._padded(texts)).float().cpu()

    def _padded(self, texts: Sequence[ReportText]) -> Texts:
        return tuple(part.to(self.device) for part in pad_reports(self.tokenizer, texts, self.max_text_len))


def embed_batches(embedder: Embedder, batches: Iterable[Tensor]) -> Tensor:
    """[n, E] of volumes that are not yet cut to [0, 1]."""
    return torch.cat([embedder.volumes(batch.clamp(0.0, 1.0)) for batch in batches])
