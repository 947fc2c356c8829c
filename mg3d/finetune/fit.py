"""Training of one fold, and evaluation of its best checkpoint."""

import dataclasses
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from monai.data.utils import list_data_collate
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mg3d.distributed import rank, world_size
from mg3d.files import remove_partial
from mg3d.finetune.cases import Case, Parts, divided, refuse_other_cases
from mg3d.finetune.encoder import build_encoder
from mg3d.finetune.kinds.base import Draw, Kind
from mg3d.finetune.module import FinetuneModule, gathered
from mg3d.finetune.pipeline import TicketSampler, in_order
from mg3d.finetune.settings import FinetuneSettings
from mg3d.settings.schema import RunSettings
from mg3d.training.non_finite import NonFiniteGuard
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


def machine(settings: FinetuneSettings) -> RunSettings:
    """What of the settings is about the machine."""
    names = ("accelerator", "devices", "num_nodes", "precision")
    return RunSettings(**{name: getattr(settings, name) for name in names})


class Data(pl.LightningDataModule):
    """Loaders of one fold; each rank draws its own share."""

    def __init__(self, kind: Kind, parts: Parts) -> None:
        super().__init__()
        self.kind, self.settings = kind, kind.settings
        self.training, self.draw = kind.training_data(parts.train)
        self.validation = kind.evaluation_data(parts.val)

    def _shares(self) -> dict[str, int]:
        trainer = self.trainer
        return {"rank": trainer.global_rank, "ranks": trainer.world_size} if trainer else {}

    def train_dataloader(self) -> DataLoader:
        """Drawn anew in every epoch."""
        sampler = TicketSampler(self.draw, count=len(self.training), seed=self.settings.seed, **self._shares())
        return make_loader(self.training, sampler, self.settings, size=self.settings.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Every case once, in order."""
        return evaluation_loader(self.validation, self.kind, **self._shares())


def make_loader(data: Dataset, sampler: TicketSampler, settings: FinetuneSettings, *, size: int) -> DataLoader:
    """Batches of samples; lists of patches are joined."""
    return DataLoader(
        data,
        batch_size=size,
        sampler=sampler,
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        collate_fn=list_data_collate,
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_loader(data: Dataset, kind: Kind, *, rank: int = 0, ranks: int = 1) -> DataLoader:
    """Every case once, in batches of the kind's `evaluation_size`."""
    count = len(data)
    sampler = TicketSampler(in_order(count), count=count, rank=rank, ranks=ranks)
    return make_loader(data, sampler, kind.settings, size=kind.evaluation_size or kind.settings.batch_size)


def steps_per_epoch(draw: Draw, settings: FinetuneSettings, *, ranks: int) -> int:
    """Optimiser steps of one epoch."""
    share = math.ceil(len(draw(np.random.default_rng(0))) / ranks)
    return math.ceil(math.ceil(share / settings.batch_size) / settings.accumulate)


def fit(
    kind: Kind, network: nn.Module, parts: Parts, folder: Path, *, identity: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Trains until the last epoch or the patience ends, from the last whole epoch where there is one; returns time and memory.

    Raises:
        ValueError: the run in `folder` had other settings.
    """
    settings, run = kind.settings, machine(kind.settings)
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        refuse_other_checkpoint(last, identity)
        say(f"going on from {last}")
    data = Data(kind, parts)
    ranks = resolve_devices(run) * run.num_nodes
    steps = steps_per_epoch(data.draw, settings, ranks=ranks)
    module = FinetuneModule(network, kind, steps_per_epoch=steps, identity=identity, say=say)
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    counts = ", ".join(f"{len(part)} {name}" for name, part in parts._asdict().items())
    say(f"cases: {counts}; {trained / 1e6:.2f} M parameters to train")
    trainer = build_trainer(kind, folder, several=ranks > 1)
    remove_partial(folder / "checkpoints")
    spent = Spent(on_gpu=resolve_accelerator(run) == "gpu")
    trainer.callbacks.append(spent)
    trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    patience = trainer.early_stopping_callback
    ended = trainer.current_epoch >= settings.epochs or (patience is not None and patience.stopped_epoch > 0)
    return {
        **spent.state_dict(),
        "processes": ranks,
        "epochs": trainer.current_epoch,
        "finished": not settings.max_minutes or ended,
        "cases": {name: len(part) for name, part in parts._asdict().items()},
        "parameters": trained,
    }


class Spent(pl.Callback):
    """Time and memory of a run, over every start that its checkpoints know of.

    `peak_memory_gb` (1e9 bytes) is of the first process: what PyTorch's allocator held on its GPU, else its resident memory.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu, self.begin = on_gpu, time.monotonic()
        self.minutes_before, self.peak_before = 0.0, 0.0

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Forgets what the fold before held."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def state_dict(self) -> dict[str, float]:
        """Minutes in all, and the largest peak."""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        peak = (torch.cuda.max_memory_allocated() if self.on_gpu else resident) / 1e9
        minutes = self.minutes_before + (time.monotonic() - self.begin) / 60
        return {"minutes": minutes, "peak_memory_gb": max(self.peak_before, peak)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """What the run had taken when the checkpoint was written."""
        self.minutes_before, self.peak_before = state["minutes"], state["peak_memory_gb"]


def refuse_other_checkpoint(path: Path, identity: Mapping[str, Any]) -> None:
    """Raises ValueError when a checkpoint cannot be gone on from with these settings."""
    stored = read_identity(path)
    if not identity["settings"]["resume"]:
        raise ValueError(f"{path.parent.parent} holds a run; run_name=... starts another beside it")
    for name, told in (("folder", "folder"), ("vision", "encoder"), ("kind", "vocabulary or head")):
        if stored[name] != identity[name]:
            raise ValueError(f"{path} is of another {told}; run_name=... starts another run beside it")
    theirs, ours = (of["settings"] | of.get("options", {}) for of in (stored, identity))
    refuse_other_settings(path.parent.parent, theirs, {name: value for name, value in ours.items() if name in theirs})
    refuse_other_cases(path.parent.parent, stored.get("divided"), identity["divided"])


FREE = ("mode", "fold", "folds", "input", "output", "other", "checkpoint", "log_dir", "run_name", "resume", "num_workers",
        "max_minutes", "accelerator", "devices", "num_nodes", "cache", "save_masks", "data_root", "arrows")  # fmt: skip
"""Settings that may differ between a run and the one that goes on with it."""


def refuse_other_settings(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises ValueError when the run in `folder` was started with other settings or options than `ours`."""
    plain = json.loads(json.dumps(ours))  # as a file gives them back
    other = [name for name in plain if name not in FREE and theirs.get(name) != plain[name]]
    if other:
        told = ", ".join(f"{name}={theirs.get(name)!r} (now {plain[name]!r})" for name in other[:4])
        raise ValueError(f"{folder} holds a run with other settings: {told}; run_name=... starts another beside it")


def read_identity(path: Path) -> dict[str, Any]:
    """What a fine-tuned checkpoint says of itself.

    Raises:
        ValueError: it is no fine-tuned checkpoint.
    """
    return read_finetuned(path)["mg3d_finetune"]


def read_finetuned(path: Path) -> dict[str, Any]:
    """A checkpoint of fine-tuning, on the CPU; only tensors and builtins are read."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__}); it may be cut off") from error
    if not isinstance(stored, dict) or "mg3d_finetune" not in stored:
        raise ValueError(f"{path} is no checkpoint of fine-tuning; pretrained=... is where weights of pre-training go")
    return stored


NOT_FINITE = "Lower learning_rate or set grad_clip=1, and start a new run (run_name=...)"


def build_trainer(kind: Kind, folder: Path, *, several: bool) -> pl.Trainer:
    """The Trainer of one fold, writing into `folder`."""
    settings, run = kind.settings, machine(kind.settings)
    metric = f"val/{kind.task.metric}"
    callbacks: list[pl.Callback] = [
        *checkpoint_callbacks(folder / "checkpoints", monitor=metric, mode="max"),
        LearningRateMonitor("step"),
        progress_bar(20),
        NonFiniteGuard(folder, names=itemgetter("case_id"), advice=NOT_FINITE),
    ]  # fmt: skip
    if settings.patience:
        callbacks.append(EarlyStopping(metric, mode="max", patience=settings.patience))
    if settings.max_minutes:
        callbacks.append(TimeLimit(folder / "checkpoints" / "last.ckpt", settings.max_minutes))
    return pl.Trainer(
        accelerator=resolve_accelerator(run),
        devices=resolve_devices(run),
        num_nodes=run.num_nodes,
        strategy=DDPStrategy(find_unused_parameters=True) if several else "auto",
        precision=resolve_precision(run),
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.grad_clip or None,
        check_val_every_n_epoch=min(settings.val_epochs, settings.epochs),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        log_every_n_steps=5,
        logger=[
            TensorBoardLogger(folder, name="", version="tensorboard"),
            CSVLogger(folder, name="csv", version=csv_part(folder)),
        ],
        plugins=[AtomicCheckpointIO()],
        callbacks=callbacks,
    )


def load_network(kind: Kind, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The fine-tuned network of a checkpoint, in eval mode, and what the checkpoint says of itself.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another folder or another shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; train first, or name one: checkpoint=...")
    stored = read_finetuned(path)
    identity = stored["mg3d_finetune"]
    refuse_other_task(kind, identity, path)
    kind.restore(identity["kind"])
    network = kind.network(build_encoder(identity["vision"]))
    weights = {
        name.removeprefix("network."): tensor for name, tensor in stored["state_dict"].items() if name.startswith("network.")
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this task: {' '.join(str(error).split())[:200]}") from error
    return network.eval(), identity


_TRAINING_ONLY = ("crops", "positive_share", "by_structure")
"""Fields of a `Preprocess` that an evaluation does not see."""


def refuse_other_task(kind: Kind, identity: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError when a network was fine-tuned for other cases, or for scans that were prepared otherwise."""
    if identity["folder"] != kind.task.name:
        raise ValueError(f"{path} was fine-tuned for {identity['folder']}, not for {kind.task.name}")
    theirs = identity["preprocess"] | {"axes": identity["settings"]["axes"]}
    ours = dataclasses.asdict(kind.task.preprocess) | {"axes": kind.settings.axes}
    seen = {name: value for name, value in ours.items() if name not in _TRAINING_ONLY}
    other = [f"{name}={theirs.get(name)} (now {value})" for name, value in seen.items() if theirs.get(name) != value]
    if other:
        raise ValueError(
            f"{path} was fine-tuned on scans prepared otherwise: {', '.join(other[:3])}; a network of the synthetic set needs "
            "data_root=phantom, any other the settings it was trained with"
        )


def refuse_other_division(theirs: Mapping[str, Any], settings: FinetuneSettings, folder: Path, path: Path) -> None:
    """Raises ValueError when cases that are to be judged on in `folder` may be among those that a network learned from."""
    ours = {"seed": settings.seed, "split": settings.split, "fold": folder.name}
    other = [f"{name}={theirs[name]} (now {value})" for name, value in ours.items() if theirs[name] not in (value, None)]
    if other:
        raise ValueError(
            f"{path} was fine-tuned with {', '.join(other)}, which decide what it learned from and so may be judged on; give the "
            "same"
        )


def evaluate_checkpoint(
    kind: Kind, parts: Parts, folder: Path, *, say: Callable[[str], None]
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Predictions of the best (or the named) checkpoint for validation and test cases, and facts about it."""
    settings = kind.settings
    path = Path(settings.checkpoint) if settings.checkpoint else folder / "checkpoints" / "best.ckpt"
    network, identity = load_network(kind, path)
    refuse_other_division(identity["settings"] | {"fold": identity.get("fold")}, settings, folder, path)
    if settings.mode == "evaluate" and identity.get("divided", {}).get("train") != divided(parts)["train"]:
        say(f"{path} learned from other cases than those of train here; make sure that none of them is judged on")
    device = torch.device("cuda" if resolve_accelerator(machine(settings)) == "gpu" else "cpu")
    network.to(device)
    named = [(name, part) for name, part in (("val", parts.val), ("test", parts.test)) if part]
    masks = folder / "masks" if settings.save_masks else None
    tables = {name: predict_cases(kind, network, part, name=name, masks=masks) for name, part in named}
    told = {name: value for name, value in identity.items() if name != "kind"}
    return tables, {"checkpoint": str(path), "trained": told, "parameters_in_all": sum(map(torch.numel, network.parameters()))}


@torch.no_grad()
def predict_cases(kind: Kind, network: nn.Module, cases: list[Case], *, name: str, masks: Path | None) -> pd.DataFrame:
    """Predictions of cases, one row or more each; every rank makes its share and gets all."""
    device = next(network.parameters()).device
    rows = []
    loader = evaluation_loader(kind.evaluation_data(cases), kind, rank=rank(), ranks=world_size())
    for batch in tqdm(loader, desc=name, disable=None if rank() == 0 else True):
        moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        rows += kind.rows(network, moved, masks=masks)
    return kind.finish(gathered(rows))
