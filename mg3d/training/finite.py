"""Stops a training whose numbers are no numbers any more, before they reach a checkpoint, and keeps which studies were read."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm

from mg3d.distributed import rank, sum_over_ranks
from mg3d.files import write_json
from mg3d.types import Batch


class StopAtNotFinite(Callback):
    """Raises ValueError at the first loss or gradient that is not finite, on all ranks alike, after writing one file per rank.

    The file holds the ids of the studies of this optimiser step and the loss terms, no text. With fp16 the scaler looks after
    gradients itself, and steps over those that overflow; losses are looked at all the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passes: list[list[str]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, batch_index: int) -> None:
        """Remembers what is read."""
        if batch_index % trainer.accumulate_grad_batches == 0:
            self.passes = []
        self.passes.append(list(batch.study_id))

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Looks at the loss of this pass."""
        self._require_finite(trainer, module, loss.detach(), "the loss")

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """Looks at the gradients of this step."""
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._require_finite(trainer, module, get_total_norm(gradients), "the gradient")

    def _require_finite(self, trainer: pl.Trainer, module: pl.LightningModule, value: Tensor, what: str) -> None:
        if not sum_over_ranks((~value.isfinite()).float()):
            return
        terms = {name: str(float(term)) for name, term in module.latest_terms.items()}
        told: dict[str, Any] = {"step": trainer.global_step, "not_finite": what, "terms": terms, "studies_by_pass": self.passes}
        path = self.folder / f"not_finite_step{trainer.global_step}_rank{rank()}.json"
        write_json(path, told)
        raise ValueError(
            f"{what} of step {trainer.global_step} is not finite; {path} names its studies. Look at their volumes, or take a "
            "smaller learning_rate: in a new run (run_name=...), which load_path=<checkpoint of this one> lets start from its "
            "weights. A checkpoint that was written is whole"
        )
