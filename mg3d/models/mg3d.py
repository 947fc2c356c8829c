"""MG3D: image encoder, report encoder, and the branches that compute the objectives of pre-training."""

from collections.abc import Collection, Mapping, Sequence
from pkgutil import resolve_name
from typing import ClassVar

import torch
from einops import rearrange
from timm.layers import trunc_normal_
from torch import Tensor, nn

from mg3d.distributed import gathered_together
from mg3d.losses.base import full_precision
from mg3d.models.branches.base import Branch
from mg3d.models.pooling import sentence_means, sentence_membership
from mg3d.models.position import GridPosition
from mg3d.models.standardise import VoxelStandardiser
from mg3d.models.text.encoder import TextEncoder
from mg3d.models.tokens import SharedTokens
from mg3d.models.vision.registry import VisionEncoder
from mg3d.settings.objectives import OBJECTIVES
from mg3d.settings.schema import ModelSettings
from mg3d.types import Batch, Features

REPORT, IMAGE = 0, 1
"""Rows of the type embedding."""
BATCH_FIELDS = ("sentence_mask", "sentence_polarity", "patch_mask", "patient_key", "report_key", "view_key")
"""Fields of the batch that losses read."""


class MG3D(nn.Module):
    """Encoders of volumes and reports, joined as the paper describes; `released.ReleasedMG3D` is the published code's wiring.

    Args:
        vision: image encoder.
        text: report encoder.
        settings: widths, layers and heads of what joins them.
        objectives: names of `settings.objectives.OBJECTIVES`; only the branches that compute them are built.
        volume_shape: voxels (z, y, x) of every volume.
        standardise_voxels: see `models.standardise`; the identity until `voxels.fit`.
    """

    branch_classes: ClassVar[Mapping[type[Branch], type[Branch]]] = {}
    """Branches to be built instead of those of `OBJECTIVES`."""

    def __init__(
        self,
        vision: VisionEncoder,
        text: TextEncoder,
        settings: ModelSettings,
        *,
        objectives: Collection[str],
        volume_shape: Sequence[int],
        standardise_voxels: bool = False,
    ) -> None:
        super().__init__()
        self.objectives = frozenset(objectives)
        self.grid = tuple(vision.grid(volume_shape))
        self.vision, self.text = vision, text
        self.voxels = VoxelStandardiser(volume_shape) if standardise_voxels else None
        self.project_image = nn.Linear(vision.channels, settings.hidden_size)
        self.position = GridPosition(settings.hidden_size)
        self.project_report = nn.Linear(text.width, settings.hidden_size)
        self.type_embedding = nn.Embedding(2, settings.hidden_size)
        trunc_normal_(self.type_embedding.weight, std=0.02)
        self.branches = nn.ModuleDict()
        groups: dict[type[Branch], list[str]] = {}
        for name in (name for name in OBJECTIVES if name in self.objectives):
            branch = resolve_name(OBJECTIVES[name].branch)
            groups.setdefault(self.branch_classes.get(branch, branch), []).append(name)
        for branch, names in groups.items():
            self.branches[branch.name] = branch(self, settings, names)

    # --- encoders

    def encode_volume(self, volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """Image tokens [B, N, d], z-major, of volumes [B, 1, D, H, W] in [0, 1]; patch_mask bool [B, a, b, c], True = masked."""
        features = self.encode_features(volume, patch_mask)
        return self.image_tokens(features) + self.position(features.shape[2:])

    def encode_features(self, volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """Last feature map [B, C, d, h, w] of the image encoder; arguments as in `encode_volume`."""
        return self.vision.encode(volume if self.voxels is None else self.voxels(volume), patch_mask)

    def image_tokens(self, features: Tensor) -> Tensor:
        """[B, N, d] without positions, of a feature map [B, C, d, h, w]."""
        return self.project_tokens(rearrange(features, "b c d h w -> b (d h w) c"))

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """[B, N, d] of the encoder's tokens [B, N, C]: projection and type embedding."""
        return self.project_image(tokens) + self.type_embedding.weight[IMAGE]

    def encode_report(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Report tokens [B, T, d] of ids int64 [B, T]; attention_mask bool [B, T], True = real token."""
        return self.report_tokens(self.text(ids, attention_mask))

    def report_tokens(self, text_features: Tensor) -> Tensor:
        """[..., d] of the text encoder's features [..., text width]."""
        return self.project_report(text_features) + self.type_embedding.weight[REPORT]

    # --- training

    def tokens(self, batch: Batch) -> SharedTokens:
        """Token sets of a batch, computed lazily."""
        return SharedTokens(self, batch)

    def forward(self, batch: Batch, branches: Collection[str] | None = None) -> Features:
        """Features of these branches (default: all), the inputs of `losses`."""
        tokens = self.tokens(batch)
        features: Features = {name: getattr(batch, name) for name in BATCH_FIELDS}
        for name, branch in self.branches.items():
            if branches is None or name in branches:
                features |= branch.features(tokens)
        return features

    def losses(self, features: Features) -> dict[str, Tensor]:
        """Objective -> loss over all ranks, in the order of `OBJECTIVES`."""
        losses: dict[str, Tensor] = {}
        features = {name: full_precision(value) for name, value in features.items()}
        names = {name for branch in self.branches.values() for name in branch.gathers if name in features}
        with gathered_together(features[name] for name in sorted(names)):
            for branch in self.branches.values():
                losses |= branch.losses(features)
        return {name: losses[name] for name in OBJECTIVES if name in losses}

    def update_ema(self) -> None:
        """Called after every optimizer step; updates the target encoders of all branches."""
        for branch in self.branches.values():
            branch.update_ema(self.text)

    # --- inference

    @property
    def has_joint_embedding(self) -> bool:
        """Whether volumes and reports can be compared: trained with CML (weight_cml) and wiring=paper."""
        return "contrast" in self.branches

    @property
    def contrast(self) -> Branch:
        """The `ContrastBranch` of the joint embedding; ValueError if the model has none."""
        if not self.has_joint_embedding:
            raise ValueError(
                "this model has no joint embedding of images and reports: it was trained with weight_cml=0 or not with "
                "wiring=paper. Zero-shot and retrieval need the preset mg3d."
            )
        return self.branches["contrast"]

    @property
    def logit_scale(self) -> Tensor:
        """Scalar, 1 / temperature of the joint embedding."""
        return self.contrast.logit_scale()

    def embed_volume(self, volume: Tensor) -> Tensor:
        """Joint embedding [B, E], L2-normalised, of volumes [B, 1, D, H, W] in [0, 1]."""
        return self.contrast.embed_image(self.encode_volume(volume))

    def embed_report(
        self, ids: Tensor, attention_mask: Tensor, sentence_index: Tensor, *, max_sentences: int | None = None
    ) -> Tensor:
        """Joint embedding [B, E], L2-normalised, of reports or prompts int64 [B, T].

        sentence_index int64 [B, T]: 0-based sentence of each token, -1 for special tokens and padding. max_sentences: upper bound
        of sentences per report; None reads it from `sentence_index`, for which the host waits for a GPU.
        """
        contrast, sentences = self.contrast, max_sentences or max(int(sentence_index.max()) + 1, 1)
        means = sentence_means(self.encode_report(ids, attention_mask), sentence_index, sentences)
        return contrast.embed_report(means, sentence_membership(sentence_index, sentences).any(1))

    @torch.no_grad()
    def generate_reports(self, volume: Tensor, **options: int | float | bool | None) -> Tensor:
        """Report ids int64 [B, T] of volumes [B, 1, D, H, W] in [0, 1]; options of `ReportDecoder.generate`."""
        if "captioning" not in self.branches:
            raise ValueError("this model has no report decoder; train with the preset captioning (weight_captioning)")
        return self.branches["captioning"].decoder.generate(self.encode_volume(volume), **options)

    def sentence_vectors(self, ids: Tensor, attention_mask: Tensor, sentence_index: Tensor, sentences: int) -> Tensor:
        """Text side of SSM [B, S, text width], without gradient, S = `sentences`, for ids int64 [B, T]; needs weight_ssm > 0."""
        return self.branches["disentangled"].sentence_vectors(self.text, (ids, attention_mask, sentence_index), sentences)

    def fit_sentence_space(self, ids: Tensor, sentence_index: Tensor) -> None:
        """Fits word weights and mean of SSM's text side to training reports, int64 [R, T] each."""
        self.branches["disentangled"].fit_sentence_space(self.text, ids, sentence_index)
