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
from mg3d.preparation.sources.scan_walk import walk_scans
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
    walk = walk_scans(path, VOLUME_SUFFIXES, image_suffixes=SLICE_SUFFIXES)
    sources: list[tuple[Path, Path | tuple[Path, ...]]] = [(path / scan, path / scan) for scan in walk.scans]
    sources += [(path / folder, slice_files((path / folder).iterdir())) for folder in walk.slice_folders]
    if not sources:
        known, passed_over = ", ".join((*VOLUME_SUFFIXES, *SLICE_SUFFIXES)), f"; {walk.note}" if walk.note else ""
        raise FileNotFoundError(f"input={path} has no scan; known file types: {known}, DICOM{passed_over}")
    if walk.note:
        info(walk.note)
    counts = Counter(_name(file, path) for file, _ in sources)
    names = [_name(file, path, with_suffix=counts[_name(file, path)] > 1) for file, _ in sources]
    return [FinetuneCase(case_id=name, patient_id=name, image=source) for name, (_, source) in zip(names, sources, strict=True)]


def _stem(file: Path) -> str:
    name = file.name[:-3] if file.suffix.lower() == ".gz" else file.name
    return name.rpartition(".")[0] or file.name


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
