"""CML: the joint embedding of volumes and reports."""

from collections.abc import Iterable

from einops import rearrange
from torch import Tensor

from mg3d.losses.cml import CMLLoss
from mg3d.models.branches.base import Branch
from mg3d.models.heads import LogitScale, ProjectionHead
from mg3d.models.mg3d import MG3D
from mg3d.models.pooling import AttentionPool, build_image_pool
from mg3d.models.tokens import SharedTokens
from mg3d.settings.schema import ModelSettings


class ContrastBranch(Branch):
    """Pools and projection heads of both modalities; neither side reads the other."""

    name = "contrast"

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        super().__init__(model, settings, objectives)
        width, heads = settings.hidden_size, settings.fusion_heads
        self.image_pool = build_image_pool(settings, model.grid)
        self.report_pool = AttentionPool(width, heads, queries=settings.pool_queries, may_be_empty=True)
        self.image_head = ProjectionHead(width, settings.embedding_size)
        self.report_head = ProjectionHead(width, settings.embedding_size)
        self.logit_scale = LogitScale(settings.contrast)
        self.objective_losses["cml"] = CMLLoss()

    def embed_image(self, image: Tensor) -> Tensor:
        """[B, E], L2-normalised, of image tokens [B, N, d]."""
        return self.image_head(self.image_pool(image))

    def embed_report(self, sentences: Tensor, sentence_mask: Tensor) -> Tensor:
        """[B, E], L2-normalised, of sentences [B, S, d]; sentence_mask bool [B, S]."""
        return self.report_head(self.report_pool(sentences, sentence_mask))

    def features(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """Embeddings of volumes, reports, and of views and extra negatives if the batch has them."""
        batch = tokens.batch
        features = {
            "cml_image_embedding": self.embed_image(tokens.image),
            "cml_report_embedding": self.embed_report(tokens.sentences, batch.sentence_mask),
            **self.logit_scale.features("cml"),
        }
        if batch.view_ids.shape[1]:
            views = (batch.view_ids, batch.view_attention_mask, batch.view_sentence_index)
            sentences = batch.sentence_mask.shape[1]
            embedding = tokens.model.embed_report(*(part.flatten(0, 1) for part in views), max_sentences=sentences)
            features["cml_view_embedding"] = rearrange(embedding, "(b k) e -> b k e", b=len(batch.view_ids))
        if len(batch.negative_sentences):
            features |= self._embed_negatives(tokens)
        return features

    def _embed_negatives(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """The batch holds sentence means of the text encoder's features; projecting the mean is the mean of projections."""
        batch, model = tokens.batch, tokens.model
        sentences = model.report_tokens(batch.negative_sentences.to(model.project_report.weight.dtype))
        embedding = self.embed_report(sentences.flatten(0, 1), batch.negative_sentence_mask.flatten(0, 1))
        return {
            "negative_embedding": embedding.unflatten(0, batch.negative_patient_key.shape),
            "negative_patient_key": batch.negative_patient_key,
            "negative_report_key": batch.negative_report_key,
        }
