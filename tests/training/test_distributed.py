"""Two gloo processes against one with the joined batch, in float64."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_model import OBJECTIVES, build, random_batch

from mg3d.settings.schema import ModelSettings
from mg3d.training.objectives import build_losses
from mg3d.types import Batch

EVERY = (*OBJECTIVES, "cap")
SIZE = 5
SHARES = (slice(0, 2), slice(2, 5))
"""Rows of each rank: different numbers, so that a mean of means cannot pass for the mean."""


def loss_and_gradients(name, batch, share=None):
    model = build(objectives=(name,)).eval()
    loss = build_losses(ModelSettings(), [name])[name]
    part = batch if share is None else Batch(*(value[share] for value in batch))
    features = model(part)
    value = loss(**{field: getattr(features, field) for field in loss.inputs})
    value.backward()
    return value.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def one_rank(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for name in EVERY:
        value, gradients = loss_and_gradients(name, random_batch(SIZE), SHARES[rank])
        for tensor in (value, *gradients.values()):
            dist.all_reduce(tensor)
            tensor /= 2  # what DistributedDataParallel does
        results[name] = (value, gradients)
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(one_rank, args=(port, folder), nprocs=2)
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("name", EVERY)
def test_two_ranks_give_loss_and_gradients_of_the_joined_batch(two_ranks, name):
    value, gradients = loss_and_gradients(name, random_batch(SIZE))
    theirs, their_gradients = two_ranks[name]
    assert value > 0
    torch.testing.assert_close(theirs, value, rtol=1e-6, atol=1e-12)
    assert gradients.keys() == their_gradients.keys()
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    for key, gradient in gradients.items():
        torch.testing.assert_close(their_gradients[key], gradient, rtol=1e-6, atol=1e-10, msg=key)
