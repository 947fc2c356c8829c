"""The LightningModule of fine-tuning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mg3d.distributed import rank
from mg3d.finetune.dataset import ERRORS
from mg3d.finetune.encoder import freeze_unread
from mg3d.finetune.optim import build_optimizer, parameter_groups
from mg3d.finetune.tasks.base import LAST_EPOCH, Row, TaskType
from mg3d.finetune.transforms import Sample
from mg3d.training.optim import can_fuse


class FinetuneModule(pl.LightningModule):
    """Fine-tuning of one network.

    Args:
        network: of the task type; its image encoder is `network.encoder`.
        config: builtins stored in every checkpoint, from which the network is built again.
        mask_folder: folder of predicted masks.
    """

    def __init__(
        self,
        network: nn.Module,
        task_type: TaskType,
        *,
        config: Mapping[str, Any] | None = None,
        mask_folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.network, self.task_type, self.config = network, task_type, dict(config or {})
        self.mask_folder = mask_folder
        self.validation_rows: list[Row] = []
        self.latest_terms: dict[str, Tensor] = {}  # read by the guard against NaN and Inf
        if task_type.uses_sgd:
            freeze_unread(network.encoder, reads_pyramid=task_type.reads_pyramid)
            if task_type.settings.freeze_encoder:
                network.encoder.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        """A frozen encoder stays in eval mode."""
        if self.task_type.settings.freeze_encoder:
            self.network.encoder.eval()

    def on_train_batch_start(self, batch: Sample, batch_index: int) -> None:
        """Seeds dropout and other draws of this step."""
        seed = np.random.SeedSequence([self.task_type.settings.seed, self.current_epoch, batch_index, rank()])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]) >> 1)

    def training_step(self, batch: Sample, batch_index: int) -> Tensor:
        """The loss of one batch."""
        loss = self.task_type.loss(self.network, batch)
        self.latest_terms = {"loss": loss.detach()}
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False, batch_size=1)
        return loss

    def validation_step(self, batch: Sample, batch_index: int) -> None:
        """Collects predictions."""
        self.validation_rows += self.task_type.validation_rows(self.network, batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the metric of the predictions of all ranks."""
        table = self.task_type.finish(gather_rows(self.validation_rows))
        self.validation_rows = []
        scores = self.task_type.statistics(table) | {LAST_EPOCH: self.current_epoch}
        selection = self.task_type.selection
        if np.isnan(scores[selection]):
            raise ValueError(
                f"{selection}, which selects the best epoch, is undefined on the {table['case_id'].nunique()} validation cases; "
                "use another fold or seed, or more cases (max_cases)"
            )
        self.log(f"val/{selection}", float(scores[selection]), prog_bar=True, rank_zero_only=False, sync_dist=False)

    def predict_step(self, batch: Sample, batch_index: int, dataloader_idx: int = 0) -> list[Row]:
        """Predictions of a batch, and a row with `error` for each case that could not be read."""
        errors: list[Row] = [{"case_id": case, "patient_id": case, "error": reason} for case, reason in batch.pop(ERRORS, ())]
        if "case_id" not in batch:
            return errors
        try:
            return errors + self.task_type.rows(self.network, batch, mask_folder=self.mask_folder)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, OSError, RuntimeError) as error:
            if self.task_type.settings.mode != "predict":
                raise
            reason = str(error).split("\n")[0]
            return errors + [{"case_id": case, "patient_id": case, "error": reason} for case in dict.fromkeys(batch["case_id"])]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the config."""
        checkpoint["mg3d_finetune"] = self.config

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with a schedule per step."""
        settings = self.task_type.settings
        groups = parameter_groups(self.network, settings)
        steps_per_epoch = self.trainer.estimated_stepping_batches // self.trainer.max_epochs
        fused = can_fuse(self.device, self.trainer.precision)
        optimizer, schedule = build_optimizer(groups, settings, steps_per_epoch=steps_per_epoch, fused=fused)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def gather_rows(rows: list[Row]) -> pd.DataFrame:
    """The rows of all ranks, each case (or candidate) once, sorted by name."""
    parts: list[list[Row]] = [rows]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(parts, rows)
    keys = ["case_id", "candidate"] if any("candidate" in row for part in parts for row in part) else ["case_id"]
    table = pd.DataFrame([row for part in parts for row in part])
    return table.drop_duplicates(keys).sort_values(keys).reset_index(drop=True)
