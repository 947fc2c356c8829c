"""Data set -> its scan, all called alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mg3d.preparation.records import Inventory
from mg3d.preparation.sources.ct_rate import list_ct_rate
from mg3d.preparation.sources.ctrg import CtrgSplit, find_annotation, list_ctrg, read_annotation
from mg3d.preparation.sources.custom import Naming, list_custom, read_listing
from mg3d.preparation.sources.pseudonyms import read_salt
from mg3d.preparation.sources.rad_chestct import list_rad_chestct


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a scan may ask for; each takes what it needs."""

    out: Path
    """Folder that is prepared; what must stay the same between runs, such as a salt, lies there."""
    val_patients: int
    """How many patients of train become val, see `records.draw_val_patients`."""
    seed: int
    """Of that draw."""
    ctrg_split: CtrgSplit
    """CTRG: whose splits."""
    limit: int | None
    """At most so many volumes of each official split."""
    listing: Sequence[str] | None = None
    """Paths of all files that exist, here or where they come from, as seen from the root; None = those below it."""
    table: Path | None = None
    """custom: CSV or JSON file of volumes and reports; None = all volumes of the folder, without reports."""
    keep_ids: bool = False
    """custom: names of files and patients become ids as they are."""


def _ct_rate(root: Path, choice: SourceOptions) -> Inventory:
    return list_ct_rate(root, val_patients=choice.val_patients, seed=choice.seed, limit=choice.limit, listing=choice.listing)


def _ctrg(root: Path, choice: SourceOptions) -> Inventory:
    read_annotation(find_annotation(root))  # a wrong folder is told before a salt is drawn
    salt = read_salt(choice.out / "ctrg_salt.txt")
    draw = {"val_patients": choice.val_patients, "seed": choice.seed, "limit": choice.limit}
    return list_ctrg(root, salt=salt, split=choice.ctrg_split, **draw)


def _rad_chestct(root: Path, choice: SourceOptions) -> Inventory:
    return list_rad_chestct(root, limit=choice.limit)


def _custom(root: Path, choice: SourceOptions) -> Inventory:
    listing = read_listing(root, choice.table)
    naming = Naming(b"", keep=True) if choice.keep_ids else Naming(read_salt(choice.out / "custom_salt.txt"))
    draw = {"val_patients": choice.val_patients, "seed": choice.seed, "limit": choice.limit}
    return list_custom(root, listing, naming=naming, **draw)


SOURCES: dict[str, Callable[[Path, SourceOptions], Inventory]] = {
    "ct_rate": _ct_rate, "ctrg": _ctrg, "rad_chestct": _rad_chestct, "custom": _custom,
}  # fmt: skip
"""Keys as in `schema.DATASETS`. Each raises FileNotFoundError or ValueError for a folder that is not what it expects."""

STREAMED_TABLES = {
    "ct_rate": ("radiology_text_reports/*.csv", "metadata/*.csv", "metadata/no_chest_*.txt", "multi_abnormality_labels/*.csv"),
}
"""Data sets whose scan can go by a list of files -> what of it must be there before the scan; `*` also goes over `/`."""
