"""A new objective is one file and one row: the file below, the row, and its weight, without touching another file."""

import subprocess
import sys
from pathlib import Path

FILE = '''
"""BALANCE: the mean image token should have mean 1 (a toy objective)."""

from torch import nn

from mg3d.distributed import global_mean
from mg3d.losses.base import Loss
from mg3d.models.branches.base import Branch


class BalanceLoss(Loss):
    def forward(self, balance_value):
        """Mean over the patients of all ranks of the squared distance of [B] to 1."""
        return global_mean((balance_value - 1).square().sum(), len(balance_value))


class BalanceBranch(Branch):
    name = "balance"

    def __init__(self, model, settings, objectives):
        super().__init__(model, settings, objectives)
        self.head = nn.Linear(settings.hidden_size, 1)
        self.objective_losses["balance"] = BalanceLoss()

    def features(self, tokens):
        return {"balance_value": self.head(tokens.image.mean(1))[:, 0]}
'''

SCRIPT = '''
from mg3d.settings.objectives import OBJECTIVES, ObjectiveRow

OBJECTIVES["balance"] = ObjectiveRow("balance.BalanceBranch", 0.0, "A toy objective.")  # the row

import torch
from small_model import random_batch

from mg3d.config import resolve
from mg3d.models.build import build_untrained
from mg3d.settings.schema import objective_weights
from mg3d.training.chunks import features_in_chunks
from mg3d.training.optim import parameter_groups

sizes = {"image_size": 32, "embed_dim": 12, "patch_size": 4, "num_heads": [2], "hidden_size": 24, "fusion_heads": 2}
sizes["mim_patch_size"] = 8
assert "balance" not in objective_weights(resolve(["tiny"], sizes).loss)
settings = resolve(["tiny"], {**sizes, "weight_balance": 0.5})  # the weight
assert objective_weights(settings.loss)["balance"] == 0.5
model = build_untrained(settings, 40)
batch = random_batch(3, shape=(32, 24, 32), patch=8)
batch = batch._replace(volume=batch.volume.float())
losses = model.losses(features_in_chunks(model, batch, 2))
assert list(losses) == ["mlm", "sal", "mim", "cml", "dcl", "ssm", "balance"]
by_hand = model.branches["balance"].head(model.encode_volume(batch.volume).mean(1))
torch.testing.assert_close(losses["balance"], (by_hand - 1).square().mean())
losses["balance"].backward()
assert model.branches["balance"].head.weight.grad.abs().sum() > 0
heads = {id(p) for group in parameter_groups(model, settings.optim) if group["name"].startswith("heads") for p in group["params"]}
assert id(model.branches["balance"].head.weight) in heads
'''


def test_a_new_objective_is_one_file_one_row_and_one_weight(tmp_path):
    (tmp_path / "balance.py").write_text(FILE)
    root = Path(__file__).parents[2]
    paths = f"{tmp_path}:{root}:{root / 'tests'}"
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
