"""The synthetic downstream sets, by the names of their folders in downstream/."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mg3d.files import replacing_folder, write_json
from mg3d.phantom.case import VERSION
from mg3d.phantom.downstream import acdc, cc_ccii, covid19_20, ct_rate, ctrg, custom, luna16, msd, stoic2021
from mg3d.phantom.spec import DatasetSpec

MARK = "synthetic.json"


class Size(NamedTuple):
    """Size of a set."""

    cases: int
    voxels_in_plane: int


TINY = Size(9, 28)
"""For tests."""


class SyntheticSet(NamedTuple):
    """One downstream set."""

    write: Callable[..., None]
    """Takes a `DatasetSpec` and options of the set."""
    default_size: Size
    """Large enough to learn something on a CPU in minutes."""


SETS: dict[str, SyntheticSet] = {
    "ACDC": SyntheticSet(acdc.write, Size(36, 64)),
    "cc-ccii": SyntheticSet(cc_ccii.write, Size(180, 48)),
    "Covid19_20": SyntheticSet(covid19_20.write, Size(50, 64)),
    "CT-RATE": SyntheticSet(ct_rate.write, Size(240, 48)),
    "CTRG": SyntheticSet(ctrg.write, Size(300, 48)),
    "custom": SyntheticSet(custom.write, Size(30, 48)),
    "Luna16": SyntheticSet(luna16.write, Size(110, 64)),
    "MSD": SyntheticSet(msd.write, Size(50, 64)),
    "stoic2021": SyntheticSet(stoic2021.write, Size(300, 48)),
}


def set_settings(*, cases: int, voxels_in_plane: int, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Settings that determine the content of a set, as stored in `MARK`."""
    options = json.loads(json.dumps(options))
    return {"version": VERSION, "cases": cases, "voxels_in_plane": voxels_in_plane, "seed": seed, "options": options}


def stored_settings(folder: Path) -> dict[str, Any] | None:
    """`set_settings` of the set in a folder; None if the folder holds no synthetic set."""
    mark = folder / MARK
    return json.loads(mark.read_text(encoding="utf-8")).get("settings", {}) if mark.is_file() else None


def write_set(
    name: str, root: Path, *, cases: int, voxels_in_plane: int, seed: int = 0, workers: int = 1, **options: Any
) -> Path:
    """Write a set into `root / name` and return that folder, the `data_root` of its task.

    A complete set with equal settings is reused; one with other settings is replaced. Not safe for several processes at once.

    cases: number of labelled cases (ACDC, cc-ccii, CT-RATE: patients).
    options: passed to `write` of the set's module.

    Raises:
        ValueError: unknown or too small set, or the folder holds something else.
    """
    if name not in SETS:
        raise ValueError(f"unknown synthetic set {name!r}; choose from {', '.join(SETS)}")
    if cases < 4 or voxels_in_plane < 16:
        raise ValueError(f"{name}: {cases} cases with {voxels_in_plane} voxels in plane; use at least 4 cases and 16 voxels")
    settings = set_settings(cases=cases, voxels_in_plane=voxels_in_plane, seed=seed, **options)
    folder = root / name
    stored = stored_settings(folder)
    if stored == settings:
        return folder
    if stored is None and folder.exists():
        raise ValueError(f"{folder} exists, but holds no synthetic set ({MARK} is missing); use another folder")
    with replacing_folder(folder) as new:
        spec = DatasetSpec(root=new, cases=cases, voxels_in_plane=voxels_in_plane, seed=seed, workers=workers)
        SETS[name].write(spec, **settings["options"])
        note = "synthetic: drawn by mg3d.phantom.downstream; no patient, and no result for a paper"
        write_json(new / MARK, {"what": note, "name": name, "settings": settings})
    return folder
