"""Several gloo processes against one process with the joined batch, in float64."""

import functools
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_model import OBJECTIVES, build, losses_of, random_batch

from mg3d.types import Batch

RANKS = {
    "two": (slice(0, 4), slice(4, 8)),
    "three": (slice(0, 2), slice(2, 4), slice(4, 6)),
    "four": (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)),
}
"""Rows of each rank; patients differ in tokens, sentences and masked patches, so that a mean of means differs from the mean."""
CASES = {name: ("paper", name, {}) for name in (*OBJECTIVES, "captioning")} | {
    "cml sigmoid": ("paper", "cml", {"contrast": "sigmoid"}),
    "dcl sigmoid": ("paper", "dcl", {"contrast": "sigmoid"}),
    "cml with negatives": ("paper", "cml", {}),
    "cml sigmoid with negatives": ("paper", "cml", {"contrast": "sigmoid"}),
    "released mim": ("released", "mim", {}),
    "released sal": ("intended", "sal", {}),
    "released cml": ("intended", "cml", {}),
    "released dcl": ("released", "dcl", {}),
}
"""Case -> wiring, objective, settings. The released SSM is missing because it compares patients of one rank only."""


def rank_part(batch, rows, wiring):
    """These patients, their tokens padded to the longest of them, as a rank's own collator does except for gates, which count
    padding."""
    part = Batch(*(value[rows] for value in batch))
    if wiring != "paper":
        return part
    tokens = int(part.attention_mask.sum(1).max())
    cut = {name: getattr(part, name)[:, :tokens]
           for name in ("report_ids", "attention_mask", "sentence_index", "mlm_ids", "mlm_labels")}  # fmt: skip
    return part._replace(**cut)


def with_negatives(batch):
    """Two extra report negatives per patient, some of them of patients of the batch."""
    size, generator = len(batch.study_id), torch.Generator().manual_seed(3)
    mask = torch.arange(3) < 1 + torch.arange(2 * size).view(size, 2, 1) % 3
    return batch._replace(
        negative_sentences=torch.randn(size, 2, 3, 16, generator=generator, dtype=torch.float64), negative_sentence_mask=mask,
        negative_patient_key=torch.arange(2 * size).view(size, 2), negative_report_key=torch.arange(2 * size).view(size, 2) % 9,
    )  # fmt: skip


def loss_and_gradients(case, size, rows=slice(None)):
    wiring, name, settings = CASES[case]
    model = build(wiring, objectives=(name,), **settings).eval()
    batch = with_negatives(random_batch(size)) if case.endswith("negatives") else random_batch(size)
    value = losses_of(model, rank_part(batch, rows, wiring))[name]
    value.backward()
    return value.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def collectives_of_a_step(batch, rows):
    """Names of the collectives of all losses, forward and backward."""
    called = []

    def recording(name, collective):
        return lambda *arguments: called.append(name) or collective(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather", "all_reduce", "reduce_scatter"):
            patch.setattr(dist, name, recording(name, getattr(dist, name)))
        sum(losses_of(build(), rank_part(batch, rows, "paper")).values()).backward()
    return called


def one_rank(rank, shares, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=len(shares))
    results = {"collectives": collectives_of_a_step(random_batch(shares[-1].stop), shares[rank])}
    for case in CASES:
        value, gradients = loss_and_gradients(case, shares[-1].stop, shares[rank])
        for tensor in (value, *gradients.values()):
            dist.all_reduce(tensor)
            tensor /= len(shares)  # what DistributedDataParallel does
        results[case] = (value, gradients)
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@functools.cache
def over_ranks(name, folder):
    """{case: (value, gradients)} of the processes with these shares."""
    folder.mkdir()
    mp.spawn(one_rank, args=(RANKS[name], free_port(), folder), nprocs=len(RANKS[name]))
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


def assert_joined(case, name, folder):
    value, gradients = loss_and_gradients(case, RANKS[name][-1].stop)
    theirs, their_gradients = over_ranks(name, folder / name)[case]
    assert value > 0
    torch.testing.assert_close(theirs, value, rtol=1e-6, atol=1e-12)
    assert gradients.keys() == their_gradients.keys()
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    for key, gradient in gradients.items():
        torch.testing.assert_close(their_gradients[key], gradient, rtol=1e-6, atol=1e-10, msg=key)


@pytest.mark.parametrize("case", CASES)
def test_three_ranks_give_loss_and_gradients_of_the_joined_batch(case, folder):
    assert_joined(case, "three", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "four"])
@pytest.mark.parametrize("case", CASES)
def test_eight_patients_give_the_same_on_one_two_and_four_ranks(case, name, folder):
    assert_joined(case, name, folder)


def test_the_losses_of_a_step_need_three_collectives(folder):
    assert over_ranks("three", folder / "three")["collectives"] == ["all_gather", "all_reduce", "reduce_scatter"]
