"""Findings by what is said of them: a volume beside "there is ..." and "there is no ..."; with and without training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.tokenizer import load_tokenizer, pad_reports
from mg3d.evaluation.zero_shot import zero_shot_scores
from mg3d.finetune.cases import UNKNOWN, Case
from mg3d.finetune.kinds.base import Row
from mg3d.finetune.kinds.labels import Labels
from mg3d.finetune.pipeline import Sample
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Task
from mg3d.finetune.whole import can_compare, describe, rebuild, start_whole
from mg3d.glossary import PROMPTS, prompts
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.registry import VisionEncoder

GROUPS = {
    "vision": ("vision",),
    "text": ("text",),
    "projections": ("project_image", "position", "project_report", "type_embedding", "branches.contrast"),
}
"""Words of the option `train` -> parts of the model."""
LOSSES = ("bce", "softmax_mse")


class PromptNetwork(nn.Module):
    """The pre-trained model, and the prompt pairs of the findings as tokens.

    Args:
        model: with plain volume and report embeddings.
        tokenizer: of its text encoder.
        pairs: (present, absent) of each finding.
    """

    def __init__(self, model: MG3D, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.encoder = model.vision  # first, so that the names of its parameters begin with `encoder.`
        self.model = model
        rows = [(text, ((0, len(text)),)) for pair in pairs for text in pair]
        for name, part in zip(("ids", "mask", "index"), pad_reports(tokenizer, rows, model.text.max_length), strict=True):
            self.register_buffer(f"prompt_{name}", part, persistent=False)
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> "PromptNetwork":
        """Sets the mode, and forgets prompts that were embedded with other weights."""
        self.kept = None
        return super().train(mode)

    def embed_prompts(self) -> Tensor:
        """[L, 2, E] of length 1, present first; in eval mode computed once."""
        if self.kept is not None:
            return self.kept
        found = self.model.embed_report(self.prompt_ids, self.prompt_mask, self.prompt_index)
        found = found.reshape(len(found) // 2, 2, -1)
        if not self.training:
            self.kept = found.detach()
        return found

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of volumes [B, E] and prompts [L, 2, E], and the scale of their cosine; each volume is encoded once."""
        volumes = self.model.embed_volume(volume)
        return volumes, self.embed_prompts(), self.model.logit_scale


class Prompts(Labels):
    """Prompt pairs ("vocabulary") with the whole pre-trained model.

    The score of a finding is the softmax over its pair, from `mg3d.evaluation`. Options of the folder: `train` (which parts
    learn), `loss`, `wording`, `text_encoder`. With `zero_shot` nothing is trained.
    """

    def __init__(self, task: Task, settings: FinetuneSettings) -> None:
        super().__init__(task, settings)
        self.options = task.options
        self.reports: list[str] = []
        self.made: tuple[MG3D, PreTrainedTokenizerBase] | None = None
        self.described: dict[str, Any] = {}
        self.by_steps = self.options["task"] == "prompts"
        trained_parts(self.options["train"])
        if self.options["loss"] not in LOSSES:
            raise ValueError(f"loss={self.options['loss']!r}: expected one of {', '.join(LOSSES)}")
        if self.options["wording"] not in PROMPTS:
            raise ValueError(f"wording={self.options['wording']!r}: expected one of {', '.join(PROMPTS)}")
        untrained = settings.mode == "train" and settings.pretrained == "none"
        if untrained and (not self.by_steps or (settings.encoder == "auto" and not self.options["synthetic"])):
            raise ValueError(
                f"task={self.options['task']} needs pretrained=..., a file or folder of a model that was pre-trained to compare "
                "volumes with reports (objective preset mg3d)" + self.by_steps * "; encoder=... alone learns from random weights"
            )
        if self.options["text_encoder"] not in ("", "tiny"):
            load_tokenizer(self.options["text_encoder"])  # a misspelt one is refused before volumes are prepared

    def fit(self, cases: Sequence[Case]) -> None:
        """Keeps the reports, from which a tiny text encoder takes its words."""
        self.reports = [case.report for case in cases if case.report]

    def _whole(self) -> tuple[MG3D, PreTrainedTokenizerBase]:
        if self.made is None:
            whole = start_whole(
                self.settings, text_encoder=self.options["text_encoder"], shape=self.task.preprocess.size, reports=self.reports,
                synthetic=self.options["synthetic"],
            )  # fmt: skip
            if not self.by_steps and not can_compare(whole):
                raise ValueError(
                    f"pretrained={self.settings.pretrained}: {' and '.join(whole.untrained)} would be random, so nothing can "
                    f"be told without training; task={self.options['task']} needs weights that were pre-trained to compare "
                    "volumes with reports (objective preset mg3d)"
                )
            random = f"; these parts of it start random: {', '.join(whole.untrained)}" if whole.untrained else ""
            self.notes.append(f"text and volumes meet in {whole.told}{random}")
            self.described, self.made = describe(whole), (whole.model, whole.tokenizer)
        return self.made

    def state(self) -> dict[str, Any]:
        """The model's settings, and its tokenizer."""
        self._whole()
        return self.described

    def restore(self, state: Mapping[str, Any]) -> None:
        """The model without its weights."""
        self.described, self.made = dict(state), rebuild(state)

    def network(self, encoder: VisionEncoder) -> nn.Module:
        """A `PromptNetwork`; the encoder is the whole model's own."""
        model, tokenizer = self._whole()
        network = PromptNetwork(model, tokenizer, [prompts(name, wording=self.options["wording"]) for name in self.task.outputs])
        select_parts(model, trained_parts(self.options["train"]))
        return network

    def loss(self, network: PromptNetwork, batch: Sample) -> Tensor:
        """The mean over known labels; see `pair_loss`."""
        volumes, pairs, scale = network(batch["image"])
        return pair_loss(scale * torch.einsum("be,lpe->blp", volumes, pairs), batch["target"], form=self.options["loss"])

    @torch.no_grad()
    def rows(self, network: PromptNetwork, batch: Sample, *, masks: Path | None = None) -> list[Row]:
        """One row per volume, as any classification."""

        def scores(volume: Tensor) -> Tensor:
            volumes, pairs, scale = network(volume)
            return torch.from_numpy(zero_shot_scores(volumes.float().cpu(), pairs.float().cpu(), float(scale)))

        return self.rows_of(self.mirrored(scores, batch["image"]).numpy(), batch)


def pair_loss(similarity: Tensor, target: Tensor, *, form: str) -> Tensor:
    """Of scaled similarities [B, L, 2] to (present, absent) and targets [B, L]; unknown labels have no part.

    bce: binary cross entropy of the difference. softmax_mse: as published, the mean squared error between the softmax over the
    pair and (1, 0) or (0, 1).
    """
    known = target != UNKNOWN
    truth = target.clamp(min=0).to(similarity)
    if form == "bce":
        terms = F.binary_cross_entropy_with_logits(similarity[..., 0] - similarity[..., 1], truth, reduction="none")
    else:
        terms = ((similarity.softmax(-1) - torch.stack([truth, 1 - truth], -1)) ** 2).mean(-1)
    return (terms * known).sum() / known.sum().clamp(min=1)


def trained_parts(words: str) -> list[str]:
    """Names of the model's parts that `train=...` asks for.

    Raises:
        ValueError: a word that is none of `GROUPS`.
    """
    asked = list(GROUPS) if words == "all" else [word for word in words.replace(",", "+").split("+") if word]
    wrong = [word for word in asked if word not in GROUPS]
    if wrong or not asked:
        raise ValueError(f"train={words!r}: expected all, or some of {', '.join(GROUPS)} joined by +")
    return [part for word in asked for part in GROUPS[word]]


def select_parts(model: MG3D, parts: Sequence[str]) -> None:
    """Lets these parts learn and no other."""
    model.requires_grad_(False)
    for part in parts:
        model.get_submodule(part).requires_grad_(True)
    model.text.frozen = "text" not in parts
    model.text.train("text" in parts)
