"""Classification by prompt pairs ("There is X." and "There is no X.") with the whole pre-trained model, trained or zero-shot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.tokenizer import load_tokenizer, pad_reports
from mg3d.distributed import global_mean
from mg3d.evaluation.zero_shot import zero_shot_scores
from mg3d.finetune.cases import UNKNOWN
from mg3d.finetune.distributed import info
from mg3d.finetune.pretrained_model import can_compare, describe, load_pretrained_model, rebuild
from mg3d.finetune.settings import ENCODER_PRESETS, FinetuneSettings, Size
from mg3d.finetune.tasks.base import Row
from mg3d.finetune.tasks.classification import Classification
from mg3d.finetune.transforms import Sample
from mg3d.glossary import prompts
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.registry import VisionEncoder

TRAINABLE = {
    "vision": ("vision",),
    "text": ("text",),
    "projections": ("project_image", "position", "project_report", "type_embedding", "branches.contrast"),
}
"""Name in the setting `train` -> submodules of the model."""


class PromptNetwork(nn.Module):
    """The pre-trained model and the tokenized prompt pairs.

    Args:
        model: with plain volume and report embeddings.
        tokenizer: of its text encoder.
        pairs: (present, absent) prompt of each output.
    """

    def __init__(self, model: MG3D, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.encoder = model.vision  # registered first, so that its parameters are named `encoder.*`
        self.model = model
        rows = [(text, ((0, len(text)),)) for pair in pairs for text in pair]
        for name, part in zip(("ids", "mask", "index"), pad_reports(tokenizer, rows, model.text.max_length), strict=True):
            self.register_buffer(f"prompt_{name}", part, persistent=False)
        self.cached: Tensor | None = None

    def train(self, mode: bool = True) -> "PromptNetwork":
        """Sets the mode and clears cached prompt embeddings."""
        self.cached = None
        return super().train(mode)

    def embed_prompts(self) -> Tensor:
        """[outputs, 2, E] of length 1, present first; cached in eval mode."""
        if self.cached is not None:
            return self.cached
        embedded = self.model.embed_report(self.prompt_ids, self.prompt_mask, self.prompt_index, max_sentences=1)
        embedded = embedded.reshape(len(embedded) // 2, 2, -1)
        if not self.training:
            self.cached = embedded.detach()
        return embedded

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of volumes [B, E] and of prompts [outputs, 2, E], and the logit scale."""
        volumes = self.model.embed_volume(volume)
        return volumes, self.embed_prompts(), self.model.logit_scale


class PromptClassification(Classification):
    """Scores are the softmax over each prompt pair.

    Args:
        volume_size: voxels of a volume.
        zero_shot: nothing is trained.
        train: submodules that are trained, names of `TRAINABLE` joined by +, or all.
        loss: bce, or softmax_mse (published).
        wording: of the prompts, see `mg3d.glossary.PROMPTS`.
        text_encoder: folder or hub id of a BERT, for released weights without a tokenizer.
    """

    def __init__(
        self,
        settings: FinetuneSettings,
        *,
        volume_size: Size,
        zero_shot: bool = False,
        train: str = "projections",
        loss: str = "bce",
        wording: str = "there_is",
        text_encoder: str = "",
        **shared: Any,
    ) -> None:
        super().__init__(settings, **shared)
        self.volume_size, self.uses_sgd, self.loss_name = volume_size, not zero_shot, loss
        self.wording, self.text_encoder, self.submodules = wording, text_encoder, trainable_submodules(train)
        self.loaded: tuple[MG3D, PreTrainedTokenizerBase] | None = None
        self.description: dict[str, Any] = {}
        if settings.mode == "train" and settings.pretrained == "none" and (zero_shot or settings.encoder in ENCODER_PRESETS):
            raise ValueError(
                "this task needs pretrained=..., a model that was pre-trained to compare volumes with reports (preset mg3d)"
                + "; encoder=CHECKPOINT trains its architecture from random weights" * (not zero_shot)
            )
        if text_encoder and settings.mode == "train":
            load_tokenizer(text_encoder)  # fails before data are prepared

    def _load(self) -> tuple[MG3D, PreTrainedTokenizerBase]:
        if self.loaded is None:
            start = load_pretrained_model(self.settings, text_encoder=self.text_encoder, shape=self.volume_size)
            if not self.uses_sgd and not can_compare(start):
                raise ValueError(
                    f"pretrained={self.settings.pretrained} lacks {' and '.join(start.untrained)}, so zero-shot predictions "
                    "would be random; use weights that were pre-trained to compare volumes with reports (preset mg3d)"
                )
            random = f"; randomly initialized: {', '.join(start.untrained)}" if start.untrained else ""
            info(f"model: {start.origin}{random}")
            self.description, self.loaded = describe(start), (start.model, start.tokenizer)
        return self.loaded

    def state(self) -> dict[str, Any]:
        """Settings of the model, and its tokenizer."""
        self._load()
        return self.description

    def restore(self, state: Mapping[str, Any]) -> None:
        """The model without its weights."""
        self.description, self.loaded = dict(state), rebuild(state)

    def network(self, encoder: VisionEncoder | None) -> nn.Module:
        """A `PromptNetwork` around the whole model."""
        model, tokenizer = self._load()
        network = PromptNetwork(model, tokenizer, [prompts(name, wording=self.wording) for name in self.outputs])
        model.requires_grad_(False)
        for submodule in self.submodules:
            model.get_submodule(submodule).requires_grad_(True)
        if model.contrast.logit_scale.bias is not None:  # of the sigmoid loss; a softmax over pairs does not depend on it
            model.contrast.logit_scale.bias.requires_grad_(False)
        model.text.frozen = "text" not in self.submodules
        model.text.train("text" in self.submodules)
        return network

    def loss(self, network: PromptNetwork, batch: Sample) -> Tensor:
        """Mean over known labels; see `pair_loss`."""
        volumes, pairs, scale = network(batch["image"])
        return pair_loss(scale * torch.einsum("be,lpe->blp", volumes, pairs), batch["target"], form=self.loss_name)

    @torch.no_grad()
    def rows(self, network: PromptNetwork, batch: Sample, *, mask_folder: Path | None = None) -> list[Row]:
        """One row per volume."""

        def scores(volume: Tensor) -> Tensor:
            volumes, pairs, scale = network(volume)
            return torch.from_numpy(zero_shot_scores(volumes.float().cpu(), pairs.float().cpu(), float(scale)))

        return self.rows_of(self.averaged(scores, batch["image"]).numpy(), batch)


def pair_loss(similarity: Tensor, target: Tensor, *, form: str) -> Tensor:
    """Loss of scaled similarities [B, outputs, 2] to (present, absent) prompts; unknown labels are excluded.

    bce: binary cross entropy of the difference. softmax_mse (published): squared error between the softmax over the pair and
    (1, 0) or (0, 1).
    """
    known = target != UNKNOWN
    truth = target.clamp(min=0).to(similarity)
    if form == "bce":
        terms = F.binary_cross_entropy_with_logits(similarity[..., 0] - similarity[..., 1], truth, reduction="none")
    else:
        terms = ((similarity.softmax(-1) - torch.stack([truth, 1 - truth], -1)) ** 2).mean(-1)
    return global_mean((terms * known).sum(), known)


def trainable_submodules(names: str) -> list[str]:
    """Submodules of the model for a value of `train`; ValueError for an unknown name."""
    chosen = list(TRAINABLE) if names == "all" else [name for name in names.split("+") if name]
    if not chosen or not set(chosen) <= set(TRAINABLE):
        raise ValueError(f"train={names!r}: expected all, or some of {', '.join(TRAINABLE)} joined by +")
    return [submodule for name in chosen for submodule in TRAINABLE[name]]
