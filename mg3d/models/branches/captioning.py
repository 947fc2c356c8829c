"""Captioning: report generation from the unmasked volume."""

from collections.abc import Iterable

from torch import Tensor

from mg3d.losses.captioning import CaptionLoss
from mg3d.models.branches.base import Branch
from mg3d.models.mg3d import MG3D
from mg3d.models.text.decoder import ReportDecoder
from mg3d.models.tokens import SharedTokens
from mg3d.settings.schema import ModelSettings


class CaptioningBranch(Branch):
    """A transformer decoder over image tokens, trained with teacher forcing."""

    name = "captioning"

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        super().__init__(model, settings, objectives)
        self.decoder = ReportDecoder(
            vocabulary_size=model.text.vocabulary_size,
            token_width=settings.hidden_size,
            width=settings.hidden_size,
            layers=settings.caption_layers,
            heads=settings.fusion_heads,
            max_length=model.text.max_length,
        )
        self.label_smoothing = settings.caption_label_smoothing
        self.objective_losses["captioning"] = CaptionLoss()

    def features(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """Loss and number of the next tokens of each report."""
        batch = tokens.batch
        loss, count = self.decoder.loss(
            tokens.image, batch.report_ids, batch.attention_mask, label_smoothing=self.label_smoothing
        )
        return {"captioning_loss": loss, "captioning_tokens": count}
