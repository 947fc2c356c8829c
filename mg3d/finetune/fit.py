"""Training and evaluation of one fold."""

import io
import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mg3d.files import remove_partial, write_bytes
from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.console import info
from mg3d.finetune.dataset import Draw, EpochSampler, collate, in_order
from mg3d.finetune.encoder import build_encoder
from mg3d.finetune.module import FinetuneModule, gather_rows
from mg3d.finetune.settings import UNCOMPARED, FinetuneSettings, changed
from mg3d.finetune.tasks.base import TaskType
from mg3d.settings.schema import RunSettings
from mg3d.training.non_finite import NonFiniteGuard
from mg3d.training.run import is_first_rank
from mg3d.training.trainer import (
    AtomicCheckpointIO,
    TimeLimit,
    checkpoint_callbacks,
    csv_part,
    progress_bar,
    resolve_accelerator,
    resolve_devices,
    resolve_precision,
)

NON_FINITE_ADVICE = "Lower learning_rate or set grad_clip=1, and start a new run (run_name=...)"


def machine(settings: FinetuneSettings) -> RunSettings:
    """The settings about devices, as pre-training has them."""
    names = ("accelerator", "devices", "num_nodes", "precision")
    return RunSettings(**{name: getattr(settings, name) for name in names})


class FinetuneData(pl.LightningDataModule):
    """Loaders sharded over ranks: of training and validation (`split`), or of prediction (`data`)."""

    def __init__(self, task_type: TaskType, split: Split | None = None, data: Dataset | None = None) -> None:
        super().__init__()
        self.task_type, self.settings, self.data = task_type, task_type.settings, data
        if split is not None:
            self.training, self.draw = task_type.training_data(split.train)
            self.data = task_type.evaluation_data(split.val)

    def train_dataloader(self) -> DataLoader:
        """Samples of an epoch, drawn by seed and epoch."""
        ranks = {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}
        sampler = EpochSampler(self.draw, count=len(self.training), seed=self.settings.seed, **ranks)
        return _loader(self.training, sampler, self.settings, size=self.settings.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Every case once."""
        return evaluation_loader(self.data, self.task_type, rank=self.trainer.global_rank, ranks=self.trainer.world_size)

    predict_dataloader = val_dataloader


def _loader(data: Dataset, sampler: EpochSampler, settings: FinetuneSettings, *, size: int) -> DataLoader:
    return DataLoader(
        data,
        batch_size=size,
        sampler=sampler,
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_loader(data: Dataset, task_type: TaskType, *, rank: int = 0, ranks: int = 1) -> DataLoader:
    """Every sample once, in batches of `eval_batch_size`."""
    sampler = EpochSampler(in_order(len(data)), count=len(data), rank=rank, ranks=ranks)
    return _loader(data, sampler, task_type.settings, size=task_type.eval_batch_size or task_type.settings.batch_size)


def steps_per_epoch(draw: Draw, settings: FinetuneSettings, *, ranks: int) -> int:
    """Optimizer steps of one epoch."""
    per_rank = math.ceil(len(draw(torch.Generator().manual_seed(0))) / ranks)
    return math.ceil(math.ceil(per_rank / settings.batch_size) / settings.accumulate_grad_batches)


def train(task_type: TaskType, network: nn.Module, split: Split, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Trains until the last epoch, early stopping or the time limit; continues from the last checkpoint if there is one.

    Returns minutes, peak memory, epochs and more for scores.json.

    Raises:
        ValueError: the run in `folder` has other settings or cases.
    """
    settings, run = task_type.settings, machine(task_type.settings)
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        require_same_run(folder, read_finetuned(last)["mg3d_finetune"], config)
        info(f"continuing from {last}")
    data = FinetuneData(task_type, split)
    ranks = resolve_devices(run) * run.num_nodes
    module = FinetuneModule(
        network, task_type, steps_per_epoch=steps_per_epoch(data.draw, settings, ranks=ranks), config=config
    )  # fmt: skip
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    counts = {name: len(part) for name, part in split._asdict().items()}
    info(f"cases: {', '.join(f'{n} {name}' for name, n in counts.items())}; {trainable / 1e6:.2f} M trainable parameters")
    resources = Resources(on_gpu=resolve_accelerator(run) == "gpu")
    trainer = build_trainer(task_type, folder, several=ranks > 1)
    trainer.callbacks.append(resources)
    remove_partial(folder / "checkpoints")
    trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    stopping = trainer.early_stopping_callback
    ended = trainer.current_epoch >= settings.epochs or (stopping is not None and stopping.stopped_epoch > 0)
    facts = {"processes": ranks, "epochs": trainer.current_epoch, "finished": not settings.max_minutes or ended}
    return resources.state_dict() | facts | {"cases": counts, "parameters": trainable}


def fit_closed_form(
    task_type: TaskType, network: nn.Module, split: Split, folder: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Fits a task without SGD and writes its checkpoint; returns minutes and peak memory.

    Raises:
        ValueError: several processes.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 or not is_first_rank()  # there is no process group to ask
    if several or task_type.settings.devices > 1 or task_type.settings.num_nodes > 1:
        raise ValueError("this task is fitted by one process; use devices=1 num_nodes=1")
    on_gpu = resolve_accelerator(machine(task_type.settings)) == "gpu"
    resources = Resources(on_gpu=on_gpu)
    network.to("cuda" if on_gpu else "cpu").eval()
    task_type.fit_closed_form(network, split, folder)
    weights = {f"network.{name}": tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = io.BytesIO()
    torch.save({"state_dict": weights, "mg3d_finetune": dict(config)}, content)
    write_bytes(folder / "checkpoints" / "best.ckpt", content.getvalue())
    counts = {name: len(part) for name, part in split._asdict().items()}
    return resources.state_dict() | {"processes": 1, "cases": counts}


class Resources(pl.Callback):
    """Minutes and peak memory (1e9 bytes, of the first rank) of a run, summed over interruptions.

    Memory is that of PyTorch's allocator on a GPU, else the resident memory of the process.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu, self.start = on_gpu, time.monotonic()
        self.earlier_minutes, self.earlier_peak = 0.0, 0.0

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Resets the peak of an earlier fold."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def state_dict(self) -> dict[str, float]:
        """Totals so far."""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        peak = (torch.cuda.max_memory_allocated() if self.on_gpu else resident) / 1e9
        minutes = self.earlier_minutes + (time.monotonic() - self.start) / 60
        return {"minutes": minutes, "peak_memory_gb": max(self.earlier_peak, peak)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Totals when the checkpoint was written."""
        self.earlier_minutes, self.earlier_peak = state["minutes"], state["peak_memory_gb"]


def build_trainer(task_type: TaskType, folder: Path, *, several: bool) -> pl.Trainer:
    """The Trainer of one fold, writing into `folder`."""
    settings, metric = task_type.settings, f"val/{task_type.metric}"
    callbacks: list[pl.Callback] = [
        *checkpoint_callbacks(folder / "checkpoints", monitor=metric, mode="max"),
        LearningRateMonitor("step"),
        NonFiniteGuard(folder, names=itemgetter("case_id"), advice=NON_FINITE_ADVICE),
    ]
    if settings.patience:
        callbacks.append(EarlyStopping(metric, mode="max", patience=settings.patience))
    if settings.max_minutes:
        callbacks.append(TimeLimit(folder / "checkpoints" / "last.ckpt", settings.max_minutes))
    return pl.Trainer(
        **_devices(settings, several=several),
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        gradient_clip_val=settings.grad_clip or None,
        check_val_every_n_epoch=min(settings.val_epochs, settings.epochs),
        num_sanity_val_steps=0,
        log_every_n_steps=5,
        logger=[
            TensorBoardLogger(folder, name="", version="tensorboard"),
            CSVLogger(folder, name="csv", version=csv_part(folder)),
        ],
        plugins=[AtomicCheckpointIO()],
        callbacks=[*callbacks, _progress_bar()],
    )


def _devices(settings: FinetuneSettings, *, several: bool) -> dict[str, Any]:
    run = machine(settings)
    return {
        "accelerator": resolve_accelerator(run),
        "devices": resolve_devices(run),
        "num_nodes": run.num_nodes,
        "strategy": DDPStrategy(find_unused_parameters=True) if several else "auto",
        "precision": resolve_precision(run),
        "use_distributed_sampler": False,
        "enable_model_summary": False,
    }


def _progress_bar() -> pl.Callback:
    return progress_bar(20)


def predict(
    task_type: TaskType, network: nn.Module, cases: Sequence[FinetuneCase], *, masks: Path | None, collect_errors: bool = False
) -> pd.DataFrame:
    """Predictions of cases, one row or more each, gathered from all ranks (`trainer.predict`).

    collect_errors: cases that cannot be read become rows with `error` instead of an exception.
    """
    settings = task_type.settings
    if not task_type.uses_sgd:
        settings = settings.model_copy(update={"devices": 1, "num_nodes": 1})
    several = resolve_devices(machine(settings)) * settings.num_nodes > 1
    trainer = pl.Trainer(
        **_devices(settings, several=several), logger=False, enable_checkpointing=False, callbacks=[_progress_bar()],
    )  # fmt: skip
    module = FinetuneModule(network, task_type, masks=masks)
    data = FinetuneData(task_type, data=task_type.evaluation_data(cases, collect_errors=collect_errors))
    batches = trainer.predict(module, datamodule=data) or []
    return gather_rows([row for batch in batches for row in batch])


def evaluate(
    task_type: TaskType, network: nn.Module, split: Split, *, masks: Path | None
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Name of each evaluated split -> predictions."""
    parts = {name: part for name, part in (("val", split.val), ("test", split.test)) if part}
    return {name: task_type.finish(predict(task_type, network, part, masks=masks)) for name, part in parts.items()}


def require_same_run(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises ValueError if the run in `folder` differs in network, settings or cases from the one that is started."""
    other = "run_name=... starts another run"
    if not current["settings"]["resume"]:
        raise ValueError(f"{folder} holds a run; {other}")
    differences = changed(stored["settings"], current["settings"], ignore=UNCOMPARED)
    if differences:
        raise ValueError(f"{folder} holds a run with other settings: {', '.join(differences[:4])}; {other}")
    if stored["cases"] != current["cases"]:
        counts = [
            f"{name} {stored['cases'].get(name, '?').split('-')[0]} (now {digest.split('-')[0]})"
            for name, digest in current["cases"].items()
            if stored["cases"].get(name) != digest
        ]
        raise ValueError(f"{folder} holds a run on other cases or folds: {', '.join(counts)}; check data_root; {other}")
    for name, meaning in (("folder", "data set"), ("vision", "encoder"), ("state", "vocabulary or head")):
        if name in current and stored[name] != current[name]:
            raise ValueError(f"{folder} holds a run with another {meaning}; {other}")


def read_finetuned(path: Path) -> dict[str, Any]:
    """A fine-tuned checkpoint, on the CPU; nothing is unpickled but tensors and builtins.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or not a fine-tuned checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; train first, or set checkpoint=...")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__}); it may be truncated") from error
    if not isinstance(stored, dict) or "mg3d_finetune" not in stored:
        raise ValueError(f"{path} is not a fine-tuned checkpoint; pre-trained weights are set with pretrained=...")
    return stored


def load_network(task_type: TaskType, stored: Mapping[str, Any]) -> nn.Module:
    """The network of a fine-tuned checkpoint, in eval mode; restores the state of the task type.

    Raises:
        ValueError: the weights do not fit.
    """
    config = stored["mg3d_finetune"]
    task_type.restore(config["state"])
    network = task_type.network(build_encoder(config["vision"]) if task_type.uses_encoder else None)
    weights = {name.removeprefix("network."): part for name, part in stored["state_dict"].items() if name.startswith("network.")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit this task: {' '.join(str(error).split())[:200]}") from error
    return network.eval()
