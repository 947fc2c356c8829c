"""Token sets of one batch that several branches read."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from mg3d.models.pooling import sentence_means
from mg3d.types import Batch

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D


class SharedTokens:
    """Encoder outputs for a batch. Each is computed on first use, and only once, however many branches read it."""

    def __init__(self, model: MG3D, batch: Batch) -> None:
        self.model, self.batch = model, batch

    @cached_property
    def image(self) -> Tensor:
        """[B, N, d]: tokens of the volumes."""
        return self.model.encode_volume(self.batch.volume)

    @cached_property
    def masked_image(self) -> Tensor:
        """[B, N, d]: tokens of the volumes with masked patches."""
        return self.model.encode_volume(self.batch.volume, self.batch.patch_mask)

    @cached_property
    def text_features(self) -> Tensor:
        """[B, T, text width]: last layer of the text encoder on the unmasked reports; from the text cache if the batch has it."""
        if len(self.batch.text_features):
            return self.batch.text_features.to(self.model.project_report.weight.dtype)
        return self.model.text(self.batch.report_ids, self.batch.attention_mask)

    @cached_property
    def report(self) -> Tensor:
        """[B, T, d]: tokens of the unmasked reports."""
        return self.model.report_tokens(self.text_features)

    @cached_property
    def masked_report(self) -> Tensor:
        """[B, T, d]: tokens of the masked reports."""
        return self.model.encode_report(self.batch.mlm_ids, self.batch.attention_mask)

    @cached_property
    def sentences(self) -> Tensor:
        """[B, S, d]: mean token of each sentence of the unmasked reports."""
        return self.sentence_means(self.report)

    def sentence_means(self, tokens: Tensor) -> Tensor:
        """[B, S, width]: mean over each sentence of tokens [B, T, width] of the reports."""
        return sentence_means(tokens, self.batch.sentence_index, self.batch.sentence_mask.shape[1])
