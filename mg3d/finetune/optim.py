"""AdamW with layer-wise learning-rate decay, and the learning-rate schedule."""

import math
from collections.abc import Iterable
from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mg3d.finetune.settings import FinetuneSettings

NO_DECAY = ("*bias_table*", "*_token*", "*position*")


def stage_names(encoder: nn.Module) -> list[str]:
    """Stages of an encoder from the input to the last feature map: its children, and those of lists and of a wrapped encoder."""
    names = []
    for name, child in encoder.named_children():
        if isinstance(child, nn.ModuleList):
            names += [f"{name}.{index}" for index in range(len(child))]
        elif any(True for _ in child.parameters()):
            names += [f"{name}.{inner}" for inner in stage_names(child)] if name == "encoder" else [name]
    return names


def parameter_groups(network: nn.Module, settings: FinetuneSettings) -> list[dict[str, Any]]:
    """Groups of trainable parameters, one per encoder stage and one for the head, with and without weight decay.

    The learning rate of the stage n stages before the head is learning_rate * encoder_lr_multiplier * layer_decay**n.
    """
    stages = [f"encoder.{name}." for name in stage_names(network.encoder)]

    def stage_of(name: str) -> int:
        head = 0 if name.startswith("encoder.") else len(stages)
        return next((index for index, stage in enumerate(stages) if name.startswith(stage)), head)

    network.group_matcher = lambda coarse=False: stage_of  # read by timm
    groups = param_groups_layer_decay(
        network, settings.weight_decay, no_weight_decay_list=NO_DECAY, layer_decay=settings.layer_decay
    )
    encoder = {id(parameter) for parameter in network.encoder.parameters()}
    for group in groups:
        in_encoder = id(group["params"][0]) in encoder
        group["lr"] = settings.learning_rate * group.pop("lr_scale") * (settings.encoder_lr_multiplier if in_encoder else 1.0)
    return groups


def factor_at(step: int, settings: FinetuneSettings, *, steps_per_epoch: int) -> float:
    """Fraction of the peak learning rate at an optimizer step: linear warm-up that starts above 0, then the schedule."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "step":
        return settings.gamma ** ((step - warmup) // steps_per_epoch)
    if settings.schedule == "constant":
        return 1.0
    total = max(settings.epochs * steps_per_epoch - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / total, 1.0)))


def build_optimizer(
    groups: Iterable[dict[str, Any]], settings: FinetuneSettings, *, steps_per_epoch: int, fused: bool = False
) -> tuple[AdamW, LambdaLR]:
    """AdamW (`fused`: one kernel for all parameters), and its schedule per optimizer step."""
    optimizer = AdamW(list(groups), lr=settings.learning_rate, fused=fused or None)
    return optimizer, LambdaLR(optimizer, lambda step: factor_at(step, settings, steps_per_epoch=steps_per_epoch))
