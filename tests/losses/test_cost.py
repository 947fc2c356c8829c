"""Elements that a loss computes, forward and backward, grow at most with (global batch) x (local batch)."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mg3d.losses import contrastive, ssm
from mg3d.losses.contrastive import contrastive_loss
from mg3d.losses.ssm import SSMLoss

WIDTH, SENTENCES = 4, 3


class ElementCounter(TorchDispatchMode):
    """Counts the elements of every result of an operation."""

    total = largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor):
                self.total, self.largest = self.total + part.numel(), max(self.largest, part.numel())
        return result


def contrast(bias):
    def loss(local):
        rows = torch.randn(2, local, WIDTH, requires_grad=True)
        return contrastive_loss(rows[0], rows[1], torch.tensor(4.0), bias, keys=(torch.arange(local),))

    return loss


def sentences(local):
    rows = torch.randn(2, local, SENTENCES, WIDTH, requires_grad=True)
    mask, polarity = torch.ones(local, SENTENCES, dtype=torch.bool), torch.ones(local, SENTENCES, dtype=torch.int8)
    return SSMLoss()(rows[0], rows[1], mask, polarity, torch.arange(local))


LOSSES = {"infonce": (contrast(None), 1), "sigmoid": (contrast(torch.tensor(-4.0)), 1), "ssm": (sentences, SENTENCES**2)}
"""Loss, and compared pairs per pair of patients."""


def cost(monkeypatch, loss, local, ranks):
    """Elements of (all results, the largest result) on a rank with `local` patients."""
    for module in (contrastive, ssm):
        monkeypatch.setattr(module, "gather_rows", lambda *rows: [torch.cat([part] * ranks) for part in rows])
    with ElementCounter() as counter:
        loss(local).backward()
    return counter.total, counter.largest


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
