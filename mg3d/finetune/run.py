"""The command of every folder below `downstream/`: words -> settings -> training, evaluation, prediction, comparison."""

import dataclasses
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytorch_lightning as pl
from rich.console import Console

from mg3d.finetune import arrows
from mg3d.finetune import predict as prediction
from mg3d.finetune.cases import Parts, assign_folds, check_cases, divide, divided, refuse_other_cases, shared_patients
from mg3d.finetune.compare import compare
from mg3d.finetune.encoder import ScaledInput, network_file, start_encoder, told_from_scratch
from mg3d.finetune.fit import evaluate_checkpoint, fit, refuse_other_settings
from mg3d.finetune.kinds.base import Kind
from mg3d.finetune.kinds.registry import build_kind
from mg3d.finetune.results import predictions_file, read_facts, read_scores, read_table, show_scores, write_results, write_table
from mg3d.finetune.settings import ENCODER_WORDS, FinetuneSettings, parse_settings, read_words, refuse_missing, usage
from mg3d.finetune.settle import settle
from mg3d.finetune.sources import is_synthetic, read_root
from mg3d.finetune.task import Task
from mg3d.finetune.usable import set_aside
from mg3d.settings.parse import convert_value
from mg3d.training.run import is_first_rank

console = Console(highlight=False)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
for _sentence in (".*in eval mode at the start.*", ".*exists and is not empty.*", ".*does not have many workers.*",
                  ".*LeafSpec.*", ".*number of training batches.*smaller than the logging interval.*", ".*lr_scheduler.step.*",
                  ".*lazy modules.*", ".*divided by 0 or nan.*"):  # fmt: skip
    warnings.filterwarnings("ignore", _sentence)

USAGE = """\
{title}
usage: bash downstream/{folder}/finetune.sh [name=value ...]

  data_root=phantom                     a synthetic set in this data set's own layout: see it work on a CPU
  data_root=... pretrained=... fold=0   fine-tune, then evaluate
  pretrained=none encoder=FILE fold=0   the very network of FILE from scratch, to compare with pretrained=FILE
  folds=all                             every fold, and the pooled result
  mode=evaluate | mode=predict input=... | mode=compare other=...

settings and their values in this folder (README.md tells what those mean that only this folder has, which come first)
{settings}"""


def say(sentence: str) -> None:
    """Prints one line, from the first rank only."""
    if is_first_rank():
        console.print(f"mg3d: {sentence}", soft_wrap=True)


def run(task: Task, arguments: Sequence[str]) -> int:
    """The command line of a folder; returns the exit code. A user's mistake is one sentence on stderr."""
    if any(word in ("-h", "--help", "help") for word in arguments):
        print(USAGE.format(title=task.title, folder=task.folder, settings=usage(task.defaults, task.options, task.phantom)))
        return 0
    try:
        command(task, read_words([word for word in arguments if word != "with"]))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"mg3d: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mg3d: stopped; the same command goes on from the last epoch", file=sys.stderr)
        return 130
    return 0


def sentence(error: BaseException) -> str:
    """What went wrong: our own words, also out of a loader process and out of a MONAI transform."""
    while error.__cause__ is not None and type(error) is RuntimeError:
        error = error.__cause__
    lines = [line for line in str(error).split("\n") if line.strip()]
    told = [line.partition(": ")[2] for line in lines if line.startswith(("ValueError: ", "FileNotFoundError: "))]
    return told[0] if told else " ".join(lines[:1])


def command(task: Task, given: Mapping[str, Any]) -> None:
    """Runs what the settings ask for; raises ValueError or OSError for a user's mistake."""
    task, given, options, synthetic, prepared = declaration(task, given)
    of_task = dict(task.defaults)
    if synthetic:
        task, small = on_phantom(task)
        of_task |= small
    settings = parse_settings(given, defaults=of_task, options=task.options)
    refuse_missing(settings, options)
    kind = build_kind(task, settings)
    folder = run_folder(task, settings, synthetic=synthetic)
    if settings.mode == "predict":
        prediction.predict(kind, folder / f"fold{settings.fold}", say=say)
        return
    if settings.mode == "compare":
        compare(kind, Path(settings.other), folder / ("all" if settings.folds == "all" else f"fold{settings.fold}"), say=say)
        return
    root = read_root(task, settings, synthetic=synthetic, say=say)
    cases = arrows.read_cases(prepared) if prepared else task.read_cases(root, settings)
    check_cases(cases, where=root)
    cases = assign_folds(cases, task.folds, seed=settings.seed)
    wanted = range(task.folds) if settings.folds == "all" else [settings.fold]
    divisions = [limited(divide(cases, fold=fold, folds=task.folds), settings.max_cases) for fold in wanted]
    refused = bad_cases(kind, divisions, folder)
    warn_of_counts(task, [case for case in cases if case.case_id not in refused], synthetic=synthetic)
    tables: list[dict[str, pd.DataFrame]] = []
    for fold, parts in zip(wanted, divisions, strict=True):
        usable = usable_parts(parts, refused, fold)
        tables.append(run_fold(build_kind(task, settings), usable, folder / f"fold{fold}", synthetic=synthetic, options=options))
    if settings.folds == "all":
        pool(kind, tables, folder / "all", folds=len(tables))


class Declaration(NamedTuple):
    """What a user's words and the data behind them make of a folder's task."""

    task: Task
    given: dict[str, Any]
    options: dict[str, Any]
    """The folder's own settings."""
    synthetic: bool
    prepared: Path | None
    """The Arrow file that takes the place of raw files."""


def declaration(task: Task, given: Mapping[str, Any]) -> Declaration:
    """See `Declaration`; ValueError or OSError for a user's mistake."""
    data_root, given = str(given.get("data_root", "")), dict(given)
    prepared = arrows.find_prepared(data_root, task.folder)
    facts = arrows.read_facts(prepared, task.folder) if prepared else {}
    if prepared:
        given = arrows.with_stored(given, facts, prepared)
    options = {name: option_value(name, given.get(name, value), value) for name, value in task.options.items()}
    synthetic = is_synthetic(data_root) and (data_root != "" or given.get("mode") != "predict")
    synthetic = facts.get("synthetic", synthetic)
    if task.adapt:
        file = network_file(str(given.get("encoder", "auto")), str(given.get("pretrained", "none")))
        where = {"data_root": "" if prepared else data_root, "pretrained": file, "synthetic": synthetic}
        task = task.adapt(task, options | where)
    if prepared:
        task = arrows.with_declared(task, facts)
    return Declaration(task, given, options, synthetic, prepared)


def option_value(name: str, value: Any, usual: Any) -> Any:
    """A folder's own setting as the type of its default; ValueError with what was expected otherwise."""
    if isinstance(usual, str):
        return str(value)
    return convert_value(name, value, type(usual)) if isinstance(usual, (bool, int, float)) else value


def on_phantom(task: Task) -> tuple[Task, dict[str, Any]]:
    """The task as the synthetic set needs it, and the settings that go with it."""
    fields = {name.removeprefix("preprocess."): value for name, value in task.phantom.items() if name.startswith("preprocess.")}
    small = {name: value for name, value in task.phantom.items() if "." not in name}
    return dataclasses.replace(task, preprocess=dataclasses.replace(task.preprocess, **fields)), small


def run_folder(task: Task, settings: FinetuneSettings, *, synthetic: bool) -> Path:
    """Where all folds of this run write."""
    start = "scratch" if settings.pretrained == "none" else Path(settings.pretrained).name.split(".")[0] or "pretrained"
    word = settings.encoder if settings.encoder in ENCODER_WORDS else f"as-{Path(settings.encoder).name.split('.')[0]}"
    name = settings.run_name or f"{word}-{start}" + ("-phantom" if synthetic else "")
    return Path(settings.log_dir) / task.name / name


def bad_cases(kind: Kind, divisions: Sequence[Parts], folder: Path) -> set[str]:
    """Names of the cases that cannot be read, which `set_aside.csv` tells with their reasons."""
    cases = list({case.case_id: case for parts in divisions for part in parts for case in part}.values())
    refused = set_aside(cases, kind.memory, channel=kind.task.preprocess.channel)
    if refused and is_first_rank():
        write_table(folder / "set_aside.csv", pd.DataFrame(refused))
        say(f"{len(refused)} of {len(cases)} cases are set aside: {folder / 'set_aside.csv'}; the first: {refused[0]['reason']}")
    return {row["case_id"] for row in refused}


def usable_parts(parts: Parts, refused: Collection[str], fold: int) -> Parts:
    """Parts without those cases; says how many of a part are left, ValueError when nothing is left to learn from or choose by."""
    kept = Parts(*([case for case in part if case.case_id not in refused] for part in parts))
    told = [f"{len(there)} of {len(part)} {name}" for name, part, there in zip(Parts._fields, parts, kept, strict=True)
            if len(there) < len(part)]  # fmt: skip
    if told:
        say(f"fold {fold} goes on with {', '.join(told)} cases; no score counts the others")
    if not (kept.train and kept.val) or (parts.test and not kept.test):
        raise ValueError(f"fold {fold} is left without a case of a part: {', '.join(told)} can be used; mend their files")
    return kept


def limited(parts: Parts, most: int) -> Parts:
    """At most so many cases of each part, spread over it, as a part may list one class after another; all for 0."""
    return Parts(
        *([part[place * len(part) // most] for place in range(most)] if 0 < most < len(part) else part for part in parts)
    )


def warn_of_counts(task: Task, cases: Sequence[Any], *, synthetic: bool) -> None:
    """Says when a data set does not have its published number of cases; half a download is no error."""
    counts = Counter(case.part for case in cases)
    counts |= {"scans": len(cases), "candidates": sum(len(case.candidates) for case in cases)}
    for part, expected in ({} if synthetic else task.expected).items():
        found = counts[part]
        if found != expected:
            say(f"{part}: {found}, published are {expected}; scores are not comparable with published ones")


def run_fold(kind: Kind, parts: Parts, folder: Path, *, synthetic: bool, options: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Trains (or goes on), evaluates and writes one fold; a finished one is only shown. Returns its predictions by part."""
    settings, task = kind.settings, kind.task
    if (folder / "scores.json").is_file() and settings.mode == "train":
        refuse_other_run(folder, settings, options)
        refuse_other_cases(folder, read_facts(folder).get("divided"), divided(parts))
        if read_facts(folder).get("finished", True):
            say(f"{folder} holds this run, finished; run_name=... starts another")
            tell_of_no_test_part(kind, parts)
            show_scores(console, task.title, read_scores(folder))
            return {part: read_table(predictions_file(folder, part)) for part in read_facts(folder)["scores"]}
    shared = shared_patients(parts)
    if shared and settings.split != "original":
        raise ValueError(
            f"{len(shared)} patients are both learned from and judged on, such as {shared[:3]}; check the split files"
        )
    if shared:
        say(f"split=original: {len(shared)} patients are both learned from and judged on; scores are too high")
    kind.check([*parts.train, *parts.val, *parts.test])
    pl.seed_everything(settings.seed, verbose=False)
    kind.fit(parts.train)
    facts: dict[str, Any] = {"folder": task.folder, "synthetic": synthetic, "options": dict(options), "divided": divided(parts)}
    if settings.mode == "evaluate" and (folder / "scores.json").is_file():
        facts = {name: value for name, value in read_facts(folder).items() if name in OF_TRAINING} | facts
    if settings.mode == "train":
        started = start_encoder(settings, synthetic=synthetic)
        if task.kind != "labeller":  # which reads reports alone
            say(str(started.report or told_from_scratch(settings, synthetic=synthetic)))
        if task.preprocess.window is None and isinstance(started.encoder, ScaledInput):
            started.encoder.forget()
        identity = {
            "folder": task.name,
            "preprocess": dataclasses.asdict(task.preprocess),
            "vision": started.vision,
            "kind": kind.state(),
            "settings": dataclasses.asdict(settings),
            "options": json.loads(json.dumps(dict(options))),
            "fold": folder.name,
            "divided": divided(parts),
        }
        network = kind.network(started.encoder)
        for note in kind.notes:
            say(note)
        if kind.by_steps:
            facts |= fit(kind, network, parts, folder, identity=identity, say=say)
        else:
            facts |= settle(kind, network, parts, folder, identity=identity, say=say)
        facts["encoder_coverage"] = started.report.encoder_coverage if started.report else None
    tables, found = evaluate_checkpoint(kind, parts, folder, say=say)
    if not is_first_rank():
        return tables
    others = settings.checkpoint and settings.mode == "evaluate"
    out = folder / f"of-{Path(settings.checkpoint).stem}" if others else folder
    scores = write_results(out, kind, tables, facts=facts | found, dev=tables.get("val"))
    tell_of_no_test_part(kind, parts)
    show_scores(console, f"{task.title} ({found['trained']['settings']['pretrained']}, fold {folder.name[4:]})", scores)
    if not facts.get("finished", True):
        say("stopped at max_minutes before the last epoch; the same command goes on")
    say(f"wrote {out}")
    return tables


def tell_of_no_test_part(kind: Kind, parts: Parts) -> None:
    """Says that scores are of the cases that the epoch was chosen by, where they are."""
    if kind.by_steps and not parts.test:
        say("there is no test part: the best epoch was chosen on the cases that are reported, so scores are somewhat too high")


OF_TRAINING = ("minutes", "peak_memory_gb", "processes", "epochs", "finished", "cases", "parameters", "encoder_coverage")
"""Facts of scores.json that an evaluation leaves as they are."""


def refuse_other_run(folder: Path, settings: FinetuneSettings, options: Mapping[str, Any]) -> None:
    """Raises ValueError when the finished run in `folder` had other settings or options."""
    if not settings.resume:
        raise ValueError(f"{folder} holds a run; run_name=... starts another beside it")
    facts = read_facts(folder)
    refuse_other_settings(folder, facts["settings"] | facts["options"], dataclasses.asdict(settings) | dict(options))


def divided_folds(folder: Path, folds: int) -> dict[str, str]:
    """`divided` of every fold below `folder`."""
    each = {f"fold{fold}": read_facts(folder / f"fold{fold}")["divided"] for fold in range(folds)}
    return {f"{fold} {part}": told for fold, parts in each.items() for part, told in parts.items()}


def pool(kind: Kind, tables: Sequence[Mapping[str, pd.DataFrame]], folder: Path, *, folds: int) -> None:
    """Every training case predicted once, by the network that did not learn from it: one table, its scores and a page."""
    if not is_first_rank():
        return
    pooled = pd.concat([table["val"] for table in tables]).sort_values("case_id", kind="stable").reset_index(drop=True)
    each = pd.DataFrame([kind.statistics(table["val"]) for table in tables])
    spread = {name: {"mean": float(each[name].mean()), "sd": float(each[name].std())} for name in each}
    one = read_facts(folder.parent / "fold0")
    one["trained"] |= {"fold": folder.name, "divided": divided_folds(folder.parent, folds)}
    facts = {name: one[name] for name in ("folder", "synthetic", "options", "trained", "parameters_in_all")}
    scores = write_results(folder, kind, {"val": pooled}, facts=facts | {"folds": folds, "between_folds": spread}, dev=None)
    show_scores(console, f"{kind.task.title}, {folds} folds pooled", scores)
    metric = spread[kind.task.metric]
    say(f"{kind.task.metric} of the folds: {metric['mean']:.3f} +- {metric['sd']:.3f} (deviation between folds); wrote {folder}")
