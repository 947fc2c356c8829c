"""Parameter groups and the learning-rate schedule."""

import re
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mg3d.settings.schema import OptimSettings

BASE_RATE = re.compile(r"(vision|text)\.|.*\bfusion")
"""Parameters that learn at `learning_rate`: encoders and fusion layers; all others are heads (docs/fidelity.md, D25)."""


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[dict[str, object]]:
    """At most four groups, {encoders, heads} x {decay, no decay}, of the parameters that require a gradient.

    No weight decay on biases, norms and everything else with fewer than two axes, relative position bias tables, embeddings and
    learned tokens.
    """
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = not BASE_RATE.match(name)
            decays = parameter.ndim >= 2 and not any(part in name for part in ("bias_table", "embeddings", "_token"))
            members.setdefault((head, decays), []).append(parameter)
    return [
        {
            "name": ("heads" if head else "encoders") + ("" if decays else "_no_decay"),
            "params": parameters,
            "lr": settings.learning_rate * (settings.head_lr_multiplier if head else 1.0),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (head, decays), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


def schedule_factor(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """Learning rate at optimizer step `step` (from 0) as a fraction of the peak: linear warm-up, then linear decay to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))


def can_fuse(device: torch.device, precision: str) -> bool:
    """Whether one kernel updates all parameters: on a GPU, except with float16.

    With float16, Lightning would not clip gradients: a fused optimizer unscales them itself.
    """
    return device.type == "cuda" and precision != "16-mixed"


def build_optimizer(
    groups: Iterable[dict[str, object]], settings: OptimSettings, *, fused: bool = False
) -> tuple[AdamW, LambdaLR]:
    """AdamW (`fused`: one kernel for all parameters) and its schedule, to be stepped after every optimizer step."""
    optimizer = AdamW(list(groups), lr=settings.learning_rate, betas=settings.betas, fused=fused or None)
    steps = {"warmup_steps": settings.warmup_steps, "max_steps": settings.max_steps}
    return optimizer, LambdaLR(optimizer, lambda step: schedule_factor(step, **steps))
