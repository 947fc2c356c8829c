"""The LightningModule of fine-tuning: it wires a kind, its network and the optimiser."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mg3d.distributed import rank
from mg3d.finetune.kinds.base import Kind, Row
from mg3d.finetune.optim import build_optimizer, parameter_groups
from mg3d.finetune.pipeline import Sample


class FinetuneModule(pl.LightningModule):
    """Fine-tuning of one network.

    Args:
        network: of the kind; its encoder is `network.encoder`.
        kind: losses, predictions, scores.
        steps_per_epoch: optimiser steps.
        identity: builtins stored with every checkpoint, from which the network is built again.
        say: takes a sentence for the user.
    """

    def __init__(
        self, network: nn.Module, kind: Kind, *, steps_per_epoch: int, identity: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        super().__init__()
        self.network, self.kind, self.identity = network, kind, dict(identity)
        self.steps_per_epoch, self.say = steps_per_epoch, say
        self.found: list[Row] = []
        self.latest_terms: dict[str, Tensor] = {}  # read by `NonFiniteGuard`
        self.told = False  # that the metric is not defined
        if kind.settings.freeze_encoder:
            network.encoder.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        """A frozen encoder stays in eval mode."""
        if self.kind.settings.freeze_encoder:
            self.network.encoder.eval()

    def on_train_batch_start(self, batch: Sample, batch_index: int) -> None:
        """Seeds this step's draws inside the network."""
        words = np.random.SeedSequence([self.kind.settings.seed, self.current_epoch, batch_index, rank()])
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)

    def training_step(self, batch: Sample, batch_index: int) -> Tensor:
        """The loss of one batch."""
        loss = self.kind.loss(self.network, batch)
        self.latest_terms = {"loss": loss.detach()}
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False, batch_size=1)
        return loss

    def validation_step(self, batch: Sample, batch_index: int) -> None:
        """Collects predictions."""
        self.found += self.kind.validation_rows(self.network, batch)

    def on_validation_epoch_end(self) -> None:
        """Scores the predictions of all ranks."""
        table = self.kind.finish(gathered(self.found))
        self.found = []
        metric = self.kind.task.metric
        value = self.kind.statistics(table)[metric]
        if np.isnan(value) and not self.told:
            self.told = True
            self.say(
                f"{metric} has no value on these validation cases (of one class alone?) and counts as 0; if it never gets one, "
                "the best epoch is the first: use more cases, or another fold or seed"
            )
        self.log(f"val/{metric}", float(np.nan_to_num(value)), prog_bar=True, rank_zero_only=False, sync_dist=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the network is built from."""
        checkpoint["mg3d_finetune"] = self.identity

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and a schedule per step."""
        settings = self.kind.settings
        groups = parameter_groups(self.network, settings)
        optimizer, schedule = build_optimizer(groups, settings, steps_per_epoch=self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def gathered(rows: list[Row]) -> pd.DataFrame:
    """The rows of all ranks, each case once, in order of their names."""
    parts: list[list[Row]] = [rows]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(parts, rows)
    keys = ["case_id", "place"] if any("place" in row for part in parts for row in part) else ["case_id"]
    table = pd.DataFrame([row for part in parts for row in part])
    return table.drop_duplicates(keys).sort_values(keys).reset_index(drop=True)
