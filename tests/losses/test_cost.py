"""How many numbers a loss makes, forward and backward: no more than grows with (global batch) x (local batch)."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mg3d.losses import contrastive, ssm
from mg3d.losses.contrastive import sigmoid_loss, symmetric_info_nce
from mg3d.losses.ssm import SSMLoss

WIDTH, SENTENCES = 4, 3


class Counted(TorchDispatchMode):
    """Adds up the numbers of every tensor that an operation gives."""

    total = largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        given = function(*arguments, **(named or {}))
        for one in given if isinstance(given, (tuple, list)) else (given,):
            if isinstance(one, torch.Tensor):
                self.total, self.largest = self.total + one.numel(), max(self.largest, one.numel())
        return given


def info_nce(local):
    rows = torch.randn(2, local, WIDTH, requires_grad=True)
    return symmetric_info_nce(rows[0], rows[1], torch.tensor(4.0), keys=(torch.arange(local),))


def sigmoid(local):
    rows = torch.randn(2, local, WIDTH, requires_grad=True)
    return sigmoid_loss(rows[0], rows[1], torch.tensor(4.0), torch.tensor(-4.0), keys=(torch.arange(local),))


def sentences(local):
    rows = torch.randn(2, local, SENTENCES, WIDTH, requires_grad=True)
    mask, polarity = torch.ones(local, SENTENCES, dtype=torch.bool), torch.ones(local, SENTENCES, dtype=torch.int8)
    return SSMLoss()(rows[0], rows[1], mask, polarity, torch.arange(local))


LOSSES = {"infonce": (info_nce, 1), "sigmoid": (sigmoid, 1), "ssm": (sentences, SENTENCES**2)}
"""Loss, and pairs of what it compares for each pair of patients."""


def cost(monkeypatch, loss, local, ranks):
    """(all numbers, the largest tensor) of a rank with `local` patients of `ranks` times as many."""
    for module in (contrastive, ssm):
        monkeypatch.setattr(module, "gather_rows", lambda rows: torch.cat([rows] * ranks))
    monkeypatch.setattr(contrastive, "sum_over_ranks", lambda count: count * ranks)
    with Counted() as counted:
        loss(local).backward()
    return counted.total, counted.largest


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_costs_the_global_times_the_local_batch(monkeypatch, name):
    loss, pairs = LOSSES[name]
    total, largest = cost(monkeypatch, loss, 16, 4)
    assert largest <= 16 * 64 * pairs
    wider, _ = cost(monkeypatch, loss, 16, 8)
    assert wider < 2.05 * total
    both, largest = cost(monkeypatch, loss, 32, 4)
    assert both < 4.1 * total
    assert largest <= 32 * 128 * pairs
    assert total > 16 * 64 * pairs
