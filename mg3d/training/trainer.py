"""The Lightning Trainer: machine, precision, loggers, checkpoints, progress."""

import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy

from mg3d.files import replacing
from mg3d.settings.schema import RunSettings, Settings
from mg3d.training.finite import StopAtNotFinite
from mg3d.training.speed import DataWait, Speed


class RichBar(RichProgressBar):
    """The bar of a terminal, without the logger's version number."""

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        """What stands behind the bar."""
        return {name: value for name, value in super().get_metrics(*arguments).items() if name != "v_num"}


class PlainBar(TQDMProgressBar):
    """The bar of a log file, without the logger's version number."""

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Ends the bars' lines, so that what is said next has one of its own."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        """What stands behind the bar."""
        return {name: value for name, value in super().get_metrics(*arguments).items() if name != "v_num"}


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all: a full disk or a kill leaves the one before. Lightning writes elsewhere first,
    and moving from there to another disk can be cut off."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes one checkpoint."""
        with replacing(Path(path)) as stream:
            torch.save(checkpoint, stream)


class Preempted(Exception):
    """Training stopped on a scheduler's signal; its checkpoint is written, and the same command resumes."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step} by a signal; resume_from=auto resumes from there")


class TimeLimit(Callback):
    """Saves a checkpoint and stops training between two optimiser steps, `minutes` after training starts in this process."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.seconds, self.deadline = path, minutes * 60, float("inf")

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.deadline = time.monotonic() + self.seconds

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Checks the clock after every optimiser step; all ranks stop together."""
        if _completes_step(trainer, batch_index) and _any_rank(trainer, time.monotonic() >= self.deadline):
            trainer.save_checkpoint(self.path, weights_only=False)  # before the validation that stopping triggers
            trainer.should_stop = True


class PreemptionHandler(Callback):
    """Saves a checkpoint and stops training on SIGUSR1, which schedulers send before they end a job.

    Stops between two optimiser steps, or within a validation: that may take longer than the scheduler waits. A validation that
    is cut off or left out is repeated when the run resumes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.preempted = False
        """Whether any rank received the signal."""
        self._signalled = False
        self._validated_step = -1
        self._previous_handler: Any = None

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Installs the handler before loader processes start; they inherit it, and would be killed by the signal otherwise."""
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGUSR1, self._on_signal)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Restores the previous signal handler."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGUSR1, self._previous_handler)
            self._previous_handler = None

    def _on_signal(self, *arguments: Any) -> None:
        self._signalled = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Checks for the signal after every optimiser step; all ranks stop together."""
        if _completes_step(trainer, batch_index) and _any_rank(trainer, self._signalled):
            self.preempted = True
            trainer.save_checkpoint(self.path, weights_only=False)
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning validates when it is asked to stop

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any, **named: Any) -> None:
        """Raises Preempted on the signal. Every rank has the same number of validation batches, so no rank is left waiting."""
        if _any_rank(trainer, self._signalled):
            trainer.save_checkpoint(self.path, weights_only=False)
            raise Preempted(trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remembers that this step is validated."""
        self._validated_step = trainer.global_step

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores whether this step is validated; read by `PretrainModule.on_load_checkpoint`."""
        checkpoint["validated"] = self._validated_step == trainer.global_step


def _completes_step(trainer: pl.Trainer, batch_index: int) -> bool:
    return (batch_index + 1) % trainer.accumulate_grad_batches == 0


def _any_rank(trainer: pl.Trainer, value: bool) -> bool:
    return trainer.strategy.reduce_boolean_decision(value, all=False)


def resolve_accelerator(run: RunSettings) -> str:
    """`cpu` or `gpu`; ValueError when a GPU is asked for and none is there."""
    available = torch.cuda.is_available()
    if run.accelerator == "gpu" and not available:
        raise ValueError(
            "accelerator=gpu, but torch sees no GPU here; use accelerator=cpu (with the preset tiny) or a GPU machine"
        )
    if run.accelerator == "auto":
        return "gpu" if available else "cpu"
    return run.accelerator


def resolve_devices(run: RunSettings) -> int:
    """Processes on this node: what `devices` says, else every GPU, else one."""
    if resolve_accelerator(run) == "cpu":
        return max(run.devices, 1)
    there = torch.cuda.device_count()
    if run.devices > there:
        raise ValueError(f"devices={run.devices}, but this node has {there} GPU(s)")
    return run.devices or there


def resolve_precision(run: RunSettings) -> str:
    """`auto` resolved: bf16 where the GPU computes it, fp16 on other GPUs, 32 bits on CPU."""
    if run.precision != "auto":
        return run.precision
    if resolve_accelerator(run) == "cpu":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


class BatchPlan(NamedTuple):
    """How the `batch_size` volumes of one optimiser step are shared: ranks * per_rank * passes of them, exactly."""

    ranks: int
    """Processes on all nodes."""
    per_rank: int
    """Volumes per rank and pass."""
    passes: int
    """Passes per optimiser step."""

    @property
    def per_pass(self) -> int:
        """Volumes of one pass over all ranks: the ones that are contrasted with one another."""
        return self.ranks * self.per_rank


def plan_batches(settings: Settings) -> BatchPlan:
    """How the ranks of this machine, and of the other nodes, share `batch_size`; see `share_batch`."""
    return share_batch(settings, resolve_devices(settings.run) * settings.run.num_nodes)


def share_batch(settings: Settings, ranks: int) -> BatchPlan:
    """Shares `batch_size` among so many ranks, in passes of at most `per_gpu_batchsize` volumes.

    Raises:
        ValueError: it cannot be shared evenly; the sentence names a value that works.
    """
    asked, most = settings.optim.batch_size, settings.optim.per_gpu_batchsize
    share = asked // ranks
    if asked % ranks == 0 and (share <= most or share % most == 0):
        return BatchPlan(ranks, min(share, most), share // min(share, most))
    step = ranks if asked <= ranks * most else ranks * most
    works = f"batch_size={-(-asked // step) * step}"
    if asked % ranks:
        raise ValueError(f"batch_size={asked} cannot be shared evenly by {ranks} processes; use {works}, or other devices")
    fits = next(size for size in range(most, 0, -1) if share % size == 0)
    raise ValueError(
        f"batch_size={asked} gives each of {ranks} process(es) {share} volumes a step, which passes of "
        f"per_gpu_batchsize={most} do not make up; use per_gpu_batchsize={fits} or {works}"
    )


def checkpoints(
    folder: Path, *, monitor: str = "", mode: str = "min", every_steps: int | None = None
) -> tuple[ModelCheckpoint, ...]:
    """`last` after every validation and, with `monitor`, `best` by it; with `every_steps`, `last` alone, so many steps apart.

    Two callbacks, because Lightning's own `save_last` writes only when the best has changed: a run that was cut off would go
    back to its best validation.
    """
    named = {"dirpath": folder, "save_top_k": 1, "enable_version_counter": False}
    if every_steps:
        return (ModelCheckpoint(filename="last", every_n_train_steps=every_steps, **named),)
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=False, **named)
    return ModelCheckpoint(filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=False, **named), last


def build_strategy(settings: Settings) -> DDPStrategy:
    """Data-parallel training over all ranks; parameters without gradient are looked for only where some can be."""
    off = any(weight == 0 for weight in vars(settings.loss).values())
    return DDPStrategy(
        process_group_backend="gloo" if resolve_accelerator(settings.run) == "cpu" else None,
        find_unused_parameters=settings.model.wiring != "paper" or off,
    )


def csv_part(run_dir: Path) -> str:
    """Name of a new part of the run's CSV log: the logger empties the folder it is given, and a resumed run must keep the old."""
    return f"part-{sum(1 for _ in run_dir.glob('csv/part-*')):03d}"


def build_trainer(
    settings: Settings,
    run_dir: Path,
    *,
    validates: bool = True,
    volume_flops: float | None = None,
    extra: tuple[Callback, ...] = (),
) -> pl.Trainer:
    """The Trainer of one run, writing into `run_dir`; volume_flops as for `Speed`."""
    run, devices, steps_apart = settings.run, resolve_devices(settings.run), plan_batches(settings).passes
    speed = Speed(DataWait(), volume_flops=volume_flops)
    several = devices * run.num_nodes > 1
    terminal = torch.distributed.is_torchelastic_launched() is False and _is_terminal()
    progress = RichBar() if terminal else PlainBar(refresh_rate=max(1, run.log_interval))
    kept = checkpoints(run_dir / "checkpoints", monitor="val/total", every_steps=None if validates else run.val_interval)
    # Its own way of going on in another job would not know where in the data a run stands.
    by_srun = SLURMEnvironment.detect() and not torch.distributed.is_torchelastic_launched()
    environment = [SLURMEnvironment(auto_requeue=False)] if by_srun else []
    last = run_dir / "checkpoints" / "last.ckpt"
    limits = (TimeLimit(last, run.max_minutes),) if run.max_minutes else ()
    watches = (PreemptionHandler(last), *limits, StopAtNotFinite(run_dir), speed)
    return pl.Trainer(
        accelerator=resolve_accelerator(run),
        devices=devices,
        num_nodes=run.num_nodes,
        strategy=build_strategy(settings) if several else "auto",
        precision=resolve_precision(run),
        max_steps=settings.optim.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=steps_apart,
        gradient_clip_val=settings.optim.grad_clip or None,
        val_check_interval=run.val_interval * steps_apart,
        check_val_every_n_epoch=None,
        limit_val_batches=(run.val_batches or 1.0) if validates else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=run.log_interval,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=[
            TensorBoardLogger(run_dir, name="", version="tensorboard"),
            CSVLogger(run_dir, name="csv", version=csv_part(run_dir)),
        ],
        plugins=[WholeCheckpoints(), *environment],
        callbacks=[*kept, LearningRateMonitor("step"), progress, *watches, *extra],
        profiler=speed.wait,
    )


def _is_terminal() -> bool:
    return sys.stdout.isatty()
