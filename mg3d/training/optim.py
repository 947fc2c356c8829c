"""Parameter groups and the learning-rate schedule."""

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mg3d.settings.schema import OptimSettings

BASE_RATE_MODULES = ("vision", "text", "fusion")
"""Modules of MG3D that learn at `learning_rate`; all others are heads and projections. fidelity: D25 (the original picked
heads by substrings of their names and missed the contrast heads)."""


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[dict[str, object]]:
    """At most four groups: {encoders and fusion, heads} x {decayed, not decayed}; parameters without gradient are left out.

    Biases, norm scales, position-bias tables and everything else with fewer than two axes, and learned tokens and tables of
    positions, do not decay.
    """
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = not name.startswith(BASE_RATE_MODULES)
            decays = parameter.ndim >= 2 and not any(word in name for word in ("bias_table", "embeddings", "_token"))
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
    """Share of the peak rate at optimiser step `step` (from 0): linear up over the warm-up, then linear to 0 at `max_steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))


def build_optimizer(groups: Iterable[dict[str, object]], settings: OptimSettings) -> tuple[AdamW, LambdaLR]:
    """AdamW over the groups and its schedule, to be stepped once per optimiser step."""
    optimizer = AdamW(list(groups), lr=settings.learning_rate, betas=settings.betas)
    warmup, most = settings.warmup_steps, settings.max_steps
    return optimizer, LambdaLR(optimizer, lambda step: schedule_factor(step, warmup_steps=warmup, max_steps=most))
