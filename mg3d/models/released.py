"""The wiring of the published code: what only `wiring=released` and `wiring=intended` need. docs/fidelity.md explains it.

Names and shapes of parameters follow the published code; its loops over tokens are batched operations with equal results.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.losses.mlm import MLMLoss
from mg3d.losses.released import ReleasedCMLLoss, ReleasedDCLLoss, ReleasedSALLoss, ReleasedSSMLoss
from mg3d.models.branches.base import Branch
from mg3d.models.branches.contrast import ContrastBranch
from mg3d.models.branches.disentangled import SENTENCE_WIDTH, Aggregate, DisentangledBranch
from mg3d.models.branches.report import MLMHead, ReportBranch
from mg3d.models.branches.volume import VolumeBranch
from mg3d.models.heads import ProjectionHead
from mg3d.models.mg3d import MG3D
from mg3d.models.pooling import check_token_count, masked_mean, sentence_means, sentence_membership
from mg3d.models.text.encoder import TextEncoder
from mg3d.models.tokens import SharedTokens
from mg3d.models.vision.masking import upsample_mask
from mg3d.models.vision.registry import VisionEncoder
from mg3d.settings.schema import ModelSettings
from mg3d.types import Batch


class GateLayer(nn.Module):
    """Each token's own value times its mean agreement with the other set, whose values are never read.

    `local_*_cross_multihead_attention` of the published code, without its unused `fc1` and `fc2`; 1 = first set, 2 = second.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("query1", "key1", "value1", "query2", "key2", "value2"):
            self.add_module(name, nn.Linear(width, width))

    def forward(self, first: Tensor, second: Tensor, second_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both sets [B, n, d] and [B, m, d], gated; the gate is 1 for samples without a real token in the other set."""
        gate_first = _mean_agreement(self.query1(first), self.key2(second), second_mask)
        gate_second = _mean_agreement(self.query2(second), self.key1(first), None)
        return self.value1(first) * gate_first, self.value2(second) * gate_second


class GateFusion(nn.Module):
    """Stacked gates on both sets, without residual connection or normalisation.

    Args:
        second_is_read: False freezes the parameters that only the second output needs; they are kept for released weights.
    """

    def __init__(self, width: int, *, layers: int, second_is_read: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GateLayer(width) for _ in range(layers))
        if not second_is_read:
            last = self.layers[-1]
            for part in (last.query2, last.key1, last.value2):
                part.requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor, second_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """([B, n, d], [B, m, d]); second_mask bool [B, m], True = real token; without it padding counts too."""
        for layer in self.layers:
            first, second = layer(first, second, second_mask)
        return first, second


def _mean_agreement(queries: Tensor, keys: Tensor, key_mask: Tensor | None) -> Tensor:
    """Mean sigmoid agreement [B, n, 1] of each query [B, n, d] with the real keys [B, m, d]; 1 without any."""
    agreement = torch.sigmoid(queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1]))
    if key_mask is None:
        return agreement.mean(-1, keepdim=True)
    weight = key_mask[:, None, :].to(agreement.dtype)
    count = weight.sum(-1, keepdim=True)
    return torch.where(count > 0, (agreement * weight).sum(-1, keepdim=True) / count.clamp(min=1), 1.0)


class CollapsePool(nn.Module):
    """Image pooler (`Swin_Pooler`): one weight per grid position, linear, tanh; for a fixed volume size."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.fc = nn.Linear(tokens, 1)
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, d] for tokens [B, n, d]."""
        check_token_count(tokens, self.fc.in_features)
        return torch.tanh(self.dense(self.fc(tokens.transpose(1, 2))[..., 0]))


class SentenceAttentionPool(nn.Module):
    """Report pooler: the mean sentence attends to itself and to the sentences."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        for name in ("k_proj", "q_proj", "v_proj", "c_proj"):
            self.add_module(name, nn.Linear(width, width))

    def forward(self, sentences: Tensor, mask: Tensor) -> Tensor:
        """[B, d] for sentences [B, S, d]; mask bool [B, S]."""
        mean = masked_mean(sentences, mask)[:, None]
        keys = torch.cat([mean, sentences], 1)
        query, key, value = (
            rearrange(part, "b n (h c) -> b h n c", h=self.heads)
            for part in (self.q_proj(mean), self.k_proj(keys), self.v_proj(keys))
        )
        visible = F.pad(mask, (1, 0), value=True)[:, None, None, :]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.c_proj(rearrange(read, "b h 1 c -> b (h c)"))


class MeanPool(nn.Module):
    """Pooler of gated sentences (`Swin_Att_Pooler`): mean, linear, tanh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, sentences: Tensor, mask: Tensor) -> Tensor:
        """[B, d] for sentences [B, S, d]; mask bool [B, S]."""
        return torch.tanh(self.dense(masked_mean(sentences, mask)))


class SentencePool(nn.Module):
    """Projection of gated sentences (`Sentence_Pooler`)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # BatchNorm1d on [1, S, C] of the published code normalises each sentence over its channels.
        norm = nn.LayerNorm(width // 2, elementwise_affine=False)
        self.dense = nn.Sequential(nn.Linear(width, width // 2), norm, nn.GELU(), nn.Linear(width // 2, SENTENCE_WIDTH))

    def forward(self, sentences: Tensor) -> Tensor:
        """[..., d] -> [..., SENTENCE_WIDTH], in (-1, 1)."""
        return torch.tanh(self.dense(sentences))


class SentenceGateLayer(nn.Module):
    """Each sentence's own value times its agreement with the image vector (`agg_img_cross_attention`)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key1 = nn.Linear(width, width)
        self.value1 = nn.Linear(width, width)
        self.query2 = nn.Linear(width, width)

    def forward(self, sentences: Tensor, image_vector: Tensor) -> Tensor:
        """[B, S, d] for sentences [B, S, d] and one vector [B, d] per image."""
        agreement = self.key1(sentences) @ self.query2(image_vector)[..., None] / math.sqrt(sentences.shape[-1])
        return torch.sigmoid(agreement) * self.value1(sentences)


class SentenceAggregation(nn.Module):
    """Aggregation in which the image only gates the sentence's own value, so that the "visual" side is text."""

    def __init__(self, width: int, *, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SentenceGateLayer(width) for _ in range(layers))
        self.pool = MeanPool(width)
        self.sentence_head = SentencePool(width)

    def forward(self, sentences: Tensor, sentence_mask: Tensor, image_vector: Tensor) -> Aggregate:
        """Of sentences [B, S, d], their mask bool [B, S] and one vector [B, d] per image."""
        for layer in self.layers:
            sentences = layer(sentences, image_vector)
            image_vector = self.pool(sentences, sentence_mask)
        return Aggregate(self.sentence_head(sentences), image_vector)


class FusedVectors(NamedTuple):
    """Output of `FusedContrast`."""

    multimodal: Tensor
    """[B, E]: embedding of report and image after fusion."""
    unimodal: Tensor
    """[B, E]: embedding of report and image before fusion."""
    fused_image: Tensor
    """[B, d]."""
    image: Tensor
    """[B, d], before fusion."""


class FusedContrast(nn.Module):
    """(report, image) after fusion against (report, image) before it: both sides hold both modalities of a patient."""

    def __init__(self, width: int, embedding_width: int, image_tokens: int) -> None:
        super().__init__()
        self.unimodal_image_pool = CollapsePool(width, image_tokens)
        self.multimodal_image_pool = CollapsePool(width, image_tokens)
        self.unimodal_report_pool = SentenceAttentionPool(width)
        self.multimodal_report_pool = SentenceAttentionPool(width)
        self.multimodal_head = ProjectionHead(2 * width, embedding_width)
        self.unimodal_head = ProjectionHead(2 * width, embedding_width)

    def forward(self, plain: tuple[Tensor, Tensor], fused: tuple[Tensor, Tensor], sentence_mask: Tensor) -> FusedVectors:
        """Of (image tokens [B, N, d], sentences [B, S, d]) before and after fusion; sentence_mask bool [B, S]."""
        image, fused_image = self.unimodal_image_pool(plain[0]), self.multimodal_image_pool(fused[0])
        report = self.unimodal_report_pool(plain[1], sentence_mask)
        fused_report = self.multimodal_report_pool(fused[1], sentence_mask)
        return FusedVectors(
            multimodal=self.multimodal_head(torch.cat([fused_report, fused_image], -1)),
            unimodal=self.unimodal_head(torch.cat([report, image], -1)),
            fused_image=fused_image,
            image=image,
        )


@torch.no_grad()
def plain_sentences(text: TextEncoder, report: tuple[Tensor, Tensor, Tensor], sentences: int) -> Tensor:
    """Text side of SSM [B, S, text width]: mean input embedding of [CLS] sentence [SEP], S = `sentences`.

    report: ids int64, attention mask bool, sentence index int64, [B, T] each, from [CLS] to [SEP].
    """
    ids, attention_mask, sentence_index = report
    member = sentence_membership(sentence_index, sentences)
    position = (member.long().cumsum(1) * member).sum(-1)
    length = member.sum(1)
    inside = sentence_means(text.embed_words(ids, position), sentence_index, sentences) * length[..., None]
    first = text.embed_words(ids[:, :1])
    last_id = ids.gather(1, attention_mask.sum(1, keepdim=True) - 1)
    last = text.embed_words(last_id.expand(-1, sentences), length + 1)
    return (inside + first + last) / (length[..., None] + 2) * (length > 0)[..., None]


class ReleasedTokens(SharedTokens):
    """Sentences are gathered without gradient, and the fused vectors are shared by CML, DCL and SSM."""

    @cached_property
    def sentences(self) -> Tensor:
        """[B, S, d], without gradient."""
        return self.sentence_means(self.report).detach()

    @cached_property
    def fused(self) -> FusedVectors:
        """Pooled image and report before and after fusion."""
        model, image, mask = self.model, self.image, self.batch.sentence_mask
        if model.is_miswired:
            image = model.project_tokens(image)
        fused = model.fusion_volume(image, self.sentences, mask)
        return model.fused_contrast((image, self.sentences), fused, mask)


class ReleasedSALHead(nn.Module):
    """Projects both sides to 8 channels by learned layers, with gradient into both."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        norm = nn.LayerNorm(128, elementwise_affine=False)
        self.prediction = nn.Sequential(nn.Linear(width, 128), norm, nn.GELU(), nn.Linear(128, 8))
        self.target = nn.Sequential(nn.Linear(text_width, text_width // 2), nn.ReLU(), nn.Linear(text_width // 2, 8))


class ReleasedReportBranch(ReportBranch):
    """Gates that count padding as tokens; SAL compares with input embeddings of the text encoder."""

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        Branch.__init__(self, model, settings, objectives)
        self.target_text = None
        self.mlm_head = MLMHead(settings.hidden_size, model.text.vocabulary_size)
        if "mlm" in self.objectives:
            self.objective_losses["mlm"] = MLMLoss()
        if "sal" in self.objectives:
            self.sal_head = ReleasedSALHead(settings.hidden_size, model.text.width)
            self.objective_losses["sal"] = ReleasedSALLoss()

    def features(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """Loss of every masked token, recovered and true sentences [B, S, 8]."""
        batch, features = tokens.batch, {}
        fused, _ = tokens.model.fusion_report(tokens.masked_report, tokens.image)
        transformed = self.mlm_head.transform(fused)
        if "mlm" in self.objectives:
            features["mlm_token_loss"] = self.mlm_head.token_loss(transformed, batch.mlm_labels, batch.mlm_positions)
            features["mlm_tokens"] = (batch.mlm_labels >= 0).sum(1)
        if "sal" in self.objectives:
            features["sal_prediction"] = self.sal_head.prediction(tokens.sentence_means(transformed))
            target = tokens.sentence_means(tokens.model.text.embed_words(batch.report_ids))
            features["sal_target"] = self.sal_head.target(target)
        return features


class ReleasedVolumeBranch(VolumeBranch):
    """Fusion layers shared with the other branches; wiring=released sends the volume through those of the report."""

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        super().__init__(model, settings, objectives)
        del self.fusion

    def fuse(self, tokens: SharedTokens) -> Tensor:
        """Masked image tokens [B, N, d] after fusion."""
        model = tokens.model
        if model.is_miswired:
            return model.fusion_report(tokens.report, tokens.masked_image)[1]
        return model.fusion_volume(tokens.masked_image, tokens.sentences, tokens.batch.sentence_mask)[0]


class ReleasedContrastBranch(Branch):
    """CML between fused and unfused vectors of one patient."""

    name = "contrast"

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        super().__init__(model, settings, objectives)
        self.objective_losses["cml"] = ReleasedCMLLoss()

    def features(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """Both embeddings [B, E]."""
        return {"cml_multimodal_embedding": tokens.fused.multimodal, "cml_unimodal_embedding": tokens.fused.unimodal}


class ReleasedDisentangledBranch(DisentangledBranch):
    """DCL and SSM on gated sentences; SSM compares means of input embeddings."""

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        Branch.__init__(self, model, settings, objectives)
        self.aggregation = SentenceAggregation(settings.hidden_size, layers=settings.fusion_layers)
        if "dcl" in self.objectives:
            self.image_head = ProjectionHead(settings.hidden_size, settings.embedding_size)
            self.aggregate_head = ProjectionHead(settings.hidden_size, settings.embedding_size)
            self.objective_losses["dcl"] = ReleasedDCLLoss()
        if "ssm" in self.objectives:
            thresholds = {"same_above": settings.ssm_same_above, "differ_below": settings.ssm_differ_below}
            self.objective_losses["ssm"] = ReleasedSSMLoss(**thresholds)

    def features(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """Embeddings of DCL, and both sides of every sentence for SSM."""
        batch, features = tokens.batch, {}
        aggregate = self.aggregation(tokens.sentences, batch.sentence_mask, tokens.fused.image)
        if "dcl" in self.objectives:
            features["dcl_image_embedding"] = self.image_head(tokens.fused.fused_image)
            features["dcl_aggregate_embedding"] = self.aggregate_head(aggregate.patient)
        if "ssm" in self.objectives:
            report = (batch.report_ids, batch.attention_mask, batch.sentence_index)
            features["ssm_visual"] = aggregate.sentence_features
            features["ssm_text"] = plain_sentences(tokens.model.text, report, batch.sentence_mask.shape[1])
        return features

    def sentence_vectors(self, text: TextEncoder, report: tuple[Tensor, Tensor, Tensor], sentences: int) -> Tensor:
        """Text side of SSM, see `plain_sentences`."""
        return plain_sentences(text, report, sentences)

    def fit_sentence_space(self, text: TextEncoder, ids: Tensor, sentence_index: Tensor) -> None:
        """Nothing: plain means have no statistics."""


class ReleasedMG3D(MG3D):
    """MG3D with the fusion layers and pools that the branches of the published code share. Arguments as for MG3D.

    Image tokens carry no position, masked voxels are zero (air), and with `wiring=released` image tokens are projected twice
    before the contrastive losses and masked volumes pass through the layers of the report.
    """

    branch_classes: ClassVar[Mapping[type[Branch], type[Branch]]] = {
        ReportBranch: ReleasedReportBranch,
        VolumeBranch: ReleasedVolumeBranch,
        ContrastBranch: ReleasedContrastBranch,
        DisentangledBranch: ReleasedDisentangledBranch,
    }
    has_joint_embedding = False

    def __init__(self, vision: VisionEncoder, text: TextEncoder, settings: ModelSettings, **arguments: Any) -> None:
        self.is_miswired = settings.wiring == "released"
        if self.is_miswired and vision.channels != settings.hidden_size:
            raise ValueError(
                f"wiring=released projects image tokens twice and needs hidden_size={vision.channels}, the encoder's width, "
                f"not {settings.hidden_size}"
            )
        super().__init__(vision, text, settings, **arguments)
        del self.position
        width, layers = settings.hidden_size, settings.fusion_layers
        mim, contrasts = "mim" in self.objectives, bool(self.objectives & {"cml", "dcl", "ssm"})
        if self.objectives & {"mlm", "sal"} or (mim and self.is_miswired):
            self.fusion_report = GateFusion(width, layers=layers, second_is_read=mim and self.is_miswired)
        if contrasts or (mim and not self.is_miswired):
            self.fusion_volume = GateFusion(width, layers=layers, second_is_read=contrasts)
        if contrasts:
            self.fused_contrast = FusedContrast(width, settings.embedding_size, math.prod(self.grid))

    def encode_volume(self, volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """As `MG3D.encode_volume`, with masked voxels set to zero and without positions."""
        if patch_mask is not None:
            volume = volume.masked_fill(upsample_mask(patch_mask, volume.shape[2:])[:, None], 0.0)
        return self.image_tokens(self.encode_features(volume))

    def tokens(self, batch: Batch) -> SharedTokens:
        """Token sets of a batch, computed lazily."""
        return ReleasedTokens(self, batch)
