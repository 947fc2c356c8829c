"""The commands of main.py: `pretrain`, `evaluate`, `diagnose`. Each takes the settings and writes into the run's folder."""

import dataclasses
import logging
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
from mg3d.datasets.arrow import open_index
from mg3d.datasets.integrity import require_valid
from mg3d.datasets.schema import DATASETS, GEOMETRY_STEPS, differing_steps
from mg3d.datasets.storage import Storage
from mg3d.distributed import rank
from mg3d.evaluation.evidence import held_out_studies, open_held_out, show_evidence, write_evidence
from mg3d.evaluation.label_probe import build_probe, train_probe
from mg3d.files import remove_partial, write_json
from mg3d.models.build import build_untrained, build_vision
from mg3d.models.flops import ReportShape, count_step, needed_flops
from mg3d.models.mg3d import MG3D
from mg3d.settings.parse import defaults, flatten
from mg3d.settings.schema import Settings, objective_weights, volume_shape
from mg3d.training.build import build_data, build_tokenizer, fit_sentence_space, fit_voxels, tokenizer_origin
from mg3d.training.compiled import compile_encode, require_compiler
from mg3d.training.module import PretrainModule
from mg3d.training.optim import build_optimizer
from mg3d.training.trainer import BatchPlan, Preempted, build_trainer, plan_batches, resolve_accelerator

MACHINE_SETTINGS = (
    "accelerator", "devices", "num_nodes", "num_workers", "log_interval", "val_interval", "val_batches", "resume_from",
    "evidence", "max_minutes", "ground_truth_root", "log_dir", "run_name", "data_root", "cache_dir",
    "per_gpu_batchsize", "precision",
    "gradient_checkpointing", "grad_cache_chunk", "text_cache", "compile",
)  # fmt: skip
"""Settings that may differ between a checkpoint and the run that goes on from it."""

FINE_RATE = 2e-5
"""Above this, a start from trained weights is told of a smaller rate (original: 1e-5)."""

SENTENCES = 12
"""Of a report, where the cost of a step is counted."""

console = Console(highlight=False)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen and averaged encoders are meant to be
warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # a resumed run goes on in its folder
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*overridden `on_after_batch_transfer`.*")  # once for every data module: it converts voxels
warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning calls what torch has renamed


def is_first_rank() -> bool:
    """Whether this process is the first, also before the process group is there."""
    return rank() == 0 and int(pl.utilities.rank_zero_only.rank or 0) == 0


def say(sentence: str) -> None:
    """Prints one line, from the first rank only."""
    if is_first_rank():
        console.print(f"mg3d: {sentence}", soft_wrap=True)


def run_folder(settings: Settings) -> Path:
    """Where this run writes."""
    return Path(settings.run.log_dir) / settings.run.run_name


def pretrain(settings: Settings) -> None:
    """Trains (or goes on), validates, and shows the evidence; a finished run is only shown again."""
    run_dir = run_folder(settings)
    checkpoint = find_checkpoint(settings, run_dir)
    if checkpoint and is_finished(checkpoint, settings) and (run_dir / "evidence.json").is_file():
        say(f"{run_dir} holds this run, finished; nothing to train (run_name=... starts another)")
        show_evidence(run_dir)
        return
    plan = plan_batches(settings)
    refuse_now(settings, starts=checkpoint is None)
    if is_first_rank():
        for note in require_valid(settings.data.data_root, settings.data.datasets):
            say(note)
    if settings.run.evidence:
        held_out_studies(settings)  # refused now rather than after the training
    pl.seed_everything(settings.run.seed, verbose=False)
    data = build_data(settings, per_rank=plan.per_rank, with_text_cache=True)
    origin = tokenizer_origin(settings, data)
    if checkpoint:
        refuse_other_data(checkpoint, origin, data.recipes)
    data.tokenizer = build_tokenizer(settings, run_dir, data, origin=origin)
    model = build_untrained(settings, len(data.tokenizer))
    refuse_other_text(model, data, settings.data.max_text_len)
    fit_voxels(model, data)
    if settings.run.load_path and not checkpoint:
        start_from(settings, model, origin, data.recipes)
    space = fit_sentence_space(model, data, settings)
    weights = objective_weights(settings.loss)
    module = PretrainModule(
        model,
        weights=weights,
        optim=settings.optim,
        seed=settings.run.seed,
        chunk=settings.optim.grad_cache_chunk,
        identity=identity(settings, model) | {"volumes_per_pass": plan.per_pass, "tokenizer": origin, "recipes": data.recipes},
    )
    trainer = build_trainer(settings, run_dir, validates=data.validates, volume_flops=volume_flops(settings, model))
    if settings.run.compile:
        compile_encode(model.vision)
    if trainer.is_global_zero:
        remove_partial(run_dir / "checkpoints")
        write_json(run_dir / "settings.json", flatten(settings))
        write_json(run_dir / "sentence_space.json", space)
    describe(model, data)
    say(f"{describe_plan(settings, plan)}; writing {run_dir}")
    if not data.validates:
        say(f"no study to validate on: a checkpoint `last` every {settings.run.val_interval} steps, and no `best`")
    if checkpoint:
        data.start_step = go_on_from(checkpoint, plan) * plan.passes
    begin = time.monotonic()
    fit(trainer, module, data, checkpoint)
    say(f"trained {trainer.global_step} steps in {(time.monotonic() - begin) / 60:.1f} minutes")
    if trainer.global_step < settings.optim.max_steps and any(getattr(one, "preempted", False) for one in trainer.callbacks):
        raise Preempted(trainer.global_step)
    trainer.save_checkpoint(run_dir / "checkpoints" / "last.ckpt", weights_only=False)
    if trainer.is_global_zero and settings.run.evidence:
        evaluate(_resuming(settings, "last"))


def require_data(settings: Settings) -> None:
    """Raises FileNotFoundError for a training index that is missing in data_root."""
    for dataset in settings.data.datasets:
        open_index(Storage(settings.data.data_root, settings.data.cache_dir), dataset, "train")


def refuse_now(settings: Settings, *, starts: bool) -> None:
    """Raises ValueError for what would fail after the reports have been read: weights to start from, or nothing that compiles."""
    if settings.run.load_path and starts:
        load(settings, build_vision(settings))
    if settings.run.compile and is_first_rank():
        require_compiler("cuda" if resolve_accelerator(settings.run) == "gpu" else "cpu")


def identity(settings: Settings, model: MG3D) -> dict[str, Any]:
    """What every checkpoint says of its model: the settings, and the configuration that its BERT is rebuilt from."""
    return {"settings": flatten(settings), "text_config": text_config(model)}


def start_from(
    settings: Settings, model: MG3D, origin: dict[str, Any] | None, recipes: Mapping[str, dict[str, Any] | None]
) -> None:
    """Loads the weights that `load_path` names into a model whose tokenizer has this origin, and says what of them was used.

    recipes: of the volumes that they go on with.
    """
    report = load(settings, model, tokenizer=origin)
    say(str(report))
    theirs = (report.info.preprocessing or {}).get("recipe")
    for name, ours in recipes.items():
        if other := differing_steps(theirs, ours, GEOMETRY_STEPS):
            say(
                f"the volumes of {name} were prepared otherwise ({', '.join(other)}) than those that {settings.run.load_path} "
                "was trained on, so it has seen chests at another scale or place; prepare them as those were, if not meant"
            )
    if settings.optim.learning_rate > FINE_RATE:
        say(f"learning_rate={settings.optim.learning_rate:g} suits a start from scratch; weights that continue usually want 1e-5")


def load(settings: Settings, model: torch.nn.Module, *, tokenizer: dict[str, Any] | None = None) -> LoadReport:
    """Loads what `load_path` names into the model, or an image encoder alone, as the other `load_` settings say.

    tokenizer: the origin of the model's.
    """
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
    """Trains until the end or a limit; KeyboardInterrupt after Ctrl-C, which Lightning turns into an exit without a word."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
    if trainer.interrupted:
        raise KeyboardInterrupt


def evaluate(settings: Settings) -> None:
    """The evidence for a checkpoint (default: the newest of the run): a table, evidence.json and a page."""
    run_dir = run_folder(settings)
    wanted = settings.run.resume_from or "last"
    checkpoint = find_checkpoint(
        dataclasses.replace(settings, run=dataclasses.replace(settings.run, resume_from=wanted)), run_dir
    )
    if checkpoint is None:
        raise FileNotFoundError(
            f"no checkpoint in {run_dir / 'checkpoints'}; train first, or set resume_from to a checkpoint file"
        )
    data = build_data(settings)
    data.tokenizer = build_tokenizer(settings, run_dir, data)
    device = torch.device("cuda" if resolve_accelerator(settings.run) == "gpu" else "cpu")
    held_out = open_held_out(
        settings, train=data.train_parts[0], tokenizer=data.tokenizer, collator=data.collator(), device=device
    )
    say(f"evidence: {len(held_out.test)} held-out studies of {len(set(held_out.test.patients))} patients unseen in training")
    if settings.run.ground_truth_root and held_out.truths is None:
        say(f"ground_truth_root={settings.run.ground_truth_root} has no ground truth of these studies; continuing without it")
    write_evidence(held_out, run_dir, checkpoint)
    show_evidence(run_dir)


def _resuming(settings: Settings, resume_from: str) -> Settings:
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, resume_from=resume_from))


def diagnose(settings: Settings) -> None:
    """Trains the volume encoder on the labels; logs the AUROC of each finding on val and writes `diagnosis.json`."""
    probe = build_probe(settings)
    fit_voxels(probe.model, build_data(settings))
    probe = probe.to("cuda" if resolve_accelerator(settings.run) == "gpu" else "cpu")
    result = train_probe(probe, settings, *build_optimizer([{"params": probe.parameters()}], settings.optim))
    write_json(run_folder(settings) / "diagnosis.json", result)
    for name, value in sorted(result.items(), key=lambda item: -item[1]):
        say(f"{name:40s} {value:.3f}")


def volume_flops(settings: Settings, model: MG3D) -> float:
    """FLOPs that a step needs for one volume, with a report of the longest length and views of a quarter of it."""
    data = settings.data
    report = ReportShape(
        data.max_text_len, SENTENCES, data.sentence_views, -(-data.max_text_len // 4), settings.model.mlm_probability,
        is_cached=bool(settings.text.text_cache),
    )  # fmt: skip
    return needed_flops(count_step(model, volume_shape(data.image_size, data.volume_size), report))


def describe(model: torch.nn.Module, data: pl.LightningDataModule) -> None:
    """Says what is about to be trained, and on what."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    say(f"{trained / 1e6:.2f} M parameters to train, {frozen / 1e6:.2f} M frozen; {data.summary()}")
    for note in mixed_recipes(data.recipes):
        say(note)


def mixed_recipes(recipes: Mapping[str, dict[str, Any] | None]) -> list[str]:
    """A sentence for every data set in HU whose volumes show another part of the chest, or in another way, than the first's."""
    known = [(name, recipe) for name, recipe in recipes.items() if recipe and DATASETS[name].unit == "hu"]
    return [
        f"{name} was prepared otherwise ({', '.join(other)}) than {known[0][0]}, as which scans will be read: prepare both alike"
        for name, recipe in known[1:]
        if (other := differing_steps(known[0][1], recipe, GEOMETRY_STEPS))
    ]


def describe_plan(settings: Settings, plan: BatchPlan) -> str:
    """How many steps of how many volumes, and how these are shared among processes and passes."""
    return (
        f"{settings.optim.max_steps} steps of {plan.per_pass * plan.passes} volumes: {plan.ranks} "
        f"{resolve_accelerator(settings.run)} process(es) x {plan.per_rank} volumes x {plan.passes} pass(es)"
    )


def go_on_from(checkpoint: Path, plan: BatchPlan) -> int:
    """Steps done in a checkpoint, after saying so, and also when its passes held another number of volumes."""
    saved = load_checkpoint(checkpoint)
    say(f"going on from {checkpoint} at step {saved['global_step']}")
    before = saved["mg3d"].get("volumes_per_pass", plan.per_pass)
    if before != plan.per_pass:
        say(f"a pass now contrasts {plan.per_pass} volumes with one another, {before} before; steps and order of the data stay")
    return saved["global_step"]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU; only tensors and builtins are read.

    Raises:
        ValueError: the file is no checkpoint of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it may be cut off or of another program"
        ) from error
    if not isinstance(checkpoint, dict) or "mg3d" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of this program's pre-training: it has no entry 'mg3d'")
    return checkpoint


def find_checkpoint(settings: Settings, run_dir: Path) -> Path | None:
    """The checkpoint that `resume_from` means, or None to start anew.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it belongs to other settings, or a new run would overwrite a run.
    """
    last = run_dir / "checkpoints" / "last.ckpt"
    wanted = settings.run.resume_from
    if wanted == "" and last.is_file():
        require_data(settings)  # a typo in data_root is the likelier mistake
        raise ValueError(
            f"{run_dir} holds a run already; resume_from=last goes on with it, run_name=... starts another beside it"
        )
    path = last if wanted in ("last", "auto") else Path(wanted)
    if wanted == "" or (wanted == "auto" and not last.is_file()):
        return None
    if not path.is_file():
        raise FileNotFoundError(f"resume_from={wanted}: there is no {path}")
    refuse_other_settings(path, settings)
    return path


def refuse_other_settings(path: Path, settings: Settings) -> None:
    """Raises ValueError when the checkpoint was trained with other settings, naming them."""
    theirs, ours = defaults() | load_checkpoint(path)["mg3d"]["settings"], flatten(settings)
    other = [name for name in ours if name not in MACHINE_SETTINGS and theirs.get(name) != ours[name]]
    if other:
        shown = ", ".join(f"{name}={theirs.get(name)!r} (now {ours[name]!r})" for name in other[:5])
        raise ValueError(f"{path} belongs to another configuration: {shown}; use its settings, or run_name=... for a new run")


def refuse_other_text(model: MG3D, data: MultiTaskDataModule, max_text_len: int) -> None:
    """Raises ValueError when the data's cached text features are of another text encoder than the model's, or another length."""
    cache = data.options.collator["text_features"]
    if cache is not None:
        cache.require_made_for(model.text.fingerprint(), max_text_len)


def refuse_other_data(path: Path, origin: dict[str, Any] | None, recipes: Mapping[str, dict[str, Any] | None]) -> None:
    """Raises ValueError when a checkpoint knows the words of other training reports than `origin`, or volumes prepared otherwise.

    recipes: data set -> how its volumes are prepared now. Of checkpoints that do not tell theirs nothing is asked.
    """
    identity = load_checkpoint(path)["mg3d"]
    for name, theirs in identity.get("recipes", {}).items():
        if other := differing_steps(theirs, recipes.get(name)):
            raise ValueError(
                f"{path} was trained on volumes of {name} that were prepared otherwise ({', '.join(other)}) than those of "
                "data_root now; give the data it was trained on, or run_name=... for a new run"
            )
    theirs = identity.get("tokenizer", origin)
    if theirs != origin:
        raise ValueError(
            f"{path} knows the words of {theirs['reports']:,} training reports that are not the {origin['reports']:,} "
            "of data_root now; give the data it was trained on, or run_name=... for a new run"
        )


def is_finished(path: Path, settings: Settings) -> bool:
    """Whether a checkpoint has reached `max_steps`."""
    return load_checkpoint(path)["global_step"] >= settings.optim.max_steps
