"""Standard evaluation sets: the volumes on which published results are reported, as rules over ids instead of lists of files."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path

_CT_RATE_ID = re.compile(r"(?P<study>(?P<patient>ct_rate/(?P<split>train|valid)_\d+)_[a-z]+)_(?P<reconstruction>\d+)")
_COLUMNS = ["volume_id", "study_id", "patient_id", "dataset", "official_split", "reconstruction"]


class CatalogVolume(NamedTuple):
    """A volume of a data set, whether it could be prepared or not."""

    volume_id: str
    study_id: str
    patient_id: str
    dataset: str
    official_split: str
    reconstruction: int
    quarantine_code: str = ""
    """Why it was quarantined; empty if its voxels are stored."""


class EvaluationSet(NamedTuple):
    """A named set of volumes."""

    dataset: str
    splits: tuple[str, ...]
    """Official splits; empty = all."""
    expected_size: int | None
    """Volumes on the complete data set; None = not published."""
    source: str
    """Origin of the count, and who reports on this set."""
    first_per: str = ""
    """Only the first volume of each `study_id` or `patient_id`."""
    stored_only: bool = False
    """Without quarantined volumes."""

    def select(self, volumes: Sequence[CatalogVolume]) -> list[CatalogVolume]:
        """The volumes of this set, in their order."""
        chosen = [
            volume
            for volume in volumes
            if volume.dataset == self.dataset
            and (not self.splits or volume.official_split in self.splits)
            and not (self.stored_only and volume.quarantine_code)
        ]
        if not self.first_per:
            return chosen
        first: dict[str, CatalogVolume] = {}
        for volume in chosen:
            first.setdefault(getattr(volume, self.first_per), volume)
        return list(first.values())

    def describe(self, name: str, selected: Sequence[CatalogVolume]) -> str:
        """Expected and actual size as a sentence."""
        expected = "no published count" if self.expected_size is None else f"{self.expected_size:,} expected on the full set"
        quarantined = sum(bool(volume.quarantine_code) for volume in selected)
        suffix = f", {quarantined:,} of them quarantined (no voxels)" if quarantined else ""
        return f"{name}: {expected}, {len(selected):,} here{suffix}"


_VALID, _TRAIN = ("ct_rate", ("valid",)), ("ct_rate", ("train",))
EVALUATION_SETS: dict[str, EvaluationSet] = {
    # every reconstruction of CT-RATE's official validation split, also those without a chest or without a file
    "ct_rate_valid": EvaluationSet(*_VALID, 3_039, "rows of CT-RATE's valid labels; zero-shot by volume, as CT-CLIP"),
    # the first reconstruction of each scan or patient
    "ct_rate_valid_scans": EvaluationSet(
        *_VALID, 1_564, "scans of these rows; retrieval, where reconstructions share a text", first_per="study_id"
    ),
    "ct_rate_valid_patients": EvaluationSet(*_VALID, 1_304, "CT-RATE's page: patients of valid", first_per="patient_id"),
    # stored volumes only: not in no_chest_valid.txt and with a usable file
    "ct_rate_valid_chest": EvaluationSet(
        *_VALID, 3_001, "without the 37 of no_chest_valid.txt and 1 that has no file", stored_only=True
    ),
    "ct_rate_valid_chest_scans": EvaluationSet(
        *_VALID, None, "first stored reconstruction of each scan; no published count", first_per="study_id", stored_only=True
    ),
    "ct_rate_train": EvaluationSet(*_TRAIN, 47_149, "rows of CT-RATE's train labels, including our val split"),
    "ct_rate_train_scans": EvaluationSet(*_TRAIN, 24_128, "scans of these rows", first_per="study_id"),
    "ct_rate_train_chest": EvaluationSet(
        *_TRAIN, 46_393, "without the 752 of no_chest_train.txt, 3 without a spacing, 1 without a file", stored_only=True
    ),
    # the published val and test, which are identical in one of the published files
    "ctrg_test": EvaluationSet("ctrg", ("val", "test"), 360, "the published 1,804 cases without the first 1,444"),
    "rad_chestct": EvaluationSet("rad_chestct", (), 3_630, "Rad-ChestCT's summary table; external zero-shot, as CT-CLIP"),
    "rad_chestct_test": EvaluationSet("rad_chestct", ("tst",), 360, "the same table, subset tst"),
}


def read_volumes(folder: Path) -> list[CatalogVolume]:
    """All volumes of a prepared folder, sorted: rows of the index files, and quarantined volumes of CT-RATE.

    Raises:
        FileNotFoundError: the folder has no index file.
        ValueError: an index file is damaged or has another schema version.
    """
    paths = [index_path(folder, dataset, split) for dataset in DATASETS for split in SPLITS]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no Arrow files. Create them with `python prepro/prepro_pretraining_data.py --ct-rate ROOT "
            f"--out {folder}`"
        )
    rows = [row for path in paths for row in VolumeIndex(path).table.select(_COLUMNS).to_pylist()]
    stored = [CatalogVolume(**row) for row in rows]
    known = {volume.volume_id for volume in stored}
    quarantined = [volume for volume in _read_quarantine(folder / "quarantine.jsonl") if volume.volume_id not in known]
    return sorted([*stored, *quarantined], key=_sort_key)


def evaluation_set(name: str, volumes: Iterable[CatalogVolume]) -> list[CatalogVolume]:
    """The volumes of an evaluation set, sorted.

    Raises:
        ValueError: unknown name.
    """
    if name not in EVALUATION_SETS:
        raise ValueError(f"unknown evaluation set {name!r}; choose from {', '.join(EVALUATION_SETS)}")
    return EVALUATION_SETS[name].select(sorted(volumes, key=_sort_key))


def _sort_key(volume: CatalogVolume) -> tuple[object, ...]:
    """Natural order: train_2 before train_10, scan b before aa, reconstruction 2 before 10."""
    parts = re.split(r"(\d+)", volume.patient_id)
    patient = [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
    scan = volume.study_id.removeprefix(volume.patient_id)
    return volume.dataset, patient, len(scan), scan, volume.reconstruction, volume.volume_id


def _read_quarantine(path: Path) -> Iterator[CatalogVolume]:
    """CT-RATE's volumes of a quarantine file (their ids contain split, patient and scan); incomplete lines are skipped."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            match, code = _CT_RATE_ID.fullmatch(entry["volume_id"]), entry["code"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if match:
            ids = (entry["volume_id"], match["study"], match["patient"])
            yield CatalogVolume(*ids, "ct_rate", match["split"], int(match["reconstruction"]), code)
