"""One command of fine-tuning: train, evaluate, predict or compare; one fold or all of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl

from mg3d.finetune import arrows, loop, results
from mg3d.finetune.cases import NO_FOLD, FinetuneCase, Split, assign_folds, require_cases, scan_key, split_digests, split_fold
from mg3d.finetune.data_check import InspectedFiles, inspect_files
from mg3d.finetune.data_root import data_locations, find_root, is_synthetic
from mg3d.finetune.distributed import info, lock_run
from mg3d.finetune.encoder import load_encoder
from mg3d.finetune.predict import predict_scans
from mg3d.finetune.settings import (
    ENCODER_PRESETS,
    EVALUATION,
    INITIALIZATION,
    FinetuneSettings,
    as_builtins,
    changed,
    parse_settings,
    require_files,
)
from mg3d.finetune.task import DownstreamTask
from mg3d.finetune.tasks.base import LAST_EPOCH, TaskType
from mg3d.training.run import is_first_rank

SEEN = "the network was trained or selected on this scan"


def command(task: DownstreamTask, overrides: Mapping[str, Any]) -> Path:
    """Runs one mode and returns the folder of its results; raises ValueError or OSError for a mistake of the user."""
    prepared, synthetic = find_data(task, overrides)
    fixed = arrows.read_metadata(prepared, task.folder)["settings"] if prepared else {}
    defaults = {**task.defaults({**fixed, **overrides}, synthetic), **fixed}
    settings = task.resolve(parse_settings(task.settings, overrides, defaults))
    if different := changed(fixed, {name: as_builtins(settings)[name] for name in fixed}, ignore=set()):
        raise ValueError(f"{prepared} was prepared with other settings: {', '.join(different)}; prepare another file")
    folder = run_folder(task, settings, synthetic=synthetic)
    require_files(settings)
    stored = None
    if settings.mode in ("evaluate", "predict"):
        fold = folder / ("fold0" if settings.folds == "all" else f"fold{settings.fold}")
        stored = loop.read_finetuned(Path(settings.checkpoint) if settings.checkpoint else fold / "checkpoints" / "best.ckpt")
        settings = with_stored_settings(task, overrides, settings, stored["mg3d_finetune"])
    task_type = task.build(settings)
    fold = folder / ("all" if settings.folds == "all" else f"fold{settings.fold}")
    if settings.mode == "predict":
        return predict_scans(task_type, loop.load_network(task_type, stored), folder / f"fold{settings.fold}")
    if settings.mode == "compare":
        results.compare(task_type, fold, Path(settings.other))
    elif stored and is_external(task, settings, stored["mg3d_finetune"]):
        run = Path(settings.checkpoint).absolute().parents[1] if settings.checkpoint else fold
        return evaluate_external(task, settings, task_type, stored, run)
    else:
        with lock_run(folder):
            run_folds(task, settings, task_type, folder, synthetic=synthetic, prepared=prepared)
    return fold


def find_data(task: DownstreamTask, overrides: Mapping[str, Any]) -> tuple[Path | None, bool]:
    """The Arrow file at the user's `data_root`, if it is one, and whether the data are synthetic.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    names = {task.data_setting, "data_root"} & overrides.keys()
    settings = parse_settings(task.settings, {name: overrides[name] for name in names}, {})
    locations = data_locations(task, settings)
    if not locations:
        return None, settings.data_root == "phantom" or overrides.get("mode") != "predict"
    if prepared := arrows.find_prepared(locations[0], task.folder):
        return prepared, arrows.read_metadata(prepared, task.folder)["synthetic"]
    return None, is_synthetic(locations[0])


def with_stored_settings(
    task: DownstreamTask, overrides: Mapping[str, Any], settings: FinetuneSettings, config: Mapping[str, Any]
) -> Any:
    """Settings of an evaluation or prediction: those of the checkpoint, and what the user sets.

    Raises:
        ValueError: the checkpoint is of another folder, or the user sets something that must be as in training.
    """
    if config["folder"] != task.folder:
        raise ValueError(f"checkpoint={settings.checkpoint} was fine-tuned for {config['folder']}, not for {task.folder}")
    current = as_builtins(settings)
    # The network is built from the config, not from INITIALIZATION; it computes in the precision of its training.
    free = EVALUATION - ({"precision"} - overrides.keys()) | INITIALIZATION
    trained = {name: value for name, value in config["settings"].items() if name not in free and name in current}
    named = {name: current[name] for name in overrides if name in trained}
    different = changed(trained, named, ignore=EVALUATION)
    if different:
        raise ValueError(f"the checkpoint was fine-tuned with other settings: {', '.join(different[:4])}; leave them out")
    return parse_settings(task.settings, {}, {**current, **trained})


def run_folder(task: DownstreamTask, settings: FinetuneSettings, *, synthetic: bool) -> Path:
    """Folder of all folds of a run."""
    if settings.run_name:
        return task.results_folder(settings) / settings.run_name
    weights = "scratch" if settings.pretrained == "none" else checkpoint_name(Path(settings.pretrained))
    encoder = settings.encoder if settings.encoder in ENCODER_PRESETS else f"as-{checkpoint_name(Path(settings.encoder))}"
    if encoder == "auto":
        encoder = "" if weights != "scratch" else "tiny" if synthetic else "swin_b"
    parts = (task.run_prefix(settings), encoder, weights, "phantom" if synthetic else "")
    return task.results_folder(settings) / "-".join(filter(None, parts))


def checkpoint_name(path: Path) -> str:
    """Name of a checkpoint for people: that of its run where the file's own says nothing, such as last.ckpt."""
    stem = path.name.split(".")[0] or "pretrained"
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return f"{run.name}-{stem}" if path.suffix == ".ckpt" and stem.startswith(("last", "best", "epoch")) and run.name else stem


def run_folds(
    task: DownstreamTask, settings: Any, task_type: TaskType, folder: Path, *, synthetic: bool, prepared: Path | None
) -> None:
    """Trains or evaluates one fold or all of them."""
    root = prepared or find_root(task, settings, synthetic=synthetic)
    listed = arrows.read_cases(prepared) if prepared else task.read_cases(root, settings)
    cases = require_cases(listed, where=root)
    cases = assign_folds(cases, task.folds, seed=settings.seed)
    folds = range(task.folds) if settings.folds == "all" else [settings.fold]
    splits = [split_fold(cases, fold=fold, folds=task.folds, max_cases=settings.max_cases) for fold in folds]
    used = list({case.case_id: case for split in splits for part in split for case in part}.values())
    files: InspectedFiles = {}
    if task_type.uses_encoder:
        files = inspect_files(used, task.results_folder(settings) / "files.json", channel=task_type.channel)
    minima = [file["minimum"] for file in files.values() if "minimum" in file]
    if task.data_setting == "table" and settings.intensity == "window" and minima and min(minima) >= 0:
        info("no scan has a negative value, so they may not be in HU: use intensity=z_score, or their range as window_hu")
    excluded = exclude_unusable([*used, *(case for case in listed if case.error)], files, task_type, folder)
    if not synthetic:
        warn_of_counts(task, settings, [case for case in cases if case.case_id not in excluded])
    tables = []
    for fold, split in zip(folds, splits, strict=True):
        usable = exclude_cases(split, excluded, fold)
        tables.append(run_fold(task, settings, usable, folder / f"fold{fold}", files, synthetic=synthetic))
    if settings.folds == "all":
        pool_folds(task, task_type, tables, folder)


def exclude_unusable(cases: Sequence[FinetuneCase], files: InspectedFiles, task_type: TaskType, folder: Path) -> set[str]:
    """Names of the cases whose rows or files cannot be used, which `excluded.csv` lists with the reasons.

    Raises:
        ValueError: no case can be used.
    """
    excluded = {case.case_id: case.error for case in cases if case.error}
    excluded |= {name: error for name, file in files.items() if (error := file.get("error") or task_type.file_error(file))}
    if excluded and len(excluded) == len(cases):
        raise ValueError(f"none of the {len(cases)} cases can be used; the first: {next(iter(excluded.values()))}")
    if excluded and is_first_rank():
        results.write_table(folder / "excluded.csv", pd.DataFrame({"case_id": excluded.keys(), "reason": excluded.values()}))
        first = next(iter(excluded.values()))
        info(f"excluded {len(excluded)} of {len(cases)} cases, see {folder / 'excluded.csv'}; the first: {first}")
    return set(excluded)


def exclude_cases(split: Split, excluded: set[str], fold: int) -> Split:
    """The usable cases of a fold; ValueError if training or validation is left empty."""
    usable = Split(*([case for case in part if case.case_id not in excluded] for part in split))
    counts = [f"{len(one)} of {len(part)} {name}" for name, part, one in zip(Split._fields, split, usable, strict=True)
              if len(one) < len(part)]  # fmt: skip
    if counts:
        info(f"fold {fold} uses {', '.join(counts)} cases; scores are of these")
    if not (usable.train and usable.val) or (split.test and not usable.test):
        raise ValueError(f"fold {fold} has an empty split: {', '.join(counts)} cases can be used; fix or exclude these files")
    return usable


def warn_of_counts(task: DownstreamTask, settings: FinetuneSettings, cases: Sequence[FinetuneCase]) -> None:
    """Warns if the data set does not have its published size."""
    counts = {split: sum(case.split == split for case in cases) for split in ("train", "test")}
    counts |= {"scans": len(cases), "candidates": sum(len(case.candidates) for case in cases)}
    for name, expected in task.expected(settings).items():
        if counts[name] != expected:
            info(f"{name}: {counts[name]} cases, published are {expected}; scores are not comparable with published ones")


def run_fold(
    task: DownstreamTask, settings: Any, split: Split, folder: Path, files: InspectedFiles, *, synthetic: bool
) -> dict[str, pd.DataFrame]:
    """Trains (or continues), evaluates and writes one fold; a finished fold is only shown. Returns its predictions by split."""
    config = {"folder": task.folder, "settings": as_builtins(settings), "fold": folder.name, "cases": split_digests(split)}
    if task.data_setting == "table":
        config["scans"] = sorted({scan_key(case) for case in (*split.train, *split.val)})
    if settings.mode == "train" and (folder / results.SCORES).is_file():
        finished = results.read_summary(folder)
        loop.require_same_run(folder, finished["config"], config)
        if finished.get("finished", True):
            info(f"{folder} holds this run, finished; run_name=... starts another run")
            results.show_scores(task.title, finished["scores"])
            return {name: results.read_table(results.predictions_file(folder, name)) for name in finished["scores"]}
    task_type = task.build(settings)
    pl.seed_everything(settings.seed, verbose=False)
    summary = results.read_summary(folder) if (folder / results.SCORES).is_file() else {}
    task_type.setup(split, files)
    if settings.mode == "train":
        loaded = load_encoder(settings, synthetic=synthetic) if task_type.uses_encoder else None
        if loaded:
            info(loaded.origin)
        network = task_type.network(loaded and loaded.encoder)
        config |= {"vision": loaded.vision if loaded else {}, "state": task_type.state()}
        train = loop.train if task_type.uses_sgd else loop.fit_closed_form
        summary = train(task_type, network, split, folder, config)
        summary["encoder_coverage"] = loaded and loaded.coverage
    path = Path(settings.checkpoint) if settings.checkpoint else folder / "checkpoints" / "best.ckpt"
    if not summary.get("finished", True) and not path.is_file():
        raise ValueError(
            f"max_minutes={settings.max_minutes:g} stopped {folder} before its first validation (val_epochs="
            f"{settings.val_epochs}), so there are no scores yet; the same command continues"
        )
    stored = loop.read_finetuned(path)
    trained = stored["mg3d_finetune"]
    if settings.mode == "evaluate":
        check_evaluated_cases(path, trained, config)
    network = loop.load_network(task_type, stored)
    tables = loop.evaluate(task_type, network, split, mask_folder=folder / "masks" if settings.save_masks else None)
    if not is_first_rank():
        return tables
    out = folder / f"of-{path.stem}" if settings.checkpoint else folder
    summary |= {
        "folder": task.folder,
        "synthetic": synthetic,
        "checkpoint": str(path),
        "parameters_total": sum(parameter.numel() for parameter in network.parameters()),
        "config": {name: value for name, value in trained.items() if name not in ("state", "scans")},
    }
    scores = results.write_results(out, task_type, task.title, tables, summary)
    if task_type.uses_sgd and not split.test and task_type.selection != LAST_EPOCH:
        info("no test split: the best epoch was chosen on the reported cases, so the scores are slightly too high")
    results.show_scores(f"{task.title} (pretrained={trained['settings']['pretrained']}, {folder.name})", scores)
    if not summary.get("finished", True):
        info(
            f"max_minutes={settings.max_minutes:g} stopped the run after {summary['epochs']} of {settings.epochs} epochs, so the "
            "scores are provisional; the same command continues"
        )
    info(f"wrote {out}")
    return tables


def is_external(task: DownstreamTask, settings: Any, trained: Mapping[str, Any]) -> bool:
    """Whether a network is evaluated on another table than that of its training."""
    return task.data_setting == "table" and list(settings.table) not in ([], trained["settings"]["table"])


def evaluate_external(task: DownstreamTask, settings: Any, task_type: TaskType, stored: Mapping[str, Any], run: Path) -> Path:
    """Evaluates a network on every row of another table, except for scans that it was trained or selected on."""
    root, trained = Path(settings.table[0]), stored["mg3d_finetune"]
    seen = set(trained["scans"])
    listed = [dataclasses.replace(case, split="test", fold=NO_FOLD, error=case.error or SEEN * (scan_key(case) in seen))
              for case in task.read_cases(root, settings)]  # fmt: skip
    out = run / f"external-{root.stem}"
    cases = require_cases(listed, where=root)
    files = inspect_files(cases, task.results_folder(settings) / "files.json", channel=task_type.channel)
    excluded = exclude_unusable(listed, files, task_type, out)
    cases = [case for case in cases if case.case_id not in excluded]
    network = loop.load_network(task_type, stored)
    tables = loop.evaluate(task_type, network, Split([], [], cases), mask_folder=out / "masks" if settings.save_masks else None)
    if is_first_rank():
        dev = run / results.predictions_file(run, "val").name
        config = {name: value for name, value in trained.items() if name not in ("state", "scans")}
        summary = {"folder": task.folder, "external": [str(path) for path in settings.table], "config": config}
        scores = results.write_results(
            out, task_type, task.title, tables, summary, dev=results.read_table(dev) if dev.is_file() else None
        )
        results.show_scores(f"{task.title}, {root.name}", scores)
        info(f"wrote {out}")
    return out


def check_evaluated_cases(path: Path, trained: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises ValueError if evaluated cases may have been trained on; warns if the training cases differ."""
    if trained["fold"] != config["fold"]:
        raise ValueError(f"{path} was trained with {trained['fold']}; other folds would be evaluated on its training cases")
    if trained["cases"]["train"] != config["cases"]["train"]:
        info(f"{path} was trained on other cases than the training split here; make sure that no evaluated case is among them")


def pool_folds(task: DownstreamTask, task_type: TaskType, tables: Sequence[Mapping[str, pd.DataFrame]], folder: Path) -> None:
    """Pools the validation predictions of all folds: every training case, predicted by a network that has not seen it."""
    if not is_first_rank():
        return
    pooled = pd.concat([table["val"].assign(fold=fold) for fold, table in enumerate(tables)])
    pooled = pooled.sort_values("case_id", kind="stable").reset_index(drop=True)
    folds = [results.read_summary(folder / f"fold{fold}") for fold in range(len(tables))]
    cases = {f"fold{fold} {name}": digest for fold, one in enumerate(folds) for name, digest in one["config"]["cases"].items()}
    summary = {name: folds[0][name] for name in ("folder", "synthetic", "parameters_total", "config")}
    summary["config"] |= {"fold": folder.name, "cases": cases}
    summary |= {"folds": len(tables)}
    scores = results.write_results(folder / "all", task_type, task.title, {"val": pooled}, summary)
    results.show_scores(f"{task.title}, {len(tables)} folds (AUROC and AUPRC: mean over folds; others: pooled cases)", scores)
    if task_type.uses_sgd and task_type.selection != LAST_EPOCH:
        info("the best epochs were chosen on these cases, so the scores are slightly too high; select=last avoids that")
    unfinished = [str(fold) for fold, one in enumerate(folds) if not one.get("finished", True)]
    if unfinished:
        info(f"max_minutes stopped fold {', '.join(unfinished)} early: pooled scores are provisional; the same command continues")
    info(f"wrote {folder / 'all'}")
