"""How a step is split over processes, precision and the distributed strategy."""

import re
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from small_model import OBJECTIVES, build, random_batch
from torch.utils.data import DataLoader

from mg3d.config import resolve
from mg3d.training import trainer as trainer_module
from mg3d.training.module import PretrainModule
from mg3d.training.run import describe_plan
from mg3d.training.trainer import build_strategy, plan_batches


def settings(batch_size, most, devices=1, nodes=1):
    return resolve([], {"batch_size": batch_size, "per_gpu_batchsize": most, "devices": devices, "num_nodes": nodes,
                        "accelerator": "cpu"})  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((16, 4), (1, 4, 4)),
        ((16, 16, 2), (2, 8, 1)),
        ((16, 4, 8), (8, 2, 1)),
        ((24, 3, 2, 2), (4, 3, 2)),
        ((16, 6, 4), (4, 4, 1)),
        ((7, 7), (1, 7, 1)),
    ],
)
def test_a_step_has_exactly_batch_size_volumes(arguments, expected):
    plan = plan_batches(settings(*arguments))
    assert plan == expected
    text = f"{plan.ranks} cpu process(es) x {plan.per_rank} volumes x {plan.accumulation_steps} accumulation step(s)"
    assert describe_plan(settings(*arguments), plan).endswith(f"steps of {arguments[0]} volumes: {text}")


@pytest.mark.parametrize(
    ("arguments", "works"),
    [
        ((16, 6), (16, 4)),
        ((16, 6), (18, 6)),
        ((16, 4, 3), (24, 4)),
        ((16, 16, 3), (18, 16)),
        ((14, 4, 2), (16, 4)),
        ((14, 3, 2), (14, 1)),
        ((4, 4, 8), (8, 4)),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused_with_one_that_can(arguments, works):
    with pytest.raises(ValueError, match="batch_size=") as caught:
        plan_batches(settings(*arguments))
    sentence = str(caught.value)
    assert "\n" not in sentence
    named = dict(re.findall(r"(batch_size|per_gpu_batchsize)=(\d+)", sentence.split(". Use ")[1]))
    assert str(works[0]) == named["batch_size"] or str(works[1]) == named["per_gpu_batchsize"]
    plan_batches(settings(*works, *arguments[2:]))


@pytest.mark.parametrize(
    ("objectives", "has_unused"),
    [
        (OBJECTIVES, False),
        ((*OBJECTIVES, "captioning"), False),
        (("mlm",), False),
        (("sal",), False),
        (("mim",), False),
        (("cml",), False),
        (("cml", "captioning"), False),
        (("dcl",), True),
        (("cml", "ssm"), True),
        (("captioning",), True),
    ],
)
def test_ddp_searches_for_unused_parameters_only_where_some_are_unused(objectives, has_unused, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    weights = {f"weight_{name}": float(name in objectives) for name in (*OBJECTIVES, "captioning")}
    settings = resolve(["tiny"], weights | {"accelerator": "cpu"})

    def train(strategy):
        module = PretrainModule(
            build(objectives=objectives), weights=dict.fromkeys(objectives, 1.0), optim=settings.optim, seed=0, identity={}
        )
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, strategy=strategy, max_steps=3, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        try:
            trainer.fit(module, DataLoader([random_batch()] * 3, batch_size=None))
        finally:
            torch.distributed.destroy_process_group()

    train(build_strategy(settings))
    options = build_strategy(settings)._ddp_kwargs
    assert options["find_unused_parameters"] is has_unused
    assert (options["broadcast_buffers"], options["gradient_as_bucket_view"]) == (False, True)
    if has_unused:
        with pytest.raises(RuntimeError, match="parameters that were not used"):
            train(DDPStrategy(process_group_backend="gloo", find_unused_parameters=False))


def test_requests_of_any_rank_are_known_one_call_later(monkeypatch):
    strategy = type("Strategy", (), {"root_device": torch.device("cpu")})
    agent = type("Trainer", (), {"strategy": strategy})
    alone = trainer_module._AnyRank()
    assert alone(agent, True, False) == [True, False]
    monkeypatch.setattr(trainer_module, "world_size", lambda: 2)
    other = iter([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    monkeypatch.setattr(trainer_module, "sum_over_ranks", lambda counts: counts + torch.tensor(next(other)))
    any_rank = trainer_module._AnyRank()
    answers = [any_rank(agent, *requests) for requests in ((True, False), (False, False), (False, False))]
    assert answers == [[False, False], [True, False], [False, True]]


@pytest.mark.parametrize(("device", "expected"), [("gpu", ["medium"]), ("cpu", [])])
def test_a_gpu_gets_its_precision_of_products_and_a_warning_of_defects(device, expected, monkeypatch):
    applied = []
    monkeypatch.setattr(trainer_module, "resolve_accelerator", lambda run: device)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", applied.append)
    monkeypatch.setattr(trainer_module, "convolution_defect", lambda *versions: f"a defect in {versions[-1]}")
    run = resolve([], {"float32_matmul_precision": "medium", "precision": "bf16-mixed"}).run
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_module.configure_gpu(run)
    assert applied == expected
    assert [str(warning.message) for warning in caught] == ["a defect in bf16-mixed"] * len(expected)
