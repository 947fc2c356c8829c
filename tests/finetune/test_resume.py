"""Fine-tuning that is stopped within an epoch continues with the samples that are left, by any number of loader processes."""

import os
import signal

import numpy as np
import pytest
import torch
from small_vision import small_encoder

from mg3d.finetune import loop
from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.classification import Classification

CASES, EPOCHS, BATCH = 6, 2, 2


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("cases"), np.random.default_rng(0)
    for number in range(CASES):
        np.save(folder / f"{number}.npy", generator.random((16, 16, 16), np.float32))
    return [FinetuneCase(case_id=str(number), patient_id=str(number), image=folder / f"{number}.npy", target=(number % 2,))
            for number in range(CASES)]  # fmt: skip


def train(cases, folder, *, when=lambda step: None, **settings):
    """Trains or continues; returns the cases of each batch. `when` is called before each step."""
    given = {"epochs": EPOCHS, "batch_size": BATCH, "num_workers": 0, "accelerator": "cpu", "dropout": 0.5} | settings
    task_type, batches = Classification(FinetuneSettings(**given), outputs=("a",), metric="auroc"), []
    plain = task_type.loss

    def loss(network, batch):
        batches.append(list(batch["case_id"]))
        when(len(batches))
        return plain(network, batch)

    task_type.loss = loss
    torch.manual_seed(0)
    network = task_type.network(small_encoder("swin", mask_token=False, embed_dim=12, depths=(1,), num_heads=(2,)))
    try:
        loop.train(task_type, network, Split(cases, cases, []), folder, {"settings": {"resume": True} | given, "cases": {}})
    except KeyboardInterrupt:
        batches.append("interrupted")
    return batches


def weights(folder):
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return stored["global_step"], stored["state_dict"]


@pytest.mark.parametrize(("workers", "accumulated"), [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2)])
def test_a_run_that_stops_after_every_step_equals_an_uninterrupted_one(cases, tmp_path, workers, accumulated):
    named = {"num_workers": workers, "accumulate_grad_batches": accumulated}
    expected = train(cases, tmp_path / "whole", **named)
    assert sorted(case for batch in expected[: CASES // BATCH] for case in batch) == sorted(case.case_id for case in cases)
    assert expected[: CASES // BATCH] != expected[CASES // BATCH :]
    found, steps = [], EPOCHS * -(-CASES // BATCH // accumulated)
    for _ in range(steps):
        found += train(cases, tmp_path / "parts", max_minutes=1e-9, **named)
    assert found == expected
    (step, whole), (same_step, parts) = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert step == same_step == steps
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


@pytest.mark.parametrize("stop", [2, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_ctrl_c_saves_after_the_step_and_the_same_command_continues(cases, tmp_path, stop, number):
    """Within an epoch, and before its validation."""
    expected = train(cases, tmp_path / "whole")
    send = lambda step: os.kill(os.getpid(), number) if step == stop else None  # noqa: E731
    first = train(cases, tmp_path / "cut", when=send)
    assert first == [*expected[:stop], "interrupted"]
    assert weights(tmp_path / "cut")[0] == stop
    assert (tmp_path / "cut" / "checkpoints" / "best.ckpt").is_file() is (stop == 3)
    assert train(cases, tmp_path / "cut") == expected[stop:]
    for name, tensor in weights(tmp_path / "whole")[1].items():
        assert torch.equal(tensor, weights(tmp_path / "cut")[1][name]), name
