"""Rad-ChestCT as it is distributed -> volume records without reports: an external test set."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mg3d.glossary import LABELS
from mg3d.preparation.records import Inventory, VolumeRecord
from mg3d.preparation.sources.rad_chestct_labels import VARIANTS, Variant, label_source, labels_of
from mg3d.preparation.sources.tables import by_key, flag, read_table

DATASET = "rad_chestct"
SPLITS = {"trn": "train", "val": "valid", "tst": "test"}
"""Beginning of an id, which is the official split -> word in the name of its label table."""
PUBLISHED = {"trn": 2286, "val": 984, "tst": 360}
"""Volumes that are distributed."""
ID_COLUMN = "NoteAcc_DEID"
_NAME = re.compile(r"(trn|val|tst)\d+")
_ADVICE = "download it again from Zenodo"


def list_rad_chestct(root: Path, *, variant: Variant = "ct_clip", limit: int | None = None) -> Inventory:
    """All `<id>.npz` in `root` or in its folders, in the order of their ids; all are our `test`, whatever their official split.

    Args:
        root: folder of the arrays and of the tables of labels; without a table labels are not known.
        variant: how its labels become the 18, see `rad_chestct_labels`.
        limit: at most so many volumes of each official split.

    Raises:
        FileNotFoundError: there is no array of that name.
        ValueError: a table cannot be read.
    """
    found = {path.stem: path for path in [*root.glob("*/*.npz"), *root.glob("*.npz")] if _NAME.fullmatch(path.stem)}
    if not found:
        raise FileNotFoundError(f"{root} holds no array such as trn00001.npz; give Rad-ChestCT's folder")
    scan = Inventory(root)
    for split, expected in PUBLISHED.items():
        number = sum(name.startswith(split) for name in found)
        scan.notes += [f"Rad-ChestCT: {number} volumes of {split}, {expected} are published"] if number != expected else []
    patients = _patients(root, scan.notes)
    labels = {name: row for split in SPLITS for name, row in _labels(root, split, variant, scan.notes).items()}
    taken: Counter[str] = Counter()
    for name, path in sorted(found.items()):
        split = name[:3]
        taken[split] += 1
        if limit is not None and taken[split] > limit:
            continue
        scan.records.append(
            VolumeRecord(
                volume_id=f"{DATASET}/{name}",
                study_id=f"{DATASET}/{name}",
                patient_id=f"{DATASET}/{patients.get(name, name)}",
                dataset=DATASET,
                official_split=split,
                split="test",
                reconstruction=1,
                findings=None,
                impression=None,
                files=(path.relative_to(root).as_posix(),),
                source=path.relative_to(root).as_posix(),
                reader="rad_chestct",
                labels=labels.get(name, (-1,) * len(LABELS)),
                label_source=label_source(variant) if name in labels else "none",
            )
        )
    return scan


def _patients(root: Path, notes: list[str]) -> Mapping[str, str]:
    """Volume -> patient. A volume that the table does not give one is taken as a patient of its own."""
    path = next(iter(sorted(root.glob("Summary_*.csv"))), None)
    if path is None:
        notes.append("Rad-ChestCT: Summary_3630.csv is missing, so every volume counts as a patient of its own")
        return {}
    wanted = [ID_COLUMN, "MRN_DEID"]
    _, rows, more = read_table(path, dict.fromkeys(wanted, ()), required=wanted, advice=_ADVICE, title="Rad-ChestCT")
    notes += more
    return {_plain_id(name): patient for name, patient in rows if patient}


def _labels(root: Path, split: str, variant: Variant, notes: list[str]) -> dict[str, tuple[int, ...]]:
    """Volume -> the 18 labels; a column `abnormality*location` counts for its abnormality."""
    path = root / f"img{SPLITS[split]}_Abnormality_and_Location_Labels.csv"
    if not path.is_file():
        notes.append(f"Rad-ChestCT: {path.name} is missing: the labels of {split} count as not known")
        return {}
    wanted = {name for names in VARIANTS[variant].values() for name in names}
    columns = {f"{name}*{place}": () for name in sorted(wanted) for place in _locations(path)}
    everything = {ID_COLUMN: (), **columns}
    names, rows, more = read_table(path, everything, required=[ID_COLUMN], advice=_ADVICE, title="Rad-ChestCT")
    abnormality = [name.split("*")[0] for name in names[1:]]
    table, conflicts = by_key(rows)
    lost = wanted - set(abnormality)
    notes += more
    notes += [f"Rad-ChestCT: {path.name} has no column of {', '.join(sorted(lost))}"] if lost else []
    notes += [f"Rad-ChestCT: {len(conflicts)} volumes of {split} have rows that differ; left without labels"] if conflicts else []
    labels = {}
    for name, cells in table.items():
        if name in conflicts:
            continue
        known: dict[str, int] = {}
        for word, cell in zip(abnormality, cells):
            if (value := flag(cell)) >= 0:
                known[word] = max(value, known.get(word, 0))
        labels[_plain_id(name)] = labels_of(known, variant)
    return labels


def _locations(path: Path) -> list[str]:
    """All that follows a `*` in the first line."""
    with path.open("rb") as stream:
        first = stream.readline(1 << 20).decode("utf-8", errors="replace")
    return sorted({part.strip().strip('"') for part in re.findall(r"\*([^,;\t\r\n]+)", first)})


def _plain_id(name: str) -> str:
    return name.strip().removesuffix(".npz")
