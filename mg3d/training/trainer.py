"""The Lightning Trainer: hardware, precision, loggers, checkpoints, time limit and preemption."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ProgressBar, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_warn

from mg3d.distributed import sum_over_ranks, world_size
from mg3d.files import replacing
from mg3d.precision import convolution_defect, resolve_precision
from mg3d.settings.schema import RunSettings, Settings, objective_weights
from mg3d.training.host_copy import HostCopy
from mg3d.training.non_finite import NonFiniteGuard
from mg3d.training.speed import DataWait, Speed

LINE_INTERVAL_S = 30
"""Seconds between progress lines in a log file."""


class TerminalProgressBar(RichProgressBar):
    """Progress bar for a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, Any] = {}

    def get_metrics(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        """Metrics after the bar: the step out of all steps, and the last logged values.

        Values of other steps are read on a CPU only: the host would wait for a GPU in every step.
        """
        if module.device.type == "cpu" or trainer.global_step % trainer.log_every_n_steps == 0:
            self._shown = super().get_metrics(trainer, module)
            self._shown.pop("v_num", None)  # the logger's version number
        return {"step": f"{trainer.global_step}/{trainer.estimated_stepping_batches}"} | self._shown

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training" if self.trainer.max_epochs == -1 else super()._get_train_description(current_epoch)


class ProgressLines(ProgressBar):
    """Progress for a log file: a line after the first and the last step of this process, and every `LINE_INTERVAL_S` seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True
        self._last_line: tuple[float, int] = (0.0, 0)
        self._batch_line = time.monotonic()

    def enable(self) -> None:
        """Called by Lightning on rank 0."""
        self.is_enabled = True

    def disable(self) -> None:
        """Called by Lightning on all other ranks."""
        self.is_enabled = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._last_line, self._first_step = (time.monotonic(), trainer.global_step), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Prints the step, the loss, and the time per step since the previous line."""
        (then, before), now, step = self._last_line, time.monotonic(), trainer.global_step
        total = trainer.estimated_stepping_batches
        is_due = now - then >= LINE_INTERVAL_S or step in (self._first_step + 1, total)
        if not self.is_enabled or step == before or not is_due:
            return
        seconds = (now - then) / (step - before)
        self._last_line = now, step
        metrics = self.get_metrics(trainer, module)
        values = "".join(f"{name} {value:.4g}, " for name, value in metrics.items() if isinstance(value, float))
        print(f"mg3d: step {step}/{total}, {values}{seconds:.3g} s per step", flush=True)

    def on_validation_batch_end(self, trainer: pl.Trainer, *step: Any) -> None:
        """Prints the batch of a long validation."""
        self._print_batch("validation", step[3], trainer.num_val_batches[0])

    def on_predict_batch_end(self, trainer: pl.Trainer, *step: Any) -> None:
        """Prints the batch of a long evaluation."""
        self._print_batch("evaluation", step[3], trainer.num_predict_batches[0])

    def _print_batch(self, stage: str, batch_index: int, total: int | float) -> None:
        if self.is_enabled and time.monotonic() - self._batch_line >= LINE_INTERVAL_S:
            self._batch_line = time.monotonic()
            print(f"mg3d: {stage}, batch {batch_index + 1}/{total}", flush=True)


def progress_bar() -> Callback:
    """A bar for the terminal, or lines for a log file."""
    is_terminal = sys.stdout.isatty() and not torch.distributed.is_torchelastic_launched()
    return TerminalProgressBar() if is_terminal else ProgressLines()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: a full disk or a killed process leaves the previous one intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes one checkpoint."""
        with replacing(Path(path)) as stream:
            torch.save(checkpoint, stream)


class Preempted(Exception):
    """Training stopped on a scheduler's signal; its checkpoint is written, and the same command resumes."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step} by a signal; resume_from=auto resumes from there")


class TimeLimit(Callback):
    """Saves a checkpoint and stops training between two optimizer steps, `minutes` after training starts in this process."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.seconds, self.deadline = path, minutes * 60, float("inf")
        self.reached, self._any_rank = False, _AnyRank()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.deadline = time.monotonic() + self.seconds

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Checks the clock after every optimizer step; all ranks stop together."""
        if _completes_step(trainer, batch_index) and any(self._any_rank(trainer, time.monotonic() >= self.deadline)):
            self.reached = True
            trainer.save_checkpoint(self.path, weights_only=False)  # before the validation that stopping triggers
            trainer.should_stop = True


class PreemptionHandler(Callback):
    """Saves a checkpoint and stops training on Ctrl-C, and on SIGUSR1, which schedulers send before they end a job.

    Stops between two optimizer steps, or within a validation: that may take longer than the scheduler waits. A validation that
    is cut off or left out is repeated when the run resumes. A second Ctrl-C stops at once, without a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.preempted = False
        """Whether any rank received SIGUSR1."""
        self.interrupted = False
        """Whether any rank received Ctrl-C."""
        self._any_rank = _AnyRank()
        self._received: set[int] = set()
        self._validated_step = -1
        self._previous_handlers: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Installs the handler before loader processes start; they inherit it, and would be killed by the signal otherwise."""
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            for number in (signal.SIGUSR1, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def _on_signal(self, number: int, frame: Any) -> None:
        self._received.add(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            if os.getpid() == self._process:  # loader processes receive Ctrl-C as well
                os.write(2, b"\nmg3d: saving a checkpoint after this step; press Ctrl-C again to stop without one\n")

    def _should_stop(self, trainer: pl.Trainer) -> bool:
        received = (number in self._received for number in (signal.SIGUSR1, signal.SIGINT))
        self.preempted, self.interrupted = self._any_rank(trainer, *received)
        return self.preempted or self.interrupted

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Checks for a signal after every optimizer step; all ranks stop together."""
        if _completes_step(trainer, batch_index) and self._should_stop(trainer):
            trainer.save_checkpoint(self.path, weights_only=False)
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # or Lightning would validate before it stops

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any, **named: Any) -> None:
        """Raises Preempted or KeyboardInterrupt. No rank is left waiting: all have the same number of validation batches."""
        if self._should_stop(trainer):
            trainer.save_checkpoint(self.path, weights_only=False)
            raise KeyboardInterrupt if self.interrupted else Preempted(trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remembers that this step is validated."""
        self._validated_step = trainer.global_step

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores whether this step is validated; read by `PretrainModule.on_load_checkpoint`."""
        checkpoint["validated"] = self._validated_step == trainer.global_step


def _completes_step(trainer: pl.Trainer, batch_index: int) -> bool:
    return (batch_index + 1) % trainer.accumulate_grad_batches == 0


class _AnyRank:
    """Whether any rank made a request. With several ranks the answer is one call old, so that no rank waits for its device."""

    def __init__(self) -> None:
        self._previous: HostCopy | None = None

    def __call__(self, trainer: pl.Trainer, *requests: bool) -> list[bool]:
        """The requests of any rank in the previous call; all ranks must call it equally often."""
        if world_size() == 1:
            return list(requests)
        device, previous = trainer.strategy.root_device, self._previous
        counts = sum_over_ranks(torch.stack([torch.full((), float(request), device=device) for request in requests]))
        self._previous = HostCopy(counts)
        return [count > 0 for count in previous.tolist()] if previous else [False] * len(requests)


def resolve_accelerator(run: RunSettings) -> str:
    """`cpu` or `gpu`; ValueError for accelerator=gpu without a GPU."""
    available = torch.cuda.is_available()
    if run.accelerator == "gpu" and not available:
        raise ValueError("accelerator=gpu, but torch sees no GPU; use a GPU machine, or accelerator=cpu with the preset tiny")
    if run.accelerator == "auto":
        return "gpu" if available else "cpu"
    return run.accelerator


def resolve_device(run: RunSettings) -> torch.device:
    """The device of this process outside of the Trainer."""
    return torch.device("cuda" if resolve_accelerator(run) == "gpu" else "cpu")


def resolve_devices(run: RunSettings) -> int:
    """Number of processes on this node: `devices`, or every GPU, or one."""
    if resolve_accelerator(run) == "cpu":
        return max(run.devices, 1)
    available = torch.cuda.device_count()
    if run.devices > available:
        raise ValueError(f"devices={run.devices}, but this node has {available} GPU(s)")
    return run.devices or available


def configure_gpu(run: RunSettings) -> None:
    """On a GPU only: applies `float32_matmul_precision` for the rest of the process, and warns of defects of its libraries."""
    if resolve_accelerator(run) == "gpu":
        torch.set_float32_matmul_precision(run.float32_matmul_precision)
        precision = resolve_precision(run.precision, resolve_device(run))
        defect = convolution_defect(torch.__version__, torch.backends.cudnn.version(), precision)
        if defect:
            rank_zero_warn(defect)


class BatchPlan(NamedTuple):
    """How the `batch_size` volumes of an optimizer step are split: exactly ranks * per_rank * accumulation_steps."""

    ranks: int
    """Processes over all nodes."""
    per_rank: int
    """Volumes per rank and micro-batch."""
    accumulation_steps: int
    """Micro-batches per optimizer step."""

    @property
    def micro_batch(self) -> int:
        """Volumes of a micro-batch over all ranks, which the contrastive losses compare."""
        return self.ranks * self.per_rank


def plan_batches(settings: Settings, ranks: int | None = None) -> BatchPlan:
    """Splits `batch_size` over ranks (default: those of this run) into micro-batches of at most `per_gpu_batchsize` volumes.

    Raises:
        ValueError: it cannot be split evenly; the message suggests values that work.
    """
    ranks = ranks or resolve_devices(settings.run) * settings.run.num_nodes
    total, maximum = settings.optim.batch_size, settings.optim.per_gpu_batchsize
    each, rest = divmod(total, ranks)
    if rest == 0 and (each <= maximum or each % maximum == 0):
        return BatchPlan(ranks, min(each, maximum), each // min(each, maximum))
    multiple = ranks if total <= ranks * maximum else ranks * maximum
    suggestion = f"batch_size={-(-total // multiple) * multiple}"
    if rest:
        raise ValueError(f"batch_size={total} is not divisible by {ranks} processes. Use {suggestion}, or other devices")
    fits = next(size for size in range(maximum, 0, -1) if each % size == 0)
    raise ValueError(
        f"batch_size={total} over {ranks} process(es) is {each} volumes each, not a multiple of per_gpu_batchsize={maximum}. "
        f"Use per_gpu_batchsize={fits} or {suggestion}"
    )


def checkpoint_callbacks(
    folder: Path, *, monitor: str = "", mode: str = "min", every_steps: int | None = None
) -> tuple[ModelCheckpoint, ...]:
    """`last` after every validation, and `best` by the metric `monitor`; with `every_steps`, only `last` at that interval.

    Lightning's `save_last` saves only when `best` changes, so that a resumed run would go back to its best validation.
    """
    common = {"dirpath": folder, "save_top_k": 1, "enable_version_counter": False}
    if every_steps:
        return (ModelCheckpoint(filename="last", every_n_train_steps=every_steps, **common),)
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=False, **common)
    return ModelCheckpoint(filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=False, **common), last


def ddp_strategy(run: RunSettings, *, find_unused_parameters: bool) -> DDPStrategy:
    """DDP of pre-training and fine-tuning. Without a search, every trained parameter needs a gradient in every step.

    Buffers are not broadcast in every step (97 MB with Swin-B and RadBERT): training changes none. Gradients are views of the
    buckets that are reduced, which saves a copy. The graph is not declared static, because GradCache and accumulation change it.
    """
    return DDPStrategy(
        process_group_backend="gloo" if resolve_accelerator(run) == "cpu" else None,
        find_unused_parameters=find_unused_parameters,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def build_strategy(settings: Settings) -> DDPStrategy:
    """Searches for parameters without a gradient, which costs time in every step, only where there are any.

    With wiring=paper: DCL and SSM each leave the other's head of their common aggregation unused, and captioning alone the text
    encoder.
    """
    objectives = objective_weights(settings.loss).keys()
    has_unused = ("dcl" in objectives) != ("ssm" in objectives) or objectives == {"captioning"}
    return ddp_strategy(settings.run, find_unused_parameters=settings.model.wiring != "paper" or has_unused)


def csv_part(run_dir: Path) -> str:
    """Name of the next part of the CSV log: CSVLogger empties its folder, and a resumed run must keep earlier parts."""
    return f"part-{sum(1 for _ in run_dir.glob('csv/part-*')):03d}"


def build_trainer(
    settings: Settings,
    run_dir: Path,
    *,
    validates: bool = True,
    volume_flops: float | None = None,
    extra: tuple[Callback, ...] = (),
) -> pl.Trainer:
    """The Trainer of a run that writes into `run_dir`; volume_flops as for `Speed`."""
    run, plan, checkpoints = settings.run, plan_batches(settings), run_dir / "checkpoints"
    speed = Speed(DataWait(), volume_flops=volume_flops)
    limits = (TimeLimit(checkpoints / "last.ckpt", run.max_minutes),) if run.max_minutes else ()
    # Lightning's own requeueing would not know the position in the data.
    is_srun = SLURMEnvironment.detect() and not torch.distributed.is_torchelastic_launched()
    configure_gpu(run)
    return pl.Trainer(
        accelerator=resolve_accelerator(run),
        devices=resolve_devices(run),
        num_nodes=run.num_nodes,
        strategy=build_strategy(settings) if plan.ranks > 1 else "auto",
        precision=resolve_precision(run.precision, resolve_device(run)),
        max_steps=settings.optim.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=plan.accumulation_steps,
        gradient_clip_val=settings.optim.grad_clip or None,
        val_check_interval=run.val_interval * plan.accumulation_steps,
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
        plugins=[AtomicCheckpointIO(), *([SLURMEnvironment(auto_requeue=False)] if is_srun else [])],
        callbacks=[
            *checkpoint_callbacks(checkpoints, monitor="val/total", every_steps=None if validates else run.val_interval),
            LearningRateMonitor("step"),
            progress_bar(),
            PreemptionHandler(checkpoints / "last.ckpt"),
            *limits,
            NonFiniteGuard(run_dir),
            speed,
            *extra,
        ],
        profiler=speed.wait,
    )
