"""Rates by depth, and their schedule."""

import math
import re
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mg3d.finetune.settings import FinetuneSettings


def stage_names(encoder: nn.Module) -> list[str]:
    """Parts of an encoder from the volume to the last map: its children, those of a list, or of a wrapped encoder, one by one."""
    names = []
    for name, child in encoder.named_children():
        if isinstance(child, nn.ModuleList):
            names += [f"{name}.{place}" for place in range(len(child))]
        elif any(True for _ in child.parameters()):
            names += [f"{name}.{inner}" for inner in stage_names(child)] if name == "encoder" else [name]
    return names


def parameter_groups(network: nn.Module, settings: FinetuneSettings) -> list[dict[str, object]]:
    """One group per stage of the encoder and one for the head, each with and without decay; what is frozen is left out.

    The stage that lies n stages before the last learns at learning_rate * encoder_rate * layer_decay**(n + 1).
    """
    stages = [f"encoder.{name}." for name in stage_names(network.encoder)]
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        stage = next((place for place, start in enumerate(stages) if name.startswith(start)), None)
        if stage is None:
            stage = 0 if name.startswith("encoder.") else len(stages)
        decays = parameter.ndim >= 2 and not re.search(r"bias_table|_token|position", name)
        members.setdefault((stage, decays), []).append(parameter)
    groups = []
    for (stage, decays), parameters in sorted(members.items(), key=lambda item: item[0]):
        depth = len(stages) - stage
        rate = settings.learning_rate * (settings.encoder_rate * settings.layer_decay**depth if depth else 1.0)
        word = f"encoder{stage}" if depth else "head"
        decay = settings.weight_decay if decays else 0.0
        groups.append({"name": word + ("" if decays else "_no_decay"), "params": parameters, "lr": rate, "weight_decay": decay})
    return groups


def factor_at(step: int, settings: FinetuneSettings, *, steps_per_epoch: int) -> float:
    """Share of the peak rate at optimiser step `step`: a linear warm-up that begins above 0, then the schedule."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "step":
        return settings.step_factor ** ((step - warmup) // steps_per_epoch)
    if settings.schedule == "constant":
        return 1.0
    whole = max(settings.epochs * steps_per_epoch - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / whole, 1.0)))


def build_optimizer(
    groups: Iterable[dict[str, object]], settings: FinetuneSettings, *, steps_per_epoch: int
) -> tuple[AdamW, LambdaLR]:
    """AdamW and its schedule, to be stepped once per optimiser step."""
    optimizer = AdamW(list(groups), lr=settings.learning_rate)
    return optimizer, LambdaLR(optimizer, lambda step: factor_at(step, settings, steps_per_epoch=steps_per_epoch))
