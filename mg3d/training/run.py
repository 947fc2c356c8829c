"""Commands of main.py: `pretrain`, `evaluate`, `diagnose`. Each takes the settings and writes into the run's folder."""

import dataclasses
import logging
import math
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console

from mg3d.checkpoints.load import LoadReport, load_weights
from mg3d.checkpoints.pretrained import text_config
from mg3d.datamodules.multitask import MultiTaskDataModule
from mg3d.datasets.integrity import require_valid
from mg3d.datasets.schema import DATASETS, GEOMETRY_STEPS, differing_steps
from mg3d.distributed import rank
from mg3d.evaluation.evidence import HeldOutData, held_out_studies, open_held_out, show_evidence, write_evidence
from mg3d.evaluation.label_probe import build_probe, train_probe
from mg3d.files import remove_partial, write_json
from mg3d.models.build import build_untrained, build_vision
from mg3d.models.flops import ReportShape, count_step, needed_flops
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import require_text_encoder
from mg3d.settings.parse import flatten
from mg3d.settings.schema import Settings, objective_weights, volume_shape
from mg3d.training.build import build_data, build_tokenizer, fit_sentence_space, fit_voxels, tokenizer_origin
from mg3d.training.compiled import compile_encode, require_compiler
from mg3d.training.module import PretrainModule
from mg3d.training.optim import build_optimizer
from mg3d.training.resume import SavedRun, find_checkpoint, is_finished, refuse_other_data, refuse_other_text, run_folder
from mg3d.training.trainer import BatchPlan, Preempted, build_trainer, plan_batches, resolve_accelerator, resolve_device

MAX_CONTINUED_LR = 2e-5
"""A higher learning rate for trained weights triggers a note (published: 1e-5)."""
SENTENCES_PER_REPORT = 12
"""Assumed for counting FLOPs."""

console = Console(highlight=False)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
for _message in (
    ".*in eval mode at the start of training.*",  # frozen and EMA encoders
    ".*exists and is not empty.*",  # resumed runs
    ".*does not have many workers.*",
    ".*overridden `on_after_batch_transfer`.*",  # converts voxels, for every data module
    ".*LeafSpec.*",  # Lightning uses a deprecated torch API
):
    warnings.filterwarnings("ignore", _message)


def is_first_rank() -> bool:
    """Whether this is rank 0, also before the process group exists."""
    return rank() == 0 and int(pl.utilities.rank_zero_only.rank or 0) == 0


def log(sentence: str) -> None:
    """Prints one line on the first rank."""
    if is_first_rank():
        console.print(f"mg3d: {sentence}", soft_wrap=True)


def pretrain(settings: Settings) -> None:
    """Trains or resumes, validates and evaluates; a finished run only shows its results again."""
    run_dir = run_folder(settings)
    checkpoint = find_checkpoint(settings)
    if checkpoint and is_finished(checkpoint, settings) and (run_dir / "evidence.json").is_file():
        log(f"the run in {run_dir} is finished; run_name=... starts another one")
        show_evidence(run_dir)
        return
    plan = plan_batches(settings)
    check_early(settings, starts=checkpoint is None)
    pl.seed_everything(settings.run.seed, verbose=False)
    data = build_data(settings, per_rank=plan.per_rank, with_text_cache=True)
    origin = tokenizer_origin(settings, data)
    if checkpoint:
        refuse_other_data(checkpoint, origin, data.recipes)
    data.tokenizer = build_tokenizer(settings, run_dir, data, origin=origin)
    module = build_module(settings, data, starts=checkpoint is None, micro_batch=plan.micro_batch, origin=origin)
    trainer = build_trainer(settings, run_dir, validates=data.validates, volume_flops=volume_flops(settings, module.model))
    if settings.run.compile:
        compile_encode(module.model.vision)
    if trainer.is_global_zero:
        remove_partial(run_dir / "checkpoints")
        write_json(run_dir / "settings.json", flatten(settings))
    log_summary(module.model, data)
    log(f"{describe_plan(settings, plan)}; writing {run_dir}")
    if not data.validates:
        log(f"no validation studies: `last` is saved every {settings.run.val_interval} steps, and there is no `best`")
    if checkpoint:
        data.start_step = log_resume(checkpoint, plan) * plan.accumulation_steps
    fit(trainer, module, data, checkpoint and checkpoint.path)
    trainer.save_checkpoint(run_dir / "checkpoints" / "last.ckpt", weights_only=False)
    if trainer.is_global_zero and settings.run.evidence:
        evaluate(_resuming(settings, "last"))


def check_early(settings: Settings, *, starts: bool) -> None:
    """Raises ValueError or FileNotFoundError for what would otherwise fail after reports are read, or after training."""
    if settings.text.text_encoder != "tiny":
        require_text_encoder(settings.text.text_encoder, settings.data.max_text_len)
    require_shared_memory(settings)
    if settings.run.load_path and starts:
        load(settings, build_vision(settings))
    if settings.run.compile and is_first_rank():
        require_compiler("cuda" if resolve_accelerator(settings.run) == "gpu" else "cpu")
    if is_first_rank():
        for note in require_valid(settings.data.data_root, settings.data.datasets):
            log(note)
    if settings.run.evidence:
        held_out_studies(settings)


def require_shared_memory(settings: Settings, folder: Path = Path("/dev/shm")) -> None:
    """Raises ValueError if the batches that loader processes hold do not fit into shared memory, where training would hang."""
    data, workers = settings.data, settings.data.num_workers
    batch = settings.optim.per_gpu_batchsize * math.prod(volume_shape(data.image_size, data.volume_size))
    need = 2 * workers * batch  # two prefetched batches per process, at least one byte per voxel
    if workers and folder.is_dir() and (free := shutil.disk_usage(folder).free) < need:
        raise ValueError(
            f"{folder} has {free / 1e6:.0f} MB free, and num_workers={workers} needs at least {need / 1e6:.0f} MB; start the "
            "container with a larger --shm-size (such as 16g), or lower num_workers"
        )


def build_module(
    settings: Settings, data: MultiTaskDataModule, *, starts: bool, micro_batch: int, origin: dict[str, Any] | None
) -> PretrainModule:
    """Model and losses, with statistics of the training data, and with the weights of `load_path` for a run that starts."""
    model = build_untrained(settings, len(data.tokenizer))
    refuse_other_text(model, data, settings.data.max_text_len)
    fit_voxels(model, data)
    if settings.run.load_path and starts:
        initialise(settings, model, origin, data.recipes)
    cosines = fit_sentence_space(model, data, settings)
    if is_first_rank():
        write_json(run_folder(settings) / "sentence_space.json", cosines)
    weights = objective_weights(settings.loss)
    stored = {"settings": flatten(settings), "text_config": text_config(model)}
    return PretrainModule(
        model,
        weights=weights,
        optim=settings.optim,
        seed=settings.run.seed,
        chunk=settings.optim.grad_cache_chunk,
        identity=stored | {"micro_batch": micro_batch, "tokenizer": origin, "recipes": data.recipes},
    )


def initialise(
    settings: Settings, model: MG3D, origin: dict[str, Any] | None, recipes: Mapping[str, dict[str, Any] | None]
) -> None:
    """Loads the weights of `load_path` into a model with a tokenizer of this origin, and logs the report.

    recipes: preparation recipes of the training volumes.
    """
    report = load(settings, model, tokenizer=origin)
    log(str(report))
    theirs = (report.info.preprocessing or {}).get("recipe")
    for name, ours in recipes.items():
        if other := differing_steps(theirs, ours, GEOMETRY_STEPS):
            log(
                f"volumes of {name} were prepared differently ({', '.join(other)}) than the training volumes of "
                f"{settings.run.load_path}; prepare them alike unless this is intended"
            )
    if settings.optim.learning_rate > MAX_CONTINUED_LR:
        log(f"learning_rate={settings.optim.learning_rate:g} is high for pre-trained weights; 1e-5 is usual")


def load(settings: Settings, model: torch.nn.Module, *, tokenizer: dict[str, Any] | None = None) -> LoadReport:
    """Loads `load_path` into the model, or an image encoder alone, with the other `load_` settings."""
    run = settings.run
    return load_weights(
        model,
        run.load_path,
        minimum_coverage=run.load_minimum_coverage,
        merging=run.load_patch_merging or None,
        prefix=run.load_prefix or None,
        entry=run.load_entry or None,
        tokenizer=tokenizer,
    )


def fit(trainer: pl.Trainer, module: PretrainModule, data: pl.LightningDataModule, checkpoint: Path | None) -> None:
    """Trains until the last step or a limit.

    Raises:
        KeyboardInterrupt: after Ctrl-C, for which Lightning exits silently.
        Preempted: after a scheduler's signal, before the last step.
    """
    start = time.monotonic()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
    unfinished = trainer.global_step < trainer.max_steps
    if trainer.interrupted or (unfinished and any(getattr(callback, "interrupted", False) for callback in trainer.callbacks)):
        raise KeyboardInterrupt
    log(f"trained {trainer.global_step} steps in {(time.monotonic() - start) / 60:.1f} minutes")
    if unfinished and any(getattr(callback, "preempted", False) for callback in trainer.callbacks):
        raise Preempted(trainer.global_step)
    if unfinished and any(getattr(callback, "reached", False) for callback in trainer.callbacks):
        log(f"max_minutes stopped the run at step {trainer.global_step} of {trainer.max_steps}; resume_from=last continues it")


def evaluate(settings: Settings) -> None:
    """Evaluates a checkpoint (default: the last one of the run): prints a table, writes evidence.json and an HTML page."""
    run_dir = run_folder(settings)
    held_out, checkpoint = open_evaluation(settings)
    write_evidence(held_out, run_dir, checkpoint)
    show_evidence(run_dir)


def open_evaluation(settings: Settings) -> tuple[HeldOutData, Path]:
    """Held-out studies of a run, and its checkpoint `resume_from` (default: the last one); FileNotFoundError without one."""
    run_dir = run_folder(settings)
    checkpoint = find_checkpoint(_resuming(settings, settings.run.resume_from or "last"))
    if checkpoint is None:
        raise FileNotFoundError(f"{run_dir / 'checkpoints'} has no checkpoint; train first, or set resume_from to a checkpoint")
    data = build_data(settings)
    data.tokenizer = build_tokenizer(settings, run_dir, data)
    reader = {"tokenizer": data.tokenizer, "collator": data.collator(), "device": resolve_device(settings.run)}
    held_out = open_held_out(settings, train=data.train_parts[0], **reader)
    log(f"evaluating on {len(held_out.test)} held-out studies of {len(set(held_out.test.patients))} patients")
    if settings.run.ground_truth_root and held_out.truths is None:
        log(f"ground_truth_root={settings.run.ground_truth_root} has no ground truth of these studies; continuing without it")
    return held_out, checkpoint.path


def _resuming(settings: Settings, resume_from: str) -> Settings:
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, resume_from=resume_from))


def diagnose(settings: Settings) -> None:
    """Trains the volume encoder on the labels; logs the AUROC of each finding on val and writes `diagnosis.json`."""
    probe = build_probe(settings)
    fit_voxels(probe.model, build_data(settings))
    probe = probe.to(resolve_device(settings.run))
    result = train_probe(probe, settings, *build_optimizer([{"params": probe.parameters()}], settings.optim))
    write_json(run_folder(settings) / "diagnosis.json", result)
    for name, value in sorted(result.items(), key=lambda item: -item[1]):
        log(f"{name:40s} {value:.3f}")


def volume_flops(settings: Settings, model: MG3D) -> float:
    """FLOPs of a step per volume, with a report of maximum length and sentence views of a quarter of it."""
    data = settings.data
    report = ReportShape(
        data.max_text_len, SENTENCES_PER_REPORT, data.sentence_views, -(-data.max_text_len // 4), settings.model.mlm_probability,
        is_cached=bool(settings.text.text_cache),
    )  # fmt: skip
    return needed_flops(count_step(model, volume_shape(data.image_size, data.volume_size), report))


def log_summary(model: torch.nn.Module, data: MultiTaskDataModule) -> None:
    """Logs the parameters and the data."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    log(f"{trained / 1e6:.2f} M trained parameters, {frozen / 1e6:.2f} M frozen; {data.summary()}")
    for note in mixed_recipes(data.recipes):
        log(note)


def mixed_recipes(recipes: Mapping[str, dict[str, Any] | None]) -> list[str]:
    """A note for every data set in HU whose volumes were prepared differently than those of the first one."""
    known = [(name, recipe) for name, recipe in recipes.items() if recipe and DATASETS[name].unit == "hu"]
    return [
        f"{name} was prepared differently ({', '.join(other)}) than {known[0][0]}, whose recipe is used at inference; "
        "prepare both alike"
        for name, recipe in known[1:]
        if (other := differing_steps(known[0][1], recipe, GEOMETRY_STEPS))
    ]


def describe_plan(settings: Settings, plan: BatchPlan) -> str:
    """Steps, batch size, and how it is split over processes and accumulation steps."""
    volumes, device = plan.micro_batch * plan.accumulation_steps, resolve_accelerator(settings.run)
    return (
        f"{settings.optim.max_steps} steps of {volumes} volumes: {plan.ranks} {device} process(es) x {plan.per_rank} volumes x "
        f"{plan.accumulation_steps} accumulation step(s)"
    )


def log_resume(saved: SavedRun, plan: BatchPlan) -> int:
    """The step of a checkpoint; logs it, and a contrastive batch that differs."""
    step, before = saved.content["global_step"], saved.content["mg3d"]["micro_batch"]
    log(f"resuming from {saved.path} at step {step}")
    if before != plan.micro_batch:
        log(f"contrastive batch changed from {before} to {plan.micro_batch} volumes; step count and data order are unchanged")
    return step
