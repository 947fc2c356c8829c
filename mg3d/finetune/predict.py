"""Predictions of a fine-tuned network for new scans."""

import shutil
from collections import Counter
from pathlib import Path

from torch import nn

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.distributed import info
from mg3d.finetune.images import SLICE_SUFFIXES, VOLUME_SUFFIXES, slice_files
from mg3d.finetune.loop import predict
from mg3d.finetune.results import write_table
from mg3d.finetune.tasks.base import TaskType
from mg3d.training.run import is_first_rank


def find_scans(path: Path) -> list[FinetuneCase]:
    """The scan at a path, or all scans in a folder; a folder of slice images is one scan.

    Raises:
        FileNotFoundError: there is no scan.
    """
    if path.is_file():
        return [FinetuneCase(case_id=_stem(path), patient_id=_stem(path), image=path)]
    if not path.is_dir():
        raise FileNotFoundError(f"input={path}: no such file or folder")
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    sources: list[tuple[Path, Path | tuple[Path, ...]]] = [
        (file, file) for file in files if file.name.lower().endswith(VOLUME_SUFFIXES)
    ]
    slices: dict[Path, list[Path]] = {}
    for file in slice_files(files):
        slices.setdefault(file.parent, []).append(file)
    sources += [(folder, tuple(images)) for folder, images in slices.items()]
    if not sources:
        raise FileNotFoundError(f"input={path} has no scan; known file types: {', '.join((*VOLUME_SUFFIXES, *SLICE_SUFFIXES))}")
    counts = Counter(_name(file, path) for file, _ in sources)
    names = [_name(file, path, with_suffix=counts[_name(file, path)] > 1) for file, _ in sources]
    return [FinetuneCase(case_id=name, patient_id=name, image=source) for name, (_, source) in zip(names, sources, strict=True)]


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").rpartition(".")[0] or file.name


def _name(file: Path, root: Path, *, with_suffix: bool = False) -> str:
    """Path below the root with `_`; files that differ in their suffix only (a.nii.gz, a.mha) keep it."""
    parts, stem = file.relative_to(root).parts[:-1], _stem(file) if file.is_file() else file.name
    return "_".join((*parts, stem)) + (file.name[len(stem) :].replace(".", "_") if with_suffix else "")


def predict_scans(task_type: TaskType, network: nn.Module, run: Path) -> Path:
    """Writes predictions for the scans at `input` into a new folder; unusable scans are listed in `excluded.csv`.

    Raises:
        ValueError: the folder exists, or no scan can be used.
        FileNotFoundError: there is no scan.
    """
    settings = task_type.settings
    out = Path(settings.output) if settings.output else run / "predictions"
    if out.exists():
        raise ValueError(f"{out} exists; choose a new folder: output=...")
    cases = task_type.for_prediction(find_scans(Path(settings.input)), Path(settings.input))
    partial = out.with_name(f".{out.name}.partial")
    if is_first_rank():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    table = predict(task_type, network, cases, mask_folder=partial, collect_errors=True)
    table = table if "error" in table else table.assign(error=None)
    errors = table[table["error"].notna()]
    predicted = table.drop(index=errors.index).drop(columns="error")
    if is_first_rank():
        excluded = errors.rename(columns={"error": "reason"})[["case_id", "reason"]].drop_duplicates("case_id")
        if len(predicted):
            write_table(partial / "predictions.csv", predicted.dropna(axis=1, how="all"))
        if len(excluded):
            write_table(partial / "excluded.csv", excluded)
        partial.replace(out)
        for row in excluded.head(3).itertuples():
            info(f"excluded {row.case_id}: {row.reason}")
    if predicted.empty:
        first = errors["error"].iloc[0]
        raise ValueError(f"none of {len(cases)} scans can be used, see {out / 'excluded.csv'}; the first: {first}")
    info(f"{predicted['case_id'].nunique()} of {len(cases)} scans predicted; wrote {out}")
    return out
