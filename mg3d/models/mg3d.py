"""MG3D: image encoder, report encoder and what lies between them and the losses."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange
from timm.layers import trunc_normal_
from torch import Tensor, nn

from mg3d.models.aggregation import Aggregate, ImageAggregation, SentenceAggregation
from mg3d.models.contrast import FusedContrast, FusedVectors, ImageReportContrast, embed_further_reports
from mg3d.models.fusion import build_fusion
from mg3d.models.heads import (
    SIGMOID_BIAS,
    SIGMOID_SCALE,
    ContextualSalHead,
    ConvVolumeDecoder,
    LinearVolumeDecoder,
    LogitScale,
    MLMHead,
    ProjectionHead,
    WordEmbeddingSalHead,
)
from mg3d.models.pooling import AttentionPool, PlacePool, sentence_means, sentence_membership
from mg3d.models.position import GridPosition
from mg3d.models.sentence_space import CentredSentenceSpace, plain_sentences, random_pair_cosines
from mg3d.models.standardise import VoxelStandardiser
from mg3d.models.text.decoder import ReportDecoder
from mg3d.models.text.encoder import TextEncoder
from mg3d.models.vision.masking import upsample_mask
from mg3d.models.vision.registry import VisionEncoder
from mg3d.types import Batch, Features

SENTENCE_WIDTH = 128
"""Width in which the visual sides of sentences are compared (paper: 128)."""
EMA_DECAY = 0.99
"""How much of the averaged text encoder stays at each optimiser step."""
REPORT, IMAGE = 0, 1
"""Rows of the type embedding."""
_REPORTS_FOR_COSINES = 2_000


class MG3D(nn.Module):
    """Volume and report in, what the losses ask for out. docs/fidelity.md explains the choices.

    Submodules named `vision`, `text` and `fusion_*` learn at the base rate; all others are heads. Only what `objectives` need is
    built, so that no parameter is without gradient.

    Args:
        objectives: the losses this model will serve, among `mlm sal mim cml dcl ssm captioning`.
        volume_shape: voxels (z, y, x) of every volume.
        width: d, in which image and report meet.
        embedding_width: E, of what is contrasted.
        fusion_heads: heads of every attention of this module.
        pool_queries: queries of every attention pool.
        image_pool: how image tokens become the vector that CML and DCL contrast, see `pooling`.
        standardise_voxels: see `models.standardise`; nothing changes until `voxels.fit`.
        image_position: tell image tokens where they lie.
        caption_layers: of the decoder that writes reports, of the same width and heads as the fusion.
    """

    def __init__(
        self,
        *,
        vision: VisionEncoder,
        text: TextEncoder,
        objectives: Sequence[str],
        volume_shape: Sequence[int],
        width: int,
        embedding_width: int,
        fusion: Literal["cross_attention", "gate"] = "cross_attention",
        fusion_layers: int = 2,
        fusion_heads: int = 12,
        pool_queries: int = 1,
        image_pool: Literal["attention", "positional"] = "attention",
        standardise_voxels: bool = False,
        image_position: bool = True,
        mim_decoder: Literal["conv", "linear"] = "conv",
        mim_fill: Literal["token", "zero"] = "token",
        mim_text: Literal["sentences", "tokens_text_layers", "sentences_image_layers"] = "sentences",
        cml_pair: Literal["image_report", "multimodal_unimodal"] = "image_report",
        contrast: Literal["infonce", "sigmoid"] = "infonce",
        project_twice: bool = False,
        aggregation_values: Literal["image", "sentence"] = "image",
        sal_target: Literal["contextual", "word_embedding"] = "contextual",
        ssm_text: Literal["centred_idf", "plain"] = "centred_idf",
        caption_layers: int = 2,
    ) -> None:
        super().__init__()
        if project_twice and vision.channels != width:
            raise ValueError(f"project_twice needs hidden_size={vision.channels}, the encoder's width, not {width}")
        self.objectives = frozenset(objectives)
        self.grid = tuple(vision.grid(volume_shape))
        self.is_gated, self.project_twice, self.mim_fill = fusion == "gate", project_twice, mim_fill
        self.mim_reads_tokens = "mim" in self.objectives and mim_text == "tokens_text_layers"
        self.has_fused_contrast = cml_pair == "multimodal_unimodal"
        self.vision, self.text = vision, text
        self.voxels = VoxelStandardiser(volume_shape) if standardise_voxels else None
        self.project_image = nn.Linear(vision.channels, width)
        self.position = GridPosition(width) if image_position else None
        self.project_report = nn.Linear(text.width, width)
        self.type_embedding = nn.Embedding(2, width)
        trunc_normal_(self.type_embedding.weight, std=0.02)
        wants = self.objectives.intersection
        layers, pooling = {"layers": fusion_layers, "heads": fusion_heads}, {"heads": fusion_heads, "queries": pool_queries}
        self.image_pool_kind, self.is_sigmoid = image_pool, contrast == "sigmoid"
        self.fusion_report = self.fusion_volume = self.mlm_head = self.sal_head = self.target_text = None
        self.mim_head = self.contrast = self.cml_scale = self.dcl_scale = self.aggregation = self.sentence_space = None
        self.dcl_pool = self.dcl_image_head = self.dcl_aggregate_head = self.cml_bias = self.dcl_bias = None
        if wants({"mlm", "sal"}) or self.mim_reads_tokens:
            self.fusion_report = build_fusion(fusion, width, second_is_read=self.mim_reads_tokens, **layers)
        if (wants({"mim"}) and not self.mim_reads_tokens) or self._uses_fused_contrast():
            self.fusion_volume = build_fusion(fusion, width, second_is_read=self._uses_fused_contrast(), **layers)
        self._build_report_heads(width, sal_target)
        if wants({"mim"}):
            self.mim_head = (ConvVolumeDecoder if mim_decoder == "conv" else LinearVolumeDecoder)(width, vision.stride)
        self._build_contrast(width, embedding_width, pooling)
        self._build_aggregation(width, embedding_width, fusion_layers, pooling, from_image=aggregation_values == "image")
        if wants({"ssm"}) and ssm_text == "centred_idf":
            self.sentence_space = CentredSentenceSpace(text)
        self.caption = self._report_decoder(width, caption_layers, fusion_heads) if "captioning" in self.objectives else None

    def _uses_fused_contrast(self) -> bool:
        return self.has_fused_contrast and bool(self.objectives & {"cml", "dcl", "ssm"})

    def _report_decoder(self, width: int, layers: int, heads: int) -> ReportDecoder:
        known = {"vocabulary_size": self.text.vocabulary_size, "longest": self.text.longest}
        return ReportDecoder(token_width=width, width=width, layers=layers, heads=heads, **known)

    def _build_report_heads(self, width: int, sal_target: str) -> None:
        kind = ContextualSalHead if sal_target == "contextual" else WordEmbeddingSalHead
        if "mlm" in self.objectives or ("sal" in self.objectives and kind.reads_transformed_tokens):
            self.mlm_head = MLMHead(width, self.text.vocabulary_size)
        if "sal" in self.objectives:
            self.sal_head = kind(width, self.text.width)
            if sal_target == "contextual" and not self.text.frozen:
                self.target_text = copy.deepcopy(self.text).freeze()

    def _build_contrast(self, width: int, embedding_width: int, pooling: Mapping[str, int]) -> None:
        if self._uses_fused_contrast():
            self.contrast = FusedContrast(width, embedding_width, math.prod(self.grid))
        elif "cml" in self.objectives:
            self.contrast = ImageReportContrast(width, embedding_width, image_pool=self._image_pool(width, pooling), **pooling)
        if "cml" in self.objectives:
            self.cml_scale, self.cml_bias = self._calibration()

    def _calibration(self) -> tuple[LogitScale, nn.Parameter | None]:
        """Scale and bias of a contrast's logits; InfoNCE has no bias."""
        if self.is_sigmoid:
            return LogitScale(learned=True, start=SIGMOID_SCALE), nn.Parameter(torch.tensor(SIGMOID_BIAS))
        return LogitScale(learned=not self.has_fused_contrast), None

    def _image_pool(self, width: int, pooling: Mapping[str, int]) -> nn.Module:
        if self.image_pool_kind == "positional":
            return PlacePool(width, math.prod(self.grid))
        return AttentionPool(width, **pooling)

    def _build_aggregation(
        self, width: int, embedding_width: int, layers: int, pooling: Mapping[str, int], *, from_image: bool
    ) -> None:
        if not self.objectives & {"dcl", "ssm"}:
            return
        if from_image:
            self.aggregation = ImageAggregation(width, SENTENCE_WIDTH, **pooling)
        else:
            self.aggregation = SentenceAggregation(width, SENTENCE_WIDTH, layers=layers)
        if not self.has_fused_contrast and ("dcl" in self.objectives or not from_image):
            self.dcl_pool = self._image_pool(width, pooling)
        if "dcl" in self.objectives:
            self.dcl_image_head = ProjectionHead(width, embedding_width)
            self.dcl_aggregate_head = ProjectionHead(width, embedding_width)
            self.dcl_scale, self.dcl_bias = self._calibration()

    # --- encoders

    def encode_volume(self, volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """Image tokens [B, N, d], z-major, of volumes [B, 1, D, H, W] in [0, 1]; patch_mask bool [B, a, b, c], True = hidden."""
        if patch_mask is not None and self.mim_fill == "zero":
            volume = volume.masked_fill(upsample_mask(patch_mask, volume.shape[2:])[:, None], 0.0)
            patch_mask = None
        features = self.vision.encode(volume if self.voxels is None else self.voxels(volume), patch_mask)
        tokens = self._project_image(rearrange(features, "b c d h w -> b (d h w) c"))
        return tokens if self.position is None else tokens + self.position(features.shape[2:])

    def _project_image(self, tokens: Tensor) -> Tensor:
        return self.project_image(tokens) + self.type_embedding.weight[IMAGE]

    def encode_report(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Report tokens [B, T, d] of ids int64 [B, T]; attention_mask bool [B, T], True = real token."""
        return self._project_report(self.text(ids, attention_mask))

    def _project_report(self, text: Tensor) -> Tensor:
        return self.project_report(text) + self.type_embedding.weight[REPORT]

    def embed_volume(self, volume: Tensor) -> Tensor:
        """[B, E] of length 1, of volumes [B, 1, D, H, W] in [0, 1]; comparable with `embed_report`."""
        return self.require_plain_contrast().embed_image(self.encode_volume(volume))

    def embed_report(self, ids: Tensor, attention_mask: Tensor, sentence_index: Tensor) -> Tensor:
        """[B, E] of length 1, of reports or prompts int64 [B, T]; sentence_index int64 [B, T], -1 = of no sentence."""
        contrast, sentences = self.require_plain_contrast(), max(int(sentence_index.max()) + 1, 1)
        tokens = self.encode_report(ids, attention_mask)
        real = sentence_membership(sentence_index, sentences).any(1)
        return contrast.embed_report(sentence_means(tokens, sentence_index, sentences), real)

    def write_reports(self, volume: Tensor, **how: int | float | bool | None) -> Tensor:
        """Report ids int64 [B, T] of volumes [B, 1, D, H, W] in [0, 1]; `how` as `ReportDecoder.generate` takes it."""
        if self.caption is None:
            raise ValueError("this model has no report decoder; train with the preset captioning (weight_captioning)")
        with torch.no_grad():
            return self.caption.generate(self.encode_volume(volume), **how)

    def require_plain_contrast(self) -> ImageReportContrast:
        """What gives embeddings of images and reports that can be compared; ValueError where this model has none."""
        if not isinstance(self.contrast, ImageReportContrast):
            raise ValueError(
                "this model has no plain image and report embedding: it contrasts fused vectors (cml_pair=multimodal_unimodal) "
                "or has no weight_cml; zero-shot and retrieval need the objective preset mg3d"
            )
        return self.contrast

    # --- one training batch

    def forward(self, batch: Batch, objectives: frozenset[str] | None = None) -> Features:
        """What the losses of `objectives` (default: all this model was built for) read; the other fields are None."""
        wanted = self.objectives if objectives is None else objectives
        image = report = text = None
        if wanted & {"mlm", "sal", "cml", "dcl", "ssm", "captioning"}:
            image = self.encode_volume(batch.volume)
        if self.reads_unmasked_text(wanted):
            text = self._unmasked_text(batch)
        if wanted & {"mim", "cml", "dcl", "ssm"}:
            report = self._project_report(text)
        fields: dict[str, Tensor] = {
            "sentence_mask": batch.sentence_mask,
            "sentence_polarity": batch.sentence_polarity,
            "patient_key": batch.patient_key,
            "report_key": batch.report_key,
            "view_key": batch.view_key,
        }
        if wanted & {"mlm", "sal"}:
            fields |= self._reconstruct_report(batch, image, text, wanted)
        if "mim" in wanted:
            fields |= self._reconstruct_volume(batch, report)
        if wanted & {"cml", "dcl", "ssm"}:
            fields |= self._contrast(batch, image, report, wanted)
        if "captioning" in wanted:
            fields |= self._caption(batch, image)
        return Features(**fields)

    def _reconstruct_report(
        self, batch: Batch, image: Tensor, text: Tensor | None, wanted: frozenset[str]
    ) -> Mapping[str, Tensor]:
        masked = self.encode_report(batch.mlm_ids, batch.attention_mask)
        # The released gates count padding as tokens; attention must not.
        report_mask = None if self.is_gated else batch.attention_mask
        fused, _ = self.fusion_report(masked, image, first_mask=report_mask)
        fields = {}
        transformed = self.mlm_head.transform(fused) if self.mlm_head is not None else None
        if "mlm" in wanted:
            fields["mlm_token_loss"] = self.mlm_head.token_loss(transformed, batch.mlm_labels)
        if "sal" in wanted:
            count = batch.sentence_mask.shape[1]
            tokens = transformed if self.sal_head.reads_transformed_tokens else fused
            true = sentence_means(self._true_text(batch, text), batch.sentence_index, count)
            recovered = sentence_means(tokens, batch.sentence_index, count)
            fields["sal_prediction"], fields["sal_target"] = self.sal_head(recovered, true)
        return fields

    def _unmasked_text(self, batch: Batch) -> Tensor:
        if len(batch.text_features):
            return batch.text_features.to(self.project_report.weight.dtype)
        return self.text(batch.report_ids, batch.attention_mask)

    def reads_unmasked_text(self, objectives: frozenset[str] | None = None) -> bool:
        """Whether `objectives` (default: all) want the text encoder's features of the unmasked report; SAL does if frozen."""
        wanted = self.objectives if objectives is None else objectives
        sal_does = isinstance(self.sal_head, ContextualSalHead) and self.target_text is None
        return bool(wanted & {"mim", "cml", "dcl", "ssm"}) or (sal_does and "sal" in wanted)

    @torch.no_grad()
    def _true_text(self, batch: Batch, text: Tensor | None) -> Tensor:
        """What SAL asks for, of every token; text [B, T, text width], the text encoder's on the unmasked report."""
        if isinstance(self.sal_head, WordEmbeddingSalHead):
            return self.text.embed_words(batch.report_ids)
        return text if self.target_text is None else self.target_text(batch.report_ids, batch.attention_mask)

    def _reconstruct_volume(self, batch: Batch, report: Tensor) -> Mapping[str, Tensor]:
        image = self.encode_volume(batch.volume, batch.patch_mask)
        if self.mim_reads_tokens:
            report_mask = None if self.is_gated else batch.attention_mask
            _, image = self.fusion_report(report, image, first_mask=report_mask)
        else:
            sentences = self._sentences(report, batch)
            image, _ = self.fusion_volume(image, sentences, second_mask=batch.sentence_mask)
        depth, height, width = self.grid
        features = rearrange(image, "b (d h w) c -> b c d h w", d=depth, h=height, w=width)
        return {"mim_prediction": self.mim_head(features), "mim_target": batch.volume, "patch_mask": batch.patch_mask}

    def _sentences(self, report: Tensor, batch: Batch) -> Tensor:
        sentences = sentence_means(report, batch.sentence_index, batch.sentence_mask.shape[1])
        return sentences.detach() if self.is_gated else sentences  # the released gathering has no gradient

    def _contrast(self, batch: Batch, image: Tensor, report: Tensor, wanted: frozenset[str]) -> Mapping[str, Tensor]:
        fields, fused = {}, None
        sentences = self._sentences(report, batch)
        if self.has_fused_contrast:
            fused = self._fused_contrast(batch, image, sentences)
        if "cml" in wanted and fused is not None:
            fields["cml_first_embedding"], fields["cml_second_embedding"] = fused.first_embedding, fused.second_embedding
        elif "cml" in wanted:
            fields["cml_first_embedding"] = self.contrast.embed_image(image)
            fields["cml_second_embedding"] = self.contrast.embed_report(sentences, batch.sentence_mask)
            fields["cml_view_embedding"] = self._embed_views(batch)
            fields |= embed_further_reports(batch, self._project_report, self.contrast)
        if "cml" in wanted:
            fields["cml_logit_scale"] = self.cml_scale(fields["cml_first_embedding"])
            fields["cml_logit_bias"] = self.cml_bias
        if wanted & {"dcl", "ssm"}:
            aggregate, image_vector = self._aggregate(batch, image, sentences, fused)
            fields |= self._dcl(aggregate, image_vector) if "dcl" in wanted else {}
            fields |= self._ssm(batch, aggregate) if "ssm" in wanted else {}
        return fields

    def _embed_views(self, batch: Batch) -> Tensor | None:
        patients, views = batch.view_ids.shape[:2]
        if views == 0:
            return None
        parts = (batch.view_ids, batch.view_attention_mask, batch.view_sentence_index)
        embedded = self.embed_report(*(part.flatten(0, 1) for part in parts))
        return rearrange(embedded, "(b k) e -> b k e", b=patients)

    def _fused_contrast(self, batch: Batch, image: Tensor, sentences: Tensor) -> FusedVectors:
        if self.project_twice:
            image = self._project_image(image)
        fused = self.fusion_volume(image, sentences, second_mask=batch.sentence_mask)
        return self.contrast((image, sentences), fused, batch.sentence_mask)

    def _aggregate(
        self, batch: Batch, image: Tensor, sentences: Tensor, fused: FusedVectors | None
    ) -> tuple[Aggregate, Tensor | None]:
        """The aggregation, and the image vector that DCL contrasts with it."""
        pooled = self.dcl_pool(image) if self.dcl_pool is not None else None
        asking = fused.image if fused is not None else pooled
        aggregate = self.aggregation(sentences, batch.sentence_mask, image=image, image_vector=asking)
        return aggregate, fused.fused_image if fused is not None else pooled

    def _dcl(self, aggregate: Aggregate, image_vector: Tensor) -> Mapping[str, Tensor]:
        embedding = self.dcl_image_head(image_vector)
        return {
            "dcl_image_embedding": embedding,
            "dcl_aggregate_embedding": self.dcl_aggregate_head(aggregate.patient),
            "dcl_logit_scale": self.dcl_scale(embedding),
            "dcl_logit_bias": self.dcl_bias,
        }

    def _caption(self, batch: Batch, image: Tensor) -> Mapping[str, Tensor]:
        ids, real = batch.report_ids, batch.attention_mask
        logits = self.caption(image, ids[:, :-1], real[:, :-1])
        return {"captioning_logits": logits, "captioning_targets": ids[:, 1:].masked_fill(~real[:, 1:], -100)}

    def _ssm(self, batch: Batch, aggregate: Aggregate) -> Mapping[str, Tensor]:
        text = self.sentence_vectors(batch.report_ids, batch.attention_mask, batch.sentence_index, batch.sentence_mask.shape[1])
        return {"ssm_visual": aggregate.sentence_features, "ssm_text": text}

    # --- what lies beside the gradient

    def sentence_vectors(self, ids: Tensor, attention_mask: Tensor, sentence_index: Tensor, sentences: int) -> Tensor:
        """The text side of SSM, without gradient: [B, S, text width], S = `sentences`, for ids [B, T]."""
        if self.sentence_space is not None:
            return self.sentence_space(ids, sentence_index, sentences)
        return plain_sentences(self.text, ids, attention_mask, sentence_index, sentences)

    def fit_sentence_space(self, ids: Tensor, sentence_index: Tensor) -> None:
        """Takes SSM's word weights and mean from training reports, int64 [R, T] each; nothing where SSM needs none."""
        if self.sentence_space is not None:
            self.sentence_space.fit(self.text, ids, sentence_index)

    @torch.no_grad()
    def random_sentence_cosines(
        self, ids: Tensor, attention_mask: Tensor, sentence_index: Tensor, *, pairs: int = 20_000, seed: int
    ) -> Tensor:
        """SSM's text cosine of random pairs of sentences of different reports: [<= pairs]."""
        some = slice(0, _REPORTS_FOR_COSINES)
        ids, attention_mask, sentence_index = ids[some], attention_mask[some], sentence_index[some]
        sentences = max(int(sentence_index.max()) + 1, 1)
        vectors = self.sentence_vectors(ids, attention_mask, sentence_index, sentences)
        mask = sentence_membership(sentence_index, sentences).any(1)
        return random_pair_cosines(vectors, mask, pairs=pairs, generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def update_ema(self) -> None:
        """Moves the averaged text encoder, whose features SAL asks for, towards the trained one."""
        if self.target_text is None:
            return
        for averaged, trained in zip(self.target_text.parameters(), self.text.parameters(), strict=True):
            averaged.lerp_(trained, 1 - EMA_DECAY)
