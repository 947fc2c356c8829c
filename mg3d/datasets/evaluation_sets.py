"""The lists of volumes on which the field reports numbers, as rules over ids instead of copied files."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path

_CT_RATE_ID = re.compile(r"(?P<study>(?P<patient>ct_rate/(?P<split>train|valid)_\d+)_[a-z]+)_(?P<reconstruction>\d+)")
_COLUMNS = ["volume_id", "study_id", "patient_id", "dataset", "official_split", "reconstruction"]


class ListedVolume(NamedTuple):
    """A volume that a data set lists, whether it could be stored or not."""

    volume_id: str
    study_id: str
    patient_id: str
    dataset: str
    official_split: str
    reconstruction: int
    set_aside: str = ""
    """Code of the quarantine; empty when the voxels are stored."""


class Rule(NamedTuple):
    """How a list is chosen, and how long it is."""

    choose: Callable[[Sequence[ListedVolume]], list[ListedVolume]]
    """Its docstring says what it takes. Takes volumes in their order."""
    expected: int | None
    """Volumes on the whole data set; None = nobody has published it."""
    source: str
    """Where the number comes from, or who reports on this list."""


def ct_rate_valid(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """Every reconstruction of CT-RATE's official valid split, also those without a chest or without a file."""
    return [volume for volume in volumes if (volume.dataset, volume.official_split) == ("ct_rate", "valid")]


def ct_rate_valid_scans(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """The first reconstruction of every scan of valid."""
    return _first_of_each(ct_rate_valid(volumes), "study_id")


def ct_rate_valid_patients(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """The first reconstruction of the first scan of every patient of valid."""
    return _first_of_each(ct_rate_valid(volumes), "patient_id")


def ct_rate_valid_chest(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """Every reconstruction of valid that is stored: not on the no_chest list, and with a usable file."""
    return [volume for volume in ct_rate_valid(volumes) if not volume.set_aside]


def ct_rate_valid_chest_scans(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """The first stored reconstruction of every scan of valid: a scan may keep a chest where its first reconstruction has none."""
    return _first_of_each(ct_rate_valid_chest(volumes), "study_id")


def ct_rate_train(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """Every reconstruction of CT-RATE's training split, our val among them."""
    return [volume for volume in volumes if (volume.dataset, volume.official_split) == ("ct_rate", "train")]


def ct_rate_train_scans(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """The first reconstruction of every scan of train."""
    return _first_of_each(ct_rate_train(volumes), "study_id")


def ct_rate_train_chest(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """Every reconstruction of train that is stored."""
    return [volume for volume in ct_rate_train(volumes) if not volume.set_aside]


def ctrg_test(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """Every case of CTRG-Chest outside its training part: the published val and test, which in one of its files are the same."""
    return [volume for volume in volumes if volume.dataset == "ctrg" and volume.official_split != "train"]


def rad_chestct(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """Every volume of Rad-ChestCT, all of it external to training on CT-RATE."""
    return [volume for volume in volumes if volume.dataset.replace("_", "") == "radchestct"]


def rad_chestct_test(volumes: Sequence[ListedVolume]) -> list[ListedVolume]:
    """Rad-ChestCT's own test part, `tst`."""
    return [volume for volume in rad_chestct(volumes) if volume.official_split in {"tst", "test"}]


RULES: dict[str, Rule] = {
    "ct_rate_valid": Rule(ct_rate_valid, 3_039, "rows of CT-RATE's valid labels; zero-shot by volume, as CT-CLIP"),
    "ct_rate_valid_scans": Rule(ct_rate_valid_scans, 1_564, "scans of these rows; retrieval, where reconstructions share a text"),
    "ct_rate_valid_patients": Rule(ct_rate_valid_patients, 1_304, "CT-RATE's page: patients of valid"),
    "ct_rate_valid_chest": Rule(ct_rate_valid_chest, 3_001, "less 37 of no_chest_valid.txt and 1 that has no file"),
    "ct_rate_valid_chest_scans": Rule(ct_rate_valid_chest_scans, None, "no published count"),
    "ct_rate_train": Rule(ct_rate_train, 47_149, "rows of CT-RATE's train labels"),
    "ct_rate_train_scans": Rule(ct_rate_train_scans, 24_128, "scans of these rows"),
    "ct_rate_train_chest": Rule(
        ct_rate_train_chest, 46_393, "less 752 of no_chest_train.txt, 3 without a spacing, 1 without a file"
    ),
    "ctrg_test": Rule(ctrg_test, 360, "the published 1,804 cases less the first 1,444"),
    "rad_chestct": Rule(rad_chestct, 3_630, "Rad-ChestCT's summary table; external zero-shot, as CT-CLIP"),
    "rad_chestct_test": Rule(rad_chestct_test, 360, "the same table, subset tst"),
}


def read_volumes(folder: Path) -> list[ListedVolume]:
    """Every volume that a prepared folder knows: the rows of its index files, and CT-RATE's volumes in its quarantine, in order.

    Raises:
        FileNotFoundError: the folder holds no index file.
        ValueError: an index file is damaged or of another version.
    """
    paths = [index_path(folder, dataset, split) for dataset in DATASETS for split in SPLITS]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no Arrow file; make it with `python prepro/prepro_pretraining_data.py --ct-rate ROOT --out {folder}`"
        )
    rows = [row for path in paths for row in VolumeIndex(path).table.select(_COLUMNS).to_pylist()]
    stored = [ListedVolume(**row) for row in rows]
    known = {volume.volume_id for volume in stored}
    aside = [volume for volume in _set_aside(folder / "quarantine.jsonl") if volume.volume_id not in known]
    return sorted([*stored, *aside], key=_order)


def evaluation_set(name: str, volumes: Iterable[ListedVolume]) -> list[ListedVolume]:
    """The volumes of a list, in order.

    Raises:
        ValueError: there is no such list.
    """
    if name not in RULES:
        raise ValueError(f"there is no list {name!r}; choose from {', '.join(RULES)}")
    return RULES[name].choose(sorted(volumes, key=_order))


def told(name: str, found: Sequence[ListedVolume]) -> str:
    """How long a list is beside what it should be, as a sentence."""
    expected = RULES[name].expected
    whole = "no published count" if expected is None else f"{expected:,} expected on the full set"
    aside = sum(bool(volume.set_aside) for volume in found)
    return f"{name}: {whole}, {len(found):,} here" + (f", of which {aside:,} are set aside and have no voxels" if aside else "")


def _first_of_each(volumes: Iterable[ListedVolume], key: str) -> list[ListedVolume]:
    first: dict[str, ListedVolume] = {}
    for volume in volumes:
        first.setdefault(getattr(volume, key), volume)
    return list(first.values())


def _order(volume: ListedVolume) -> tuple[object, ...]:
    """train_2 before train_10, scan b before aa, reconstruction 2 before 10."""
    parts = re.split(r"(\d+)", volume.patient_id)
    numbers = [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
    scan = volume.study_id.removeprefix(volume.patient_id)
    return volume.dataset, numbers, len(scan), scan, volume.reconstruction, volume.volume_id


def _set_aside(path: Path) -> Iterator[ListedVolume]:
    """CT-RATE's volumes of a quarantine file, whose ids tell all; a torn line is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            match, code = _CT_RATE_ID.fullmatch(entry["volume_id"]), entry["code"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if match:
            ids = (entry["volume_id"], match["study"], match["patient"])
            yield ListedVolume(*ids, "ct_rate", match["split"], int(match["reconstruction"]), code)
