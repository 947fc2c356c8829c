"""Rad-ChestCT as distributed: an external test set without reports."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mg3d.glossary import LABELS
from mg3d.preparation.records import Inventory, VolumeRecord
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.tables import flag, read_table, rows_by_key

DATASET = "rad_chestct"
SPLITS = {"trn": "train", "val": "valid", "tst": "test"}
"""Official split, with which an id begins -> its name in the file name of its label table."""
N_PUBLISHED = {"trn": 2286, "val": 984, "tst": 360}
ID_COLUMN, PATIENT_COLUMN = "NoteAcc_DEID", "MRN_DEID"
ABNORMALITIES: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": ("cardiomegaly",),
    "Pericardial effusion": ("pericardial_effusion",),
    "Hiatal hernia": ("hernia",),
    "Lymphadenopathy": ("lymphadenopathy",),
    "Emphysema": ("emphysema",),
    "Atelectasis": ("atelectasis",),
    "Lung nodule": ("nodule", "nodulegr1cm"),
    "Lung opacity": ("opacity",),
    "Pulmonary fibrotic sequela": ("fibrosis",),
    "Pleural effusion": ("pleural_effusion",),
    "Peribronchial thickening": ("bronchial_wall_thickening",),
    "Consolidation": ("consolidation",),
    "Bronchiectasis": ("bronchiectasis",),
    "Interlobular septal thickening": ("septal_thickening",),
    "Medical material": (
        "catheter_or_port", "chest_tube", "clip", "gi_tube", "hardware", "pacemaker_or_defib", "stent", "tracheal_tube",
    ),
}  # fmt: skip
"""Label -> its abnormalities of Rad-ChestCT, as CT-CLIP maps them: 1 if any is present at any location. Other labels are unknown:
`calcification` has no single counterpart among the 18."""
LABEL_SOURCE = "rad_chestct/ct_clip/1"
"""The last number is increased with every change of `ABNORMALITIES`."""
_NAME = re.compile(r"(trn|val|tst)\d+")
_ADVICE = "download it again from Zenodo"


def list_rad_chestct(root: Path, options: SourceOptions) -> Inventory:
    """List all `<id>.npz` in `root` or its subfolders, sorted by id. All are test, whatever their official split.

    Labels are unknown without the label tables.

    Raises:
        FileNotFoundError: no array with such a name.
        ValueError: a table cannot be read.
    """
    files = {path.stem: path for path in [*root.glob("*/*.npz"), *root.glob("*.npz")] if _NAME.fullmatch(path.stem)}
    if not files:
        raise FileNotFoundError(f"{root} has no array such as trn00001.npz; give Rad-ChestCT's folder")
    inventory, notes = Inventory(root), []
    for split, expected in N_PUBLISHED.items():
        count = sum(name.startswith(split) for name in files)
        notes += [f"{count} volumes of {split}, {expected} are published"] if count != expected else []
    patients = _read_patients(root, notes)
    labels = {name: row for split in SPLITS for name, row in _read_labels(root, split, notes).items()}
    taken: Counter[str] = Counter()
    for name, path in sorted(files.items()):
        taken[name[:3]] += 1
        if options.limit is not None and taken[name[:3]] > options.limit:
            continue
        inventory.records.append(
            VolumeRecord(
                volume_id=f"{DATASET}/{name}",
                study_id=f"{DATASET}/{name}",
                patient_id=f"{DATASET}/{patients.get(name, name)}",
                dataset=DATASET,
                official_split=name[:3],
                split="test",
                reconstruction=1,
                findings=None,
                impression=None,
                files=(path.relative_to(root).as_posix(),),
                source=path.relative_to(root).as_posix(),
                reader="rad_chestct",
                labels=labels.get(name, (-1,) * len(LABELS)),
                label_source=LABEL_SOURCE if name in labels else "none",
            )
        )
    inventory.notes = [f"Rad-ChestCT: {note}" for note in notes]
    return inventory


def _read_patients(root: Path, notes: list[str]) -> Mapping[str, str]:
    """Volume -> patient. A volume that is missing in the table counts as a separate patient."""
    path = next(iter(sorted(root.glob("Summary_*.csv"))), None)
    if path is None:
        notes.append("Summary_3630.csv is missing, so every volume counts as a separate patient")
        return {}
    required = [ID_COLUMN, PATIENT_COLUMN]
    table, more = read_table(path, dict.fromkeys(required, ()), required=required, advice=_ADVICE)
    notes += more
    return {_strip_suffix(name): patient for name, patient in zip(table[ID_COLUMN], table[PATIENT_COLUMN]) if patient}


def _read_labels(root: Path, split: str, notes: list[str]) -> dict[str, tuple[int, ...]]:
    """Volume -> the 18 labels. The columns `abnormality*location` of an abnormality are combined by "any"."""
    path = root / f"img{SPLITS[split]}_Abnormality_and_Location_Labels.csv"
    if not path.is_file():
        notes.append(f"{path.name} is missing: the labels of {split} are unknown")
        return {}
    abnormalities = sorted({name for names in ABNORMALITIES.values() for name in names})
    columns = {f"{name}*{location}": () for name in abnormalities for location in _locations(path)}
    table, more = read_table(path, {ID_COLUMN: (), **columns}, required=[ID_COLUMN], advice=_ADVICE)
    rows, conflicts = rows_by_key(table, ID_COLUMN)
    missing = set(abnormalities) - {column.split("*")[0] for column in table.columns}
    notes += more
    notes += [f"{path.name} has no column of {', '.join(sorted(missing))}"] if missing else []
    notes += [f"{len(conflicts)} volumes of {split} have contradicting rows; their labels are unknown"] if conflicts else []
    labels = {}
    for name in rows.keys() - conflicts:
        known: dict[str, int] = {}
        for column, cell in rows[name].items():
            abnormality, value = column.split("*")[0], flag(cell)
            if value >= 0:
                known[abnormality] = max(value, known.get(abnormality, 0))
        values = ([known[part] for part in ABNORMALITIES.get(label, ()) if part in known] for label in LABELS)
        labels[_strip_suffix(name)] = tuple(max(parts, default=-1) for parts in values)
    return labels


def _locations(path: Path) -> list[str]:
    """Locations in the column names of a table: the part after `*`."""
    with path.open("rb") as stream:
        header = stream.readline(1 << 20).decode("utf-8", errors="replace")
    return sorted({location.strip().strip('"') for location in re.findall(r"\*([^,;\t\r\n]+)", header)})


def _strip_suffix(name: str) -> str:
    return name.removesuffix(".npz")
