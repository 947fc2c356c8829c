"""LightningModule of pre-training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mg3d.datasets.windowing import convert_volumes
from mg3d.distributed import rank, sum_over_ranks, world_size
from mg3d.settings.schema import OptimSettings
from mg3d.training.chunks import features_in_chunks
from mg3d.training.optim import build_optimizer, can_fuse, parameter_groups
from mg3d.types import Batch


class PretrainModule(pl.LightningModule):
    """Pre-training of one model.

    Args:
        model: `MG3D`, or any module with its `forward(batch)`, `losses(features)` and `update_ema()`.
        weights: objective -> weight in the total loss.
        optim: optimizer and schedule.
        seed: of random draws inside the model (dropout). Step s of rank r draws from (seed, s, r), so that a resumed run equals
            an uninterrupted one.
        identity: builtins stored with every checkpoint (the settings it belongs to).
        chunk: GradCache chunk size in patients, see `chunks`; 0 = off.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        weights: Mapping[str, float],
        optim: OptimSettings,
        seed: int,
        identity: Mapping[str, Any],
        chunk: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss_weights = dict(weights)
        self.optim_settings = optim
        self.seed = seed
        self.identity = dict(identity)
        self.chunk = chunk
        self.latest_terms: dict[str, Tensor] = {}
        """Losses of the last training batch (this rank's part), detached."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of every active objective (this rank's part of the global mean) and, last, their weighted `total`."""
        losses = self.model.losses(features_in_chunks(self.model, batch, self.chunk))
        return losses | {"total": sum(self.loss_weights[name] * loss for name, loss in losses.items())}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Total loss of one batch."""
        terms = self.terms(batch)
        self.latest_terms = {name: term.detach() for name, term in terms.items()}
        self._log("train", _means_over_ranks(self.latest_terms), batch)
        return terms["total"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Logs the losses of one validation batch."""
        self._log("val", self.terms(batch), batch)

    def _log(self, phase: str, terms: Mapping[str, Tensor], batch: Batch) -> None:
        trains = phase == "train"
        options = {"batch_size": len(batch.volume), "sync_dist": not trains, "on_step": trains, "on_epoch": not trains}
        self.log_dict({f"{phase}/{name}": value for name, value in terms.items()}, **options)
        self.log(f"{phase}/loss", terms["total"], prog_bar=True, logger=False, **options)

    def on_after_batch_transfer(self, batch: Batch, dataloader_index: int) -> Batch:
        """Converts stored voxels to intensities on the device."""
        return convert_volumes(batch, dtype=next(self.model.parameters()).dtype)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Seeds the random draws of this step inside the model."""
        words = np.random.SeedSequence([self.seed, batch_index, rank()]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]) >> 1)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """An optimizer step, followed by the EMA update of target encoders."""
        super().optimizer_step(*arguments, **named)
        self.model.update_ema()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the identity of the run."""
        checkpoint["mg3d"] = self.identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restarts from the last complete optimizer step.

        Micro-batches whose gradients were lost are repeated. Their index follows from the optimizer steps, also for another
        number of ranks.
        """
        steps = checkpoint["global_step"]
        micro_batches = steps * self.trainer.accumulate_grad_batches
        loop = checkpoint["loops"]["fit_loop"]
        for scope in ("total", "current"):
            counters = loop["epoch_loop.batch_progress"][scope]
            counters.update(dict.fromkeys(counters, micro_batches))
        # If a validation is due, Lightning first runs an iteration without training, in which it counts the step.
        is_due = self.trainer.enable_validation and micro_batches % self.trainer.val_check_interval == 0
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - int(is_due)
        if is_due and not checkpoint["validated"]:  # a started batch: Lightning repeats the validation
            for scope in ("total", "current"):
                loop["epoch_loop.val_loop.batch_progress"][scope].update(ready=1, started=1, processed=0, completed=0)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and a per-step schedule."""
        fused = can_fuse(self.device, self.trainer.precision)
        groups = parameter_groups(self.model, self.optim_settings)
        optimizer, schedule = build_optimizer(groups, self.optim_settings, fused=fused)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _means_over_ranks(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over ranks with one all-reduce; Lightning's `sync_dist` synchronises once per term."""
    means = sum_over_ranks(torch.stack(list(terms.values()))) / world_size()
    return dict(zip(terms, means.unbind(), strict=True))
