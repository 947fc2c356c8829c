"""Training and evaluation of one fold."""

import io
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, Timer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mg3d.files import remove_partial, write_bytes
from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.dataset import CaseDataset, EpochSampler, in_order, worker_order
from mg3d.finetune.distributed import info
from mg3d.finetune.encoder import build_encoder
from mg3d.finetune.module import FinetuneModule, gather_rows
from mg3d.finetune.settings import UNCOMPARED, FinetuneSettings, changed
from mg3d.finetune.tasks.base import TaskType
from mg3d.precision import autocast, resolve_precision
from mg3d.settings.schema import RunSettings
from mg3d.training.non_finite import NonFiniteGuard
from mg3d.training.run import is_first_rank
from mg3d.training.trainer import (
    AtomicCheckpointIO,
    PreemptionHandler,
    TimeLimit,
    checkpoint_callbacks,
    configure_gpu,
    csv_part,
    ddp_strategy,
    progress_bar,
    resolve_accelerator,
    resolve_device,
    resolve_devices,
)

NON_FINITE_ADVICE = "Lower learning_rate or set grad_clip=1, and start a new run (run_name=...)"


def machine(settings: FinetuneSettings) -> RunSettings:
    """The settings about devices, as pre-training has them."""
    names = ("accelerator", "devices", "num_nodes", "precision")
    return RunSettings(**{name: getattr(settings, name) for name in names})


def training_loader(task_type: TaskType, cases: Sequence[FinetuneCase]) -> DataLoader:
    """Training samples; seed and epoch decide which of them an epoch draws."""
    data, draw = task_type.training_data(cases)
    sampler = EpochSampler(draw, count=len(data), seed=task_type.settings.seed, contiguous=task_type.samples_share_scans)
    return _loader(task_type, data, sampler, batch_size=task_type.settings.batch_size)


def evaluation_loader(task_type: TaskType, cases: Sequence[FinetuneCase], *, collect_errors: bool = False) -> DataLoader:
    """Every sample once, in batches of `eval_batch_size`."""
    data = task_type.evaluation_data(cases, collect_errors=collect_errors)
    batch_size, workers = task_type.eval_batch_size or task_type.settings.batch_size, task_type.settings.num_workers
    shared = task_type.samples_share_scans
    reorder = partial(worker_order, batch_size=batch_size, workers=workers) if shared else None
    sampler = EpochSampler(in_order(len(data)), count=len(data), contiguous=shared, reorder=reorder)
    return _loader(task_type, data, sampler, batch_size=batch_size)


def _loader(task_type: TaskType, data: Dataset, sampler: EpochSampler, *, batch_size: int) -> DataLoader:
    workers = task_type.settings.num_workers
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=task_type.collate,
        pin_memory=torch.cuda.is_available(),
    )


def train(task_type: TaskType, network: nn.Module, split: Split, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Trains until the last epoch, early stopping or the time limit; continues from the last checkpoint if there is one.

    Returns minutes, peak memory, epochs and more for scores.json.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGUSR1, with a checkpoint.
        ValueError: the run in `folder` has other settings or cases.
    """
    settings, last = task_type.settings, folder / "checkpoints" / "last.ckpt"
    batches = training_loader(task_type, split.train)
    if last.is_file():
        stored = read_finetuned(last)
        require_same_run(folder, stored["mg3d_finetune"], config)
        epoch, used = resume_position(stored)
        batches.sampler.resume(epoch, used * settings.batch_size)
        info(f"continuing from {last}")
    module = FinetuneModule(network, task_type, config=config)
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    counts = {name: len(part) for name, part in split._asdict().items()}
    info(f"cases: {', '.join(f'{n} {name}' for name, n in counts.items())}; {trainable / 1e6:.2f} M trainable parameters")
    trainer, timer = build_trainer(task_type, folder), Timer()
    trainer.callbacks.append(timer)
    remove_partial(folder / "checkpoints")
    if isinstance(batches.dataset, CaseDataset) and (message := batches.dataset.describe_cache(max(1, settings.num_workers))):
        info(message)
    checkpoint = last if last.is_file() else None
    try:
        trainer.fit(module, batches, evaluation_loader(task_type, split.val), ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning's answer to a second Ctrl-C
        if not trainer.interrupted:
            raise
    if trainer.interrupted or any(isinstance(one, StopAfterStep) and one.is_stopped for one in trainer.callbacks):
        raise KeyboardInterrupt
    stopping = trainer.early_stopping_callback
    ended = trainer.current_epoch >= settings.epochs or (stopping is not None and stopping.stopped_epoch > 0)
    return {
        "minutes": timer.time_elapsed("train") / 60,
        "peak_memory_gb": peak_memory_gb(),
        "processes": trainer.world_size,
        "epochs": trainer.current_epoch,
        "finished": not settings.max_minutes or ended,
        "cases": counts,
        "parameters": trainable,
    }


def resume_position(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Epoch with which a run continues, and how many of its batches (of each process) are already used."""
    loop = checkpoint["loops"]["fit_loop"]
    epoch, batches = loop["epoch_progress"]["current"]["processed"], loop["epoch_loop.batch_progress"]
    return (epoch + 1, 0) if batches["is_last_batch"] else (epoch, batches["current"]["processed"])


class StopAfterStep(PreemptionHandler):
    """Saves and stops between two optimizer steps; after the last one of an epoch, once its validation is finished."""

    is_stopped = False

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """As in pre-training, except before a validation, which would not be repeated."""
        is_last = batch_index + 1 == trainer.num_training_batches
        if not is_last or (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:
            super().on_train_batch_end(trainer, module, outputs, batch, batch_index)
            self.is_stopped = trainer.should_stop and (self.preempted or self.interrupted)

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any, **named: Any) -> None:
        """Does not stop within a validation."""

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stops; the checkpoint of the validation is written next."""
        if self._should_stop(trainer):
            self.is_stopped = trainer.should_stop = True


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
    start = time.monotonic()
    device = resolve_device(machine(task_type.settings))
    network.to(device).eval()
    with autocast(task_type.settings.precision, device):  # as `predict` computes
        task_type.fit_closed_form(network, split, folder.parent)  # shared by the folds
    weights = {f"network.{name}": tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = io.BytesIO()
    torch.save({"state_dict": weights, "mg3d_finetune": dict(config)}, content)
    write_bytes(folder / "checkpoints" / "best.ckpt", content.getvalue())
    counts = {name: len(part) for name, part in split._asdict().items()}
    minutes = (time.monotonic() - start) / 60
    return {"minutes": minutes, "peak_memory_gb": peak_memory_gb(), "processes": 1, "cases": counts}


def peak_memory_gb() -> float:
    """Peak memory of this process in 1e9 bytes: of PyTorch's allocator on a GPU, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def build_trainer(task_type: TaskType, folder: Path) -> pl.Trainer:
    """The Trainer of one fold, writing into `folder`."""
    settings, metric = task_type.settings, f"val/{task_type.selection}"
    callbacks: list[pl.Callback] = [
        *checkpoint_callbacks(folder / "checkpoints", monitor=metric, mode="max"),
        LearningRateMonitor("step"),
        StopAfterStep(folder / "checkpoints" / "last.ckpt"),
        NonFiniteGuard(folder, names=itemgetter("case_id"), advice=NON_FINITE_ADVICE),
    ]
    if settings.patience:
        callbacks.append(EarlyStopping(metric, mode="max", patience=settings.patience))
    if settings.max_minutes:
        callbacks.append(TimeLimit(folder / "checkpoints" / "last.ckpt", settings.max_minutes))
    return pl.Trainer(
        **_devices(settings),
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
        callbacks=[*callbacks, progress_bar()],
    )


def _devices(settings: FinetuneSettings) -> dict[str, Any]:
    run = machine(settings)
    devices = resolve_devices(run)
    configure_gpu(run)
    return {
        "accelerator": resolve_accelerator(run),
        "devices": devices,
        "num_nodes": run.num_nodes,
        "strategy": ddp_strategy(run, find_unused_parameters=False) if devices * run.num_nodes > 1 else "auto",
        "precision": resolve_precision(run.precision, resolve_device(run)),
        "use_distributed_sampler": False,
        "enable_model_summary": False,
    }


def predict(
    task_type: TaskType,
    network: nn.Module,
    cases: Sequence[FinetuneCase],
    *,
    mask_folder: Path | None = None,
    collect_errors: bool = False,
) -> pd.DataFrame:
    """Predictions of cases, one row or more each, gathered from all ranks.

    collect_errors: cases that cannot be read become rows with `error` instead of an exception.
    """
    settings = task_type.settings
    if not task_type.uses_sgd:
        settings = settings.model_copy(update={"devices": 1, "num_nodes": 1})
    trainer = pl.Trainer(**_devices(settings), logger=False, enable_checkpointing=False, callbacks=[progress_bar()])
    module = FinetuneModule(network, task_type, mask_folder=mask_folder)
    batches = trainer.predict(module, evaluation_loader(task_type, cases, collect_errors=collect_errors)) or []
    return gather_rows([row for batch in batches for row in batch])


def evaluate(task_type: TaskType, network: nn.Module, split: Split, *, mask_folder: Path | None) -> dict[str, pd.DataFrame]:
    """Name of each evaluated split -> predictions."""
    parts = {name: part for name, part in (("val", split.val), ("test", split.test)) if part}
    return {
        name: task_type.finish(predict(task_type, network, part, mask_folder=mask_folder)) for name, part in parts.items()
    }


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
