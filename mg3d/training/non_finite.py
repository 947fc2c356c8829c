"""Stop training on NaN or Inf before it reaches a checkpoint, and record the studies of that step."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm

from mg3d.distributed import rank, sum_over_ranks
from mg3d.files import write_json
from mg3d.training.host_copy import HostCopy


class _Step(NamedTuple):
    """An optimizer step that is not checked yet."""

    index: int
    names: tuple[str, ...]
    """What was examined: `loss` and `gradient`."""
    counts: HostCopy
    """Number of ranks on which each of these has a NaN or Inf."""
    studies: list[list[str]]
    """Of each micro-batch."""
    terms: list[dict[str, Tensor]]
    """Of each micro-batch."""


class NonFiniteGuard(Callback):
    """Raises ValueError on all ranks after a step with a NaN or Inf loss or gradient.

    A step is checked at the next optimizer step, so that the host does not wait for the device, but before a validation and
    before a checkpoint is written.

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
        self._unchecked: _Step | None = None
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
        """Checks the previous step, and examines losses and gradient of this one without synchronising."""
        self._check()
        values = {"loss": torch.stack(self.losses)}
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            values["gradient"] = get_total_norm(gradients)
        non_finite = torch.stack([(~tensor.isfinite()).any() for tensor in values.values()])
        counts = HostCopy(sum_over_ranks(non_finite.float()))
        self._unchecked = _Step(trainer.global_step, tuple(values), counts, self.studies, self.terms)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Checks the last step before its weights are written."""
        self._check()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Checks the last step."""
        self._check()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Checks the last step."""
        self._check()

    def _check(self) -> None:
        step, self._unchecked = self._unchecked, None
        if step is None:
            return
        for name, count in zip(step.names, step.counts.tolist(), strict=True):
            if count:
                self._stop(step, name)

    def _stop(self, step: _Step, name: str) -> None:
        terms = [{term: str(float(value)) for term, value in of_batch.items()} for of_batch in step.terms]
        path = self.folder / f"non_finite_step{step.index}_rank{rank()}.json"
        write_json(path, {"step": step.index, "non_finite": name, "terms": terms, "studies": step.studies})
        raise ValueError(f"the {name} of step {step.index} is NaN or Inf; {path} lists its studies. {self.advice}")
