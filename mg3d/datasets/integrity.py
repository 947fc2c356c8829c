"""What must not be wrong with Arrow files: what lies in two splits, empty training, units, shapes, ids, shards.

Quick enough to be asked at every start: whole columns at a time, and no voxel is read.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, decode_metadata, index_path
from mg3d.files import write_json
from mg3d.sentence_spans import UNITS_VERSION

BLOCKING = ("patient_id", "study_id", "image_sha256")
WARNING = ("report_sha256",)
CODES = {
    "patient_id": "patient_in_two_splits",
    "study_id": "study_in_two_splits",
    "image_sha256": "duplicate_pixels",
    "report_sha256": "duplicate_report_other_patient",
}
"""Column that two splits share values of -> code of the problem."""
NO_REPORT = hashlib.sha256(b"").hexdigest()
"""What an empty report becomes; volumes without a report share nothing."""
CACHE = "checked.json"
CACHE_VERSION = 1
_EXAMPLES = 1000
_WAY_OUT = {
    "patient_id": "prepare the data anew from a raw folder in which each patient lies in one split",
    "study_id": "prepare the data anew from a raw folder in which each study lies in one split",
    "image_sha256": "take one of each pair out of the raw folder or of its tables, and prepare the data anew",
    "report_sha256": "nothing, when short reports are alike; else see whether two patients are one",
}


class LeakError(ValueError):
    """Something lies in two splits."""


@dataclass
class LeakReport:
    """Column -> values that lie in more than one split, with one volume of each split that carries them."""

    blocking: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    warnings: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for people: counts, and volume ids of the first few; no text, no name."""
        found = []
        for word, part in (("leak", self.blocking), ("note", self.warnings)):
            for column, shared in part.items():
                example = ", ".join(next(iter(shared.values()))[:4])
                found.append(f"{word}: {len(shared)} values of {column} lie in more than one split, e.g. of {example}")
        return found or ["no leak: patients, scans, images and reports of the splits are apart"]


@dataclass(frozen=True)
class Problem:
    """Something wrong with Arrow files."""

    code: str
    sentence: str
    """What was found."""
    way_out: str
    """What to do."""
    blocking: bool = True
    volumes: tuple[str, ...] = ()
    """Ids of volumes that show it, of many at most a thousand."""


def find_leaks(table: pa.Table) -> LeakReport:
    """Compares rows with the columns volume_id and split and (some of) those of BLOCKING and WARNING."""
    parts = ({}, {})
    for part, columns in zip(parts, (BLOCKING, WARNING)):
        for column in columns:
            shared = shared_values(table, column) if column in table.column_names else {}
            shared.pop(NO_REPORT, None)
            part.update({column: shared} if shared else {})
    return LeakReport(*parts)


def shared_values(table: pa.Table, column: str, apart: str = "split") -> dict[str, list[str]]:
    """Values of `column` that occur with more than one value of `apart` -> the first volume with each, in the table's order."""
    narrow = pa.table({"value": table[column], "apart": pc.cast(table[apart], pa.string()), "volume": table["volume_id"]})
    spread = narrow.group_by("value", use_threads=False).aggregate([("apart", "min"), ("apart", "max")])
    values = spread.filter(pc.not_equal(spread["apart_min"], spread["apart_max"]))["value"]
    if not len(values):
        return {}
    found: dict[str, dict[str, str]] = {}
    rows = narrow.filter(pc.is_in(narrow["value"], values.combine_chunks())).to_pylist()
    for row in rows:
        found.setdefault(row["value"], {}).setdefault(row["apart"], row["volume"])
    return {value: list(members.values()) for value, members in found.items()}


def check_arrow_files(data_root: Path, datasets: Iterable[str]) -> list[Problem]:
    """What is wrong with the index files of `datasets` that are in `data_root`, the blocking problems first.

    Raises:
        FileNotFoundError, ValueError: a data set has no index file, or one cannot be read.
    """
    indices = _indices(data_root, datasets)
    problems = [problem for name, splits in indices.items() for problem in _check_dataset(name, splits)]
    wanted = ["volume_id", *BLOCKING, *WARNING]
    parts = [
        index.table.select(wanted).append_column("split", pa.repeat(pa.scalar(split), len(index)))
        for splits in indices.values()
        for split, index in splits.items()
    ]
    table = pa.concat_tables(part.replace_schema_metadata(None) for part in parts)
    problems += _duplicate_ids(table)
    leaks = find_leaks(table)
    for part, blocking in ((leaks.blocking, True), (leaks.warnings, False)):
        problems += [_leak_problem(column, shared, blocking=blocking) for column, shared in part.items()]
    return sorted(problems, key=lambda problem: not problem.blocking)


def require_valid(data_root: str | Path, datasets: Iterable[str]) -> list[str]:
    """Refuses Arrow files with a blocking problem; returns what else there is to say, a sentence each.

    What was found is kept in `checked.json` beside the index files, and holds as long as their sizes and times stay. A folder
    that cannot be written is checked every time. What lies behind a URL is not checked: whoever wrote it has.

    Raises:
        ValueError: a blocking problem.
        FileNotFoundError, ValueError: an index file is not there, or cannot be read.
    """
    if "://" in str(data_root):
        return []
    data_root, names = Path(data_root), tuple(datasets)
    state = _state(data_root, names)
    problems = _kept(data_root / CACHE, state)
    if problems is None:
        problems = check_arrow_files(data_root, names)
        _keep(data_root / CACHE, state, problems)
    blocking = [problem for problem in problems if problem.blocking]
    if blocking:
        more = f" ({len(blocking) - 1} more kinds of fault: python tools/doctor.py {data_root})" if len(blocking) > 1 else ""
        raise ValueError(f"{data_root}: {blocking[0].sentence}; {blocking[0].way_out}{more}")
    return [problem.sentence for problem in problems]


def _indices(data_root: Path, datasets: Iterable[str]) -> dict[str, dict[str, VolumeIndex]]:
    """Data set -> split -> its index file, of those that are there; what training needs is for its reader to ask for."""
    paths = {name: {split: index_path(data_root, name, split) for split in SPLITS} for name in datasets}
    return {
        name: {split: VolumeIndex(path) for split, path in splits.items() if path.is_file()}
        or {"train": VolumeIndex(splits["train"])}
        for name, splits in paths.items()
    }


def _check_dataset(name: str, splits: Mapping[str, VolumeIndex]) -> list[Problem]:
    title, problems = DATASETS[name].title, []
    if "train" in splits and not len(splits["train"]):
        problems.append(Problem("empty_train", f"{title} has no volume to train on", "prepare more of the raw data"))
    filled = {split: index for split, index in splits.items() if len(index)}
    units = {unit for index in filled.values() for unit in pc.unique(index.table["intensity_unit"]).to_pylist()}
    if len(units) > 1:
        told = f"{title} mixes voxels in the units {' and '.join(sorted(units))}"
        problems.append(Problem("mixed_units", told, "prepare all of it anew, with one recipe"))
    for key, code, what in (("shape", "shape_disagreement", "shapes"), ("preproc_hash", "recipe_disagreement", "recipes")):
        said = {split: json.dumps(decode_metadata(index.table.schema).get(key)) for split, index in filled.items()}
        if len(set(said.values())) > 1:
            parts = ", ".join(f"{split} {value[:18]}" for split, value in said.items())
            told = f"{title}'s splits were prepared to different {what} ({parts})"
            problems.append(Problem(code, told, "prepare all splits anew, with one recipe"))
    problems += _old_units(name, filled)
    for index in filled.values():
        try:
            index.open_shards()
        except (FileNotFoundError, ValueError) as error:
            problems.append(Problem("missing_shard", str(error), "run the preparation again, which writes what is missing"))
    return problems


def _old_units(name: str, filled: Mapping[str, VolumeIndex]) -> list[Problem]:
    said = {split: decode_metadata(index.table.schema).get("units_version") for split, index in filled.items()}
    old = {split: version for split, version in said.items() if version not in (None, UNITS_VERSION)}
    if not old:
        return []
    parts = ", ".join(f"{split} {version}" for split, version in old.items())
    command = f"python prepro/prepro_pretraining_data.py --{name.replace('_', '-')} ROOT --out {filled[min(old)].path.parent}"
    sentence = (
        f"{DATASETS[name].title}'s reports were cut into sentences by other rules ({parts}) than this program's "
        f"({UNITS_VERSION}); `{command}`, with the other options of before, cuts them anew and touches no voxel"
    )
    way_out = f"{command}, with the other options of before; or go on, for results that compare with earlier ones of these files"
    return [Problem("old_units", sentence, way_out, blocking=False)]


def _duplicate_ids(table: pa.Table) -> list[Problem]:
    numbers = pc.value_counts(table["volume_id"].combine_chunks())
    again = numbers.filter(pc.greater(pc.struct_field(numbers, "counts"), 1))
    if not len(again):
        return []
    names = tuple(pc.struct_field(again, "values").to_pylist()[:_EXAMPLES])
    sentence = f"{len(again)} volume ids have more than one row, e.g. {names[0]}"
    return [Problem("duplicate_ids", sentence, "prepare the data anew; rows of one volume must be one", volumes=names)]


def _leak_problem(column: str, shared: Mapping[str, Sequence[str]], *, blocking: bool) -> Problem:
    example = " and ".join(next(iter(shared.values()))[:2])
    thing = {"patient_id": "patients", "study_id": "studies", "image_sha256": "images", "report_sha256": "reports"}[column]
    sentence = f"{len(shared)} {thing} lie in more than one split, e.g. {example}"
    volumes = tuple(volume for members in shared.values() for volume in members)[:_EXAMPLES]
    return Problem(CODES[column], sentence, _WAY_OUT[column], blocking, volumes)


def _state(data_root: Path, datasets: Sequence[str]) -> dict[str, list[int]]:
    """Index file -> size in bytes and time of its last change in nanoseconds."""
    paths = [index_path(data_root, name, split) for name in sorted(datasets) for split in SPLITS]
    known = {path.name: path.stat() for path in paths if path.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in known.items()}


def _kept(path: Path, state: Mapping[str, list[int]]) -> list[Problem] | None:
    """What an earlier check of just these files has found; a missing shard may have come back, so faults are looked for anew."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not state or content["version"] != [CACHE_VERSION, UNITS_VERSION] or content["files"] != state:
            return None
        problems = [Problem(**{**entry, "volumes": tuple(entry["volumes"])}) for entry in content["problems"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if any(problem.blocking for problem in problems) else problems


def _keep(path: Path, state: Mapping[str, list[int]], problems: Sequence[Problem]) -> None:
    try:
        found = [asdict(problem) for problem in problems]
        write_json(path, {"version": [CACHE_VERSION, UNITS_VERSION], "files": state, "problems": found})
    except OSError:  # a folder of somebody else
        return
