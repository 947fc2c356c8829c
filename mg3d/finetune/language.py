"""Arrow files of reports and sentences with labels, for the report labeller; volumes are not opened."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path
from mg3d.files import replacing
from mg3d.finetune.cases import FinetuneCase, PreparedRow
from mg3d.finetune.negation import sentence_labels
from mg3d.finetune.prepared import is_prepared
from mg3d.glossary import LABELS
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.registry import SOURCES
from mg3d.sentence_spans import build_report, polarity, split_sentences

_IDS = [("study_id", pa.string()), ("patient_id", pa.string())]
_LABELS = ("labels", pa.list_(pa.int8(), len(LABELS)))
REPORT_SCHEMA = pa.schema([*_IDS, ("report", pa.string()), _LABELS])
"""One row per study; labels 1, 0, -1 = unknown."""
SENTENCE_SCHEMA = pa.schema([*_IDS, ("sentence", pa.string()), _LABELS, ("polarity", pa.int8())])
"""Weak labels by cue words: 1 mentioned, 0 negated, -1 not mentioned. polarity: -1 for a negated or normal finding, else 1."""


class StudyText(NamedTuple):
    """The report of one study."""

    split: str
    study_id: str
    patient_id: str
    report: str
    labels: tuple[int, ...]


def language_path(folder: Path, dataset: str, kind: str, split: str) -> Path:
    """The file of `reports` or `sentences` of one split."""
    return folder / f"{DATASETS[dataset].stem}_{kind}_{split}.arrow"


def has_reports(folder: Path, dataset: str) -> bool:
    """Whether a folder has the report files of all splits."""
    return all(language_path(folder, dataset, "reports", split).is_file() for split in SPLITS)


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


def write_language(root: Path, dataset: str, out: Path, *, val_patients: int = 500, seed: int = 0) -> dict[str, int]:
    """Writes reports and sentences of each split into `out`; unchanged files are kept. Returns rows by file name.

    Raises:
        FileNotFoundError, ValueError: as `read_studies`; or the data set has no report.
    """
    studies = list(read_studies(root, dataset, val_patients=val_patients, seed=seed))
    if not studies:
        raise ValueError(f"{root} has no report of {DATASETS[dataset].title}; check its tables")
    counts = {}
    for split in SPLITS:
        part = [study for study in studies if study.split == split]
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
    with contextlib.suppress(ValueError):  # missing or truncated
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


def read_language_cases(folder: Path, dataset: str) -> list[FinetuneCase]:
    """One case per report, with splits and folds as `read_prepared_cases`; there is no image.

    Raises:
        FileNotFoundError: a file is missing.
    """
    cases = []
    for split in SPLITS:
        path = language_path(folder, dataset, "reports", split)
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
