"""Integrity checks of Arrow files: leaks between splits, empty training split, units, shapes, ids, missing shards.

Fast enough for every start of a training run (0.1 s for CT-RATE): only columns of the index files are read, no voxels.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path
from mg3d.sentence_spans import SPANS_VERSION

NO_REPORT = hashlib.sha256(b"").hexdigest()
"""`report_sha256` of volumes without a report; not a leak."""
MAX_EXAMPLES = 1000


class LeakError(ValueError):
    """A patient, study or image is in more than one split."""


@dataclass(frozen=True)
class DataProblem:
    """A problem of prepared files."""

    code: str
    message: str
    fix: str
    is_error: bool = True
    """False: a warning."""
    volumes: tuple[str, ...] = ()
    """Ids of affected volumes, at most `MAX_EXAMPLES`."""


class LeakCheck(NamedTuple):
    """A column whose values must not occur in two splits."""

    code: str
    noun: str
    fix: str
    is_error: bool = True


LEAK_CHECKS = {
    "patient_id": LeakCheck("patient_in_two_splits", "patients", "Assign each patient to one split and rerun the preparation"),
    "study_id": LeakCheck("study_in_two_splits", "studies", "Assign each study to one split and rerun the preparation"),
    "image_sha256": LeakCheck(
        "duplicate_pixels", "images", "Remove one of each pair from the raw folder or from its tables and rerun the preparation"
    ),
    "report_sha256": LeakCheck(
        "duplicate_report_other_patient", "reports", "Harmless for short standard reports; else check for duplicate patients",
        is_error=False,
    ),
}  # fmt: skip
"""Column -> check."""


def find_leaks(table: pa.Table) -> list[DataProblem]:
    """Values of the columns of `LEAK_CHECKS` that occur in more than one `split`; the table also has a `volume_id`."""
    problems = []
    for column, check in LEAK_CHECKS.items():
        shared = shared_values(table, column) if column in table.column_names else {}
        shared.pop(NO_REPORT, None)
        if shared:
            message = f"{check.noun} in more than one split: {len(shared)}, e.g. {' and '.join(next(iter(shared.values()))[:2])}"
            volumes = tuple(volume for members in shared.values() for volume in members)[:MAX_EXAMPLES]
            problems.append(DataProblem(check.code, message, check.fix, check.is_error, volumes))
    return problems


def shared_values(table: pa.Table, column: str, group: str = "split") -> dict[str, list[str]]:
    """Values of `column` that occur in more than one `group` -> the first volume of each group, in the order of the table."""
    narrow = pa.table({"value": table[column], "group": pc.cast(table[group], pa.string()), "volume": table["volume_id"]})
    ranges = narrow.group_by("value", use_threads=False).aggregate([("group", "min"), ("group", "max")])
    values = ranges.filter(pc.not_equal(ranges["group_min"], ranges["group_max"]))["value"]
    shared: dict[str, dict[str, str]] = {}
    for row in narrow.filter(pc.is_in(narrow["value"], values.combine_chunks())).to_pylist():
        shared.setdefault(row["value"], {}).setdefault(row["group"], row["volume"])
    return {value: list(members.values()) for value, members in shared.items()}


def check_arrow_files(data_root: Path, datasets: Iterable[str]) -> list[DataProblem]:
    """Problems of the index files of `datasets` in `data_root`, errors first.

    Raises:
        FileNotFoundError, ValueError: a data set has no index file, or one is unreadable.
    """
    indices = {name: _open_splits(data_root, name) for name in datasets}
    problems = [problem for name, splits in indices.items() for problem in _check_dataset(name, splits)]
    parts = [
        index.table.select(["volume_id", *LEAK_CHECKS]).append_column("split", pa.repeat(pa.scalar(split), len(index)))
        for splits in indices.values()
        for split, index in splits.items()
    ]
    table = pa.concat_tables(part.replace_schema_metadata(None) for part in parts)
    return sorted([*problems, *_check_duplicate_ids(table), *find_leaks(table)], key=lambda problem: not problem.is_error)


def require_valid(data_root: str | Path, datasets: Iterable[str]) -> list[str]:
    """Raise for the first error of `check_arrow_files`; returns the warnings.

    URLs are not checked.

    Raises:
        ValueError: an error was found.
        FileNotFoundError, ValueError: an index file is missing or unreadable.
    """
    if "://" in str(data_root):
        return []
    problems = check_arrow_files(Path(data_root), datasets)
    errors = [problem for problem in problems if problem.is_error]
    if errors:
        more = f" ({len(errors) - 1} more: python tools/doctor.py {data_root})" if len(errors) > 1 else ""
        raise ValueError(f"{data_root}: {errors[0].message}. {errors[0].fix}{more}")
    return [f"{problem.message}. {problem.fix}" for problem in problems]


def _open_splits(data_root: Path, dataset: str) -> dict[str, VolumeIndex]:
    """Split -> index, of the index files that exist; a data set without any fails on its training split."""
    paths = {split: index_path(data_root, dataset, split) for split in SPLITS}
    existing = {split: VolumeIndex(path) for split, path in paths.items() if path.is_file()}
    return existing or {"train": VolumeIndex(paths["train"])}


def _check_dataset(name: str, splits: Mapping[str, VolumeIndex]) -> list[DataProblem]:
    title, problems = DATASETS[name].title, []
    if "train" in splits and not len(splits["train"]):
        problems.append(DataProblem("empty_train", f"{title} has no training volumes", "Prepare more of the raw data"))
    filled = {split: index for split, index in splits.items() if len(index)}
    units = {unit for index in filled.values() for unit in pc.unique(index.table["intensity_unit"]).to_pylist()}
    if len(units) > 1:
        message = f"{title} mixes intensity units: {', '.join(sorted(units))}"
        problems.append(DataProblem("mixed_units", message, "Prepare all splits with the same options"))
    for key, code, noun in (("shape", "shape_disagreement", "shapes"), ("preproc_hash", "recipe_disagreement", "options")):
        values = {split: json.dumps(index.metadata.get(key)) for split, index in filled.items()}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{split} {value[:18]}" for split, value in values.items())
            message = f"the splits of {title} were prepared with different {noun} ({listed})"
            problems.append(DataProblem(code, message, "Prepare all splits with the same options"))
    problems += _check_sentence_spans(name, filled)
    for index in filled.values():
        try:
            index.open_shards()
        except (FileNotFoundError, ValueError) as error:
            message, _, fix = str(error).rpartition(". ")
            problems.append(DataProblem("missing_shard", message, fix))
    return problems


def _check_sentence_spans(name: str, filled: Mapping[str, VolumeIndex]) -> list[DataProblem]:
    versions = {split: index.metadata.get("sentence_spans_version") for split, index in filled.items()}
    outdated = {split: version for split, version in versions.items() if version not in (None, SPANS_VERSION)}
    if not outdated:
        return []
    listed = ", ".join(f"{split} {version}" for split, version in outdated.items())
    message = (
        f"reports of {DATASETS[name].title} were split into sentences by outdated rules (version {listed}; mg3d now uses "
        f"{SPANS_VERSION})"
    )
    out = filled[min(outdated)].path.parent
    fix = (
        f"Rerun `python prepro/prepro_pretraining_data.py --{name.replace('_', '-')} ROOT --out {out}` with the same options; it "
        "rewrites the index files only. Keep the files to compare with earlier results"
    )
    return [DataProblem("outdated_sentence_spans", message, fix, is_error=False)]


def _check_duplicate_ids(table: pa.Table) -> list[DataProblem]:
    counts = pc.value_counts(table["volume_id"].combine_chunks())
    repeated = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if not len(repeated):
        return []
    names = tuple(pc.struct_field(repeated, "values").to_pylist()[:MAX_EXAMPLES])
    message = f"volume ids with more than one row: {len(repeated)}, e.g. {names[0]}"
    return [DataProblem("duplicate_ids", message, "Rerun the preparation", volumes=names)]
