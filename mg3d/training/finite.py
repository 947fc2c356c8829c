"""Stops a training whose numbers are no numbers any more, before they reach a checkpoint, and keeps which studies were read."""

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


class StopAtNotFinite(Callback):
    """Raises ValueError before the first step whose losses or gradient are not finite, on all ranks alike, after writing one file
    per rank. Waits for the device once a step.

    The file holds, of this rank's passes of this optimiser step, the ids of the studies and the loss terms, no text. With fp16
    the scaler looks after gradients itself, and steps over those that overflow; losses are looked at all the same.
    """

    ADVICE = (
        "Check these volumes, or lower learning_rate in a new run (run_name=...) that starts from a checkpoint of this one "
        "(load_path=...). The checkpoints that were written are intact"
    )

    def __init__(
        self, folder: Path, *, names: Callable[[Any], Sequence[str]] = attrgetter("study_id"), advice: str = ADVICE
    ) -> None:
        """names: batch -> ids of its studies or cases. advice: ends the error message."""
        self.folder, self.names, self.advice = folder, names, advice
        self._forget()

    def _forget(self) -> None:
        self.studies: list[list[str]] = []
        self.losses: list[Tensor] = []
        self.terms: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int) -> None:
        """Remembers what is read."""
        if batch_index % trainer.accumulate_grad_batches == 0:
            self._forget()
        self.studies.append(list(self.names(batch)))

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Remembers the loss of this pass, without waiting for it."""
        self.losses.append(loss.detach())
        self.terms.append(module.latest_terms)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """Looks at the losses and the gradient of this step."""
        numbers = {"the loss": torch.stack(self.losses)}
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            numbers["the gradient"] = get_total_norm(gradients)
        are_bad = torch.stack([(~values.isfinite()).any() for values in numbers.values()])
        for what, is_bad in zip(numbers, sum_over_ranks(are_bad.float()).tolist(), strict=True):
            if is_bad:
                self._stop(trainer.global_step, what)

    def _stop(self, step: int, what: str) -> None:
        terms = [{name: str(float(term)) for name, term in of_pass.items()} for of_pass in self.terms]
        path = self.folder / f"not_finite_step{step}_rank{rank()}.json"
        write_json(path, {"step": step, "not_finite": what, "terms_by_pass": terms, "studies_by_pass": self.studies})
        raise ValueError(f"{what} of step {step} is not finite; {path} names its studies. {self.advice}")
