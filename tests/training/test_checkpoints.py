"""Which checkpoints a run leaves."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from mg3d.training.trainer import checkpoint_callbacks


class GetsWorse(pl.LightningModule):
    """Its validation value grows from step to step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return (self.weight - batch).square().mean()

    def validation_step(self, batch, index):
        self.log("val/total", float(self.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("named", "held"), [({"monitor": "val/total"}, {"best": 2, "last": 6}), ({"every_steps": 4}, {"last": 4})]
)
def test_last_is_the_last_also_when_validation_gets_worse(tmp_path, named, held):
    loader = DataLoader(torch.arange(6.0)[:, None])
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=6, val_check_interval=2, check_val_every_n_epoch=None, num_sanity_val_steps=0, logger=False,
        limit_val_batches=1 if "monitor" in named else 0, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*checkpoint_callbacks(tmp_path, **named)],
    )  # fmt: skip
    trainer.fit(GetsWorse(), loader, loader if "monitor" in named else None)
    found = {path.stem: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.glob("*.ckpt")}
    assert found == held
