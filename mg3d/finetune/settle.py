"""Kinds that are not trained by steps: their weights are found in one go and kept as any other run keeps them."""

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mg3d.files import write_bytes
from mg3d.finetune.cases import Parts
from mg3d.finetune.fit import Spent, machine
from mg3d.finetune.kinds.base import Kind
from mg3d.training.run import is_first_rank
from mg3d.training.trainer import resolve_accelerator


def settle(
    kind: Kind, network: nn.Module, parts: Parts, folder: Path, *, identity: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Finds the weights of a network and writes its checkpoint, whole or not at all; returns time and memory.

    Raises:
        ValueError: several processes were asked for, of which each would do the same.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 or not is_first_rank()  # no process group is made that would tell
    if several or kind.settings.devices > 1 or kind.settings.num_nodes > 1:
        raise ValueError(
            f"{kind.task.title} is not trained by steps, so one process does it all: start one, with devices=1 num_nodes=1"
        )
    on_gpu = resolve_accelerator(machine(kind.settings)) == "gpu"
    spent = Spent(on_gpu=on_gpu)
    network.to("cuda" if on_gpu else "cpu").eval()
    kind.settle(network, parts, folder=folder, say=say)
    state = {f"network.{name}": tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = io.BytesIO()
    torch.save({"state_dict": state, "mg3d_finetune": dict(identity)}, content)
    write_bytes(folder / "checkpoints" / "best.ckpt", content.getvalue())
    return {
        **spent.state_dict(),
        "processes": 1,
        "cases": {name: len(part) for name, part in parts._asdict().items()},
    }
