"""Arrow files of reports with labels, for the report labeller; volumes are not opened."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path
from mg3d.files import replacing
from mg3d.finetune.cases import FinetuneCase, PreparedRow
from mg3d.finetune.prepared import is_prepared
from mg3d.glossary import LABELS
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.registry import SOURCES
from mg3d.sentence_spans import build_report

SCHEMA = pa.schema(
    [
        ("study_id", pa.string()),
        ("patient_id", pa.string()),
        ("report", pa.string()),
        ("labels", pa.list_(pa.int8(), len(LABELS))),
    ]
)
"""One row per study; labels 1, 0, -1 = unknown."""


class StudyText(NamedTuple):
    """The report of one study."""

    split: str
    study_id: str
    patient_id: str
    report: str
    labels: tuple[int, ...]


def reports_path(folder: Path, dataset: str, split: str) -> Path:
    """The file of one split."""
    return folder / f"{DATASETS[dataset].stem}_reports_{split}.arrow"


def has_reports(folder: Path, dataset: str) -> bool:
    """Whether a folder has the report files of all splits."""
    return all(reports_path(folder, dataset, split).is_file() for split in SPLITS)


def read_studies(root: Path, dataset: str, *, val_patients: int = 500, seed: int = 0) -> Iterator[StudyText]:
    """Every study with a report, from a prepared folder or from the published layout, with the same splits.

    Raises:
        FileNotFoundError, ValueError: as the listing of the data set.
    """
    seen: set[str] = set()
    for study in _prepared(root, dataset) if is_prepared(root, dataset) else _raw(root, dataset, val_patients, seed):
        if study.report and study.study_id not in seen:
            seen.add(study.study_id)
            yield study


def _prepared(root: Path, dataset: str) -> Iterator[StudyText]:
    for split in SPLITS:
        table = VolumeIndex(index_path(root, dataset, split)).table.select(["study_id", "patient_id", "report", "labels"])
        for row in table.to_pylist():
            yield StudyText(split, row["study_id"], row["patient_id"], row["report"], tuple(row["labels"]))


def _raw(root: Path, dataset: str, val_patients: int, seed: int) -> Iterator[StudyText]:
    with tempfile.TemporaryDirectory() as scratch:
        options = SourceOptions(out=Path(scratch), val_patients=val_patients, seed=seed, ctrg_split="resplit", limit=None)
        records = SOURCES[dataset](root, options).records
    for record in records:
        report, _ = build_report(record.findings, record.impression)
        yield StudyText(record.split, record.study_id, record.patient_id, report, tuple(record.labels))


def write_reports(root: Path, dataset: str, out: Path, *, val_patients: int = 500, seed: int = 0) -> dict[str, int]:
    """Writes the reports of each split into `out`. Returns rows by file name.

    Raises:
        FileNotFoundError, ValueError: as `read_studies`; or the data set has no report.
    """
    studies = list(read_studies(root, dataset, val_patients=val_patients, seed=seed))
    if not studies:
        raise ValueError(f"{root} has no report of {DATASETS[dataset].title}; check its tables")
    counts = {}
    for split in SPLITS:
        path = reports_path(out, dataset, split)
        table = pa.Table.from_pylist([study._asdict() for study in studies if study.split == split], schema=SCHEMA)
        with replacing(path) as stream, pa.ipc.new_file(stream, SCHEMA) as writer:
            writer.write_table(table)
        counts[path.name] = len(table)
    return counts


def _read(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as stream:
            return pa.ipc.open_file(stream).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as an Arrow file ({type(error).__name__}); remove it and run again") from error


def read_report_cases(folder: Path, dataset: str) -> list[FinetuneCase]:
    """One case per report, with splits and folds as `read_prepared_cases`; there is no image.

    Raises:
        FileNotFoundError: a file is missing.
    """
    cases = []
    for split in SPLITS:
        path = reports_path(folder, dataset, split)
        if not path.is_file():
            raise FileNotFoundError(f"{folder} lacks {path.name}; make it with prepro/prepro_finetuning_language_data.py")
        official, fold = ("test" if split == "test" else "train"), int(split == "train")
        cases += [
            FinetuneCase(
                case_id=row["study_id"], patient_id=row["patient_id"], image=PreparedRow(path, index), report=row["report"],
                target=tuple(row["labels"]), split=official, fold=fold,
            )
            for index, row in enumerate(_read(path).to_pylist())
        ]  # fmt: skip
    return cases
