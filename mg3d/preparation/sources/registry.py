"""Data set -> its scan, all called alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mg3d.preparation.records import Scan
from mg3d.preparation.sources.ct_rate import scan_ct_rate
from mg3d.preparation.sources.ctrg import SplitRule, find_annotation, read_annotation, scan_ctrg
from mg3d.preparation.sources.own import Naming, list_own, scan_own
from mg3d.preparation.sources.pseudonyms import read_salt
from mg3d.preparation.sources.rad_chestct import scan_rad_chestct


@dataclass(frozen=True, kw_only=True)
class ScanChoice:
    """What a scan may ask for; each takes what it needs."""

    out: Path
    """Folder that is prepared; what must stay the same between runs, such as a salt, lies there."""
    val_patients: int
    """How many patients of train become val, see `records.carve_val`."""
    seed: int
    """Of that draw."""
    split: SplitRule
    """CTRG: whose splits."""
    limit: int | None
    """At most so many volumes of each official split."""
    listing: Sequence[str] | None = None
    """Paths of all files that exist, here or where they come from, as seen from the root; None = those below it."""
    own_table: Path | None = None
    """own: CSV or JSON file of volumes and reports; None = all volumes of the folder, without reports."""
    own_keep_ids: bool = False
    """own: names of files and patients become ids as they are."""


def _ct_rate(root: Path, choice: ScanChoice) -> Scan:
    return scan_ct_rate(root, val_patients=choice.val_patients, seed=choice.seed, limit=choice.limit, listing=choice.listing)


def _ctrg(root: Path, choice: ScanChoice) -> Scan:
    read_annotation(find_annotation(root))  # a wrong folder is told before a salt is drawn
    salt = read_salt(choice.out / "ctrg_salt.txt")
    draw = {"val_patients": choice.val_patients, "seed": choice.seed, "limit": choice.limit}
    return scan_ctrg(root, salt=salt, split=choice.split, **draw)


def _rad_chestct(root: Path, choice: ScanChoice) -> Scan:
    return scan_rad_chestct(root, limit=choice.limit)


def _own(root: Path, choice: ScanChoice) -> Scan:
    listing = list_own(root, choice.own_table)
    naming = Naming(b"", keep=True) if choice.own_keep_ids else Naming(read_salt(choice.out / "own_salt.txt"))
    draw = {"val_patients": choice.val_patients, "seed": choice.seed, "limit": choice.limit}
    return scan_own(root, listing, naming=naming, **draw)


SCANS: dict[str, Callable[[Path, ScanChoice], Scan]] = {
    "ct_rate": _ct_rate, "ctrg": _ctrg, "rad_chestct": _rad_chestct, "own": _own,
}  # fmt: skip
"""Keys as in `schema.DATASETS`. Each raises FileNotFoundError or ValueError for a folder that is not what it expects."""

STREAMED_TABLES = {
    "ct_rate": ("radiology_text_reports/*.csv", "metadata/*.csv", "metadata/no_chest_*.txt", "multi_abnormality_labels/*.csv"),
}
"""Data sets whose scan can go by a list of files -> what of it must be there before the scan; `*` also goes over `/`."""
