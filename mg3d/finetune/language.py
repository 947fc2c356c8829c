"""Arrow files of reports and of sentences, for what learns from text alone; volumes are not opened."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path
from mg3d.files import replacing
from mg3d.finetune.cases import Case, PreparedRow
from mg3d.finetune.cues import sentence_labels
from mg3d.finetune.prepared import is_prepared
from mg3d.glossary import LABELS
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.registry import SOURCES
from mg3d.sentence_spans import build_report, polarity, split_sentences

_LABELS = pa.list_(pa.int8(), len(LABELS))
_IDS = [pa.field(name, pa.string(), nullable=False) for name in ("study_id", "patient_id")]
REPORT_SCHEMA = pa.schema([*_IDS, pa.field("report", pa.string(), nullable=False), pa.field("labels", _LABELS, nullable=False)])
"""One row per study; labels 1, 0, -1 = not known."""
SENTENCE_SCHEMA = pa.schema(
    [
        *_IDS,
        pa.field("sentence", pa.string(), nullable=False),
        pa.field("labels", _LABELS, nullable=False),  # weakly, by words: 1 named, 0 denied, -1 not named
        pa.field("polarity", pa.int8(), nullable=False),  # -1 denies or calls normal, else 1
    ]
)


class Study(NamedTuple):
    """The text of one scan."""

    split: str
    study_id: str
    patient_id: str
    report: str
    labels: tuple[int, ...]


def language_path(folder: Path, dataset: str, kind: str, split: str) -> Path:
    """The file of one kind (`reports`, `sentences`) of one split."""
    return folder / f"{DATASETS[dataset].stem}_{kind}_{split}.arrow"


def has_language(folder: Path, dataset: str, *, every: bool = False) -> bool:
    """Whether a folder holds report files of a data set; every: those of all splits."""
    return (all if every else any)(language_path(folder, dataset, "reports", split).is_file() for split in SPLITS)


def studies(root: Path, dataset: str, *, val_patients: int = 500, seed: int = 0) -> Iterator[Study]:
    """Every study with a report once, of a prepared folder or of a data set in its own layout, with the same splits.

    Raises:
        FileNotFoundError, ValueError: as the scan of the data set.
    """
    seen: set[str] = set()
    for study in _prepared(root, dataset) if is_prepared(root, dataset) else _raw(root, dataset, val_patients, seed):
        if study.report and study.study_id not in seen:
            seen.add(study.study_id)
            yield study


def _prepared(root: Path, dataset: str) -> Iterator[Study]:
    names = ["study_id", "patient_id", "report", "labels"]
    for split in SPLITS:
        for row in VolumeIndex(index_path(root, dataset, split)).table.select(names).to_pylist():
            yield Study(split, row["study_id"], row["patient_id"], row["report"], tuple(row["labels"]))


def _raw(root: Path, dataset: str, val_patients: int, seed: int) -> Iterator[Study]:
    with tempfile.TemporaryDirectory() as scratch:
        choice = SourceOptions(out=Path(scratch), val_patients=val_patients, seed=seed, ctrg_split="resplit", limit=None)
        records = SOURCES[dataset](root, choice).records
    for record in records:
        report, _ = build_report(record.findings, record.impression)
        yield Study(record.split, record.study_id, record.patient_id, report, tuple(record.labels))


def write_language(root: Path, dataset: str, out: Path, *, val_patients: int = 500, seed: int = 0) -> dict[str, int]:
    """Writes six files into `out`, each whole or not at all, and leaves those that hold these rows; returns rows by file name.

    Raises:
        FileNotFoundError, ValueError: as `studies`; or the data set has no report.
    """
    found = list(studies(root, dataset, val_patients=val_patients, seed=seed))
    if not found:
        raise ValueError(f"{root} has no report of {DATASETS[dataset].title}; check its tables")
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split in SPLITS:
        part = [study for study in found if study.split == split]
        reports = [study._asdict() for study in part]
        sentences = [
            {"study_id": study.study_id, "patient_id": study.patient_id, "sentence": sentence,
             "labels": sentence_labels(sentence).tolist(), "polarity": polarity(sentence)}
            for study in part
            for sentence in (study.report[start:end] for start, end in split_sentences(study.report))
        ]  # fmt: skip
        for kind, rows, schema in (("reports", reports, REPORT_SCHEMA), ("sentences", sentences, SENTENCE_SCHEMA)):
            path = language_path(out, dataset, kind, split)
            table = pa.Table.from_pylist(rows, schema=schema)
            _write(path, table)
            counts[path.name] = len(table)
    return counts


def _write(path: Path, table: pa.Table) -> None:
    with contextlib.suppress(ValueError):  # none is there, or one that was cut off
        if _read(path).equals(table):
            return
    with replacing(path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)


def _read(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as stream:
            return pa.ipc.open_file(stream).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as an Arrow file ({type(error).__name__}); remove it and run again") from error


def read_language_cases(folder: Path, dataset: str) -> list[Case]:
    """One case per report, parts and folds as `read_prepared_cases`; there is no image behind them.

    Raises:
        FileNotFoundError: a file is missing.
    """
    cases = []
    for split in SPLITS:
        path = language_path(folder, dataset, "reports", split)
        if not path.is_file():
            raise FileNotFoundError(f"{folder} lacks {path.name}; make it with prepro/prepro_finetuning_language_data.py")
        rows = _read(path).to_pylist()
        part, fold = ("test" if split == "test" else "train"), int(split == "train")
        cases += [
            Case(case_id=row["study_id"], patient_id=row["patient_id"], image=PreparedRow(path, place), report=row["report"],
                 target=tuple(row["labels"]), part=part, fold=fold)
            for place, row in enumerate(rows)
        ]  # fmt: skip
    return cases
