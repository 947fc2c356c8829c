"""Reports with labels as cases without an image, for the report labeller."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path
from mg3d.finetune.cases import FinetuneCase, split_and_fold
from mg3d.finetune.prepared import is_prepared
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.registry import SOURCES
from mg3d.sentence_spans import build_report


def read_report_cases(root: Path, dataset: str, *, val_patients: int = 500, seed: int = 0) -> list[FinetuneCase]:
    """One case per study with a report, from a prepared folder or from the published layout, with the same splits.

    Raises:
        FileNotFoundError, ValueError: as the listing of the data set; or it has no report.
    """
    rows = _prepared(root, dataset) if is_prepared(root, dataset) else _raw(root, dataset, val_patients, seed)
    cases: dict[str, FinetuneCase] = {}
    for split, row in rows:
        if row["report"] and row["case_id"] not in cases:
            official, fold = split_and_fold(split)
            cases[row["case_id"]] = FinetuneCase(**row, image=None, split=official, fold=fold)
    if not cases:
        raise ValueError(f"{root} has no report of {DATASETS[dataset].title}; check its tables")
    return list(cases.values())


def _prepared(root: Path, dataset: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for split in SPLITS:
        table = VolumeIndex(index_path(root, dataset, split)).table.select(["study_id", "patient_id", "report", "labels"])
        for row in table.to_pylist():
            yield split, {"case_id": row.pop("study_id"), "target": tuple(row.pop("labels")), **row}


def _raw(root: Path, dataset: str, val_patients: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as scratch:
        options = SourceOptions(out=Path(scratch), val_patients=val_patients, seed=seed, ctrg_split="resplit", limit=None)
        records = SOURCES[dataset](root, options).records
    for record in records:
        report, _ = build_report(record.findings, record.impression)
        identity = {"case_id": record.study_id, "patient_id": record.patient_id}
        yield record.split, identity | {"report": report, "target": tuple(record.labels)}
