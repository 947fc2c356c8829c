"""Stop training on NaN or Inf before it reaches a checkpoint, and record the studies of that step."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm

from mg3d.distributed import rank, sum_over_ranks
from mg3d.files import write_json


class NonFiniteGuard(Callback):
    """Raises ValueError on all ranks before an optimizer step with a NaN or Inf loss or gradient. Synchronises once per step.

    Each rank writes one file with the study ids and loss terms of its micro-batches of that step; no report text. With fp16, the
    gradient scaler skips steps whose gradients overflow, so that only losses are checked.

    Args:
        folder: folder for the files.
        names: batch -> ids of its studies or cases.
        advice: end of the error message.
    """

    ADVICE = (
        "Check these volumes, or lower learning_rate in a new run (run_name=...) that starts from a checkpoint of this one "
        "(load_path=...). The checkpoints that were written are intact"
    )

    def __init__(
        self, folder: Path, *, names: Callable[[Any], Sequence[str]] = attrgetter("study_id"), advice: str = ADVICE
    ) -> None:
        self.folder, self.names, self.advice = folder, names, advice
        self._reset()

    def _reset(self) -> None:
        self.studies: list[list[str]] = []
        self.losses: list[Tensor] = []
        self.terms: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int) -> None:
        """Records the studies of this micro-batch."""
        if batch_index % trainer.accumulate_grad_batches == 0:
            self._reset()
        self.studies.append(list(self.names(batch)))

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Records the loss of this micro-batch without synchronising."""
        self.losses.append(loss.detach())
        self.terms.append(module.latest_terms)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """Checks losses and gradient of this step."""
        values = {"loss": torch.stack(self.losses)}
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            values["gradient"] = get_total_norm(gradients)
        non_finite = torch.stack([(~tensor.isfinite()).any() for tensor in values.values()])
        for name, count in zip(values, sum_over_ranks(non_finite.float()).tolist(), strict=True):
            if count:
                self._stop(trainer.global_step, name)

    def _stop(self, step: int, name: str) -> None:
        terms = [{term: str(float(value)) for term, value in of_batch.items()} for of_batch in self.terms]
        path = self.folder / f"non_finite_step{step}_rank{rank()}.json"
        write_json(path, {"step": step, "non_finite": name, "terms": terms, "studies": self.studies})
        raise ValueError(f"the {name} of step {step} is NaN or Inf; {path} lists its studies. {self.advice}")
