"""Run all checks on a raw folder, a folder of Arrow files, or one index file."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mg3d.doctor.catalog import VolumeCatalog, detect_datasets, read_arrow, read_raw
from mg3d.doctor.checks import run_checks
from mg3d.doctor.data import DoctorData, read_ct_rate_tables, read_evaluation_list
from mg3d.doctor.dataset_checks import DATASET_CHECKS, count_volumes, prevalences, unreadable
from mg3d.doctor.downloads import check_files
from mg3d.doctor.results import SEVERITIES, CheckResult, Severity
from mg3d.doctor.statistics import measure_all

RAW_SAMPLE = 200
JSON_VERSION = 2

T = TypeVar("T")
Progress = Callable[[Iterable[T], str, int], Iterator[T]]
"""Wraps an iterable in a progress bar: (items, description, total)."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of `run_doctor`."""

    path: Path
    dataset: str | None = None
    """Of a raw folder; None detects CT-RATE and CTRG."""
    sample: int | None = None
    """Volumes whose voxels are read, in addition to incomplete files; None: 200 of a raw folder, all of Arrow files; 0: all."""
    workers: int = 1
    lists: tuple[Path, ...] = ()
    """Evaluation lists."""
    prepared: Path | None = None
    """Output folder of the preparation, whose salt gives the ids of CTRG and custom data."""
    table: Path | None = None
    """custom: table of volumes and reports."""
    val_patients: int = 500
    seed: int = 0


@dataclass
class DoctorReport:
    """Results of all checks, errors first."""

    data: DoctorData
    results: list[CheckResult]

    @property
    def verdict(self) -> Severity:
        """The worst severity."""
        return self.results[0].severity if self.results else "info"

    def as_dict(self) -> dict[str, Any]:
        """As builtins, for JSON."""
        catalog = self.data.catalog
        return {
            "version": JSON_VERSION,
            "path": str(catalog.path),
            "kind": catalog.kind,
            "datasets": catalog.datasets,
            "synthetic": catalog.is_synthetic,
            "verdict": self.verdict,
            "volumes": len(catalog.rows),
            "volumes_read": len(self.data.statistics),
            "counts": count_volumes(catalog),
            "prevalence": [part._asdict() for part in prevalences(catalog)],
            "results": [result.as_dict() for result in self.results],
        }


def run_doctor(options: DoctorOptions, progress: Progress) -> DoctorReport:
    """Checks a folder or index file.

    Raises:
        FileNotFoundError, ValueError: it does not exist or is not recognized, or an evaluation list cannot be read.
    """
    lists = {path.name: read_evaluation_list(path) for path in options.lists}
    roots = detect_datasets(options.path, options.dataset)
    if roots:
        draw = {"val_patients": options.val_patients, "seed": options.seed}
        catalog = read_raw(options.path, roots, prepared=options.prepared, table=options.table, **draw)
    else:
        catalog = read_arrow(options.path)
    data = DoctorData(catalog, evaluation_lists=lists)
    results = [unreadable(reason) for reason in catalog.failures]
    results += [CheckResult(code="note", severity="info", message=note) for note in catalog.notes]
    if "ct_rate" in roots and not catalog.failures:
        data.ct_rate = list(read_ct_rate_tables(roots["ct_rate"]))
    _read_volumes(data, options, progress)
    results += run_checks(data)
    if len(catalog.rows):
        results += [result for check in DATASET_CHECKS for result in check(data)]
    message = f"voxels of {len(data.statistics):,} of {len(catalog.rows):,} usable volumes were read"
    results.append(CheckResult(code="examined", severity="info", message=message))
    return DoctorReport(data, sorted(results, key=lambda result: SEVERITIES.index(result.severity)))


def _read_volumes(data: DoctorData, options: DoctorOptions, progress: Progress) -> None:
    """Reads the voxels of a sample, and of all raw files that are incomplete."""
    sources, chosen = data.catalog.sources, sample_rows(data.catalog, options.sample)
    if data.catalog.kind == "raw":
        incomplete = progress(check_files(sources), "files", len(sources))
        chosen = sorted({*chosen, *(row for row, is_incomplete in enumerate(incomplete) if is_incomplete)})
    measured = measure_all([sources[row] for row in chosen], options.workers)
    data.statistics = dict(zip(chosen, progress(measured, "voxels", len(chosen))))


def sample_rows(catalog: VolumeCatalog, sample: int | None) -> list[int]:
    """Evenly spaced rows, see `DoctorOptions.sample`."""
    total = len(catalog.rows)
    count = sample if sample is not None else RAW_SAMPLE if catalog.kind == "raw" else 0
    return list(range(total)) if not count else [int(row) for row in np.linspace(0, total - 1, min(count, total)).round()]
