"""The eight synthetic sets by the names of their folders in downstream/, and the one function that writes them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mg3d.files import write_json
from mg3d.phantom.case import VERSION
from mg3d.phantom.downstream import acdc, cc_ccii, covid19_20, ct_rate, ctrg, luna16, msd, stoic2021
from mg3d.phantom.downstream.order import Order

MARK = "synthetic.json"


class Size(NamedTuple):
    """How large a set is."""

    cases: int
    voxels_in_plane: int


TINY = Size(9, 28)
"""For tests."""


class SyntheticSet(NamedTuple):
    """One data set."""

    write: Callable[..., None]
    """Takes the order and the set's own options."""
    usual: Size
    """Enough for a task to be learnt a little on CPU in minutes."""


SETS: dict[str, SyntheticSet] = {
    "ACDC": SyntheticSet(acdc.write, Size(36, 64)),
    "cc-ccii": SyntheticSet(cc_ccii.write, Size(180, 48)),
    "Covid19_20": SyntheticSet(covid19_20.write, Size(50, 64)),
    "CT-RATE": SyntheticSet(ct_rate.write, Size(240, 48)),
    "CTRG": SyntheticSet(ctrg.write, Size(300, 48)),
    "Luna16": SyntheticSet(luna16.write, Size(110, 64)),
    "MSD": SyntheticSet(msd.write, Size(50, 64)),
    "stoic2021": SyntheticSet(stoic2021.write, Size(300, 48)),
}


def set_facts(*, cases: int, voxels_in_plane: int, seed: int = 0, **options: Any) -> dict[str, Any]:
    """What a set's content depends on, as its mark keeps it."""
    options = json.loads(json.dumps(options))
    return {"version": VERSION, "cases": cases, "voxels_in_plane": voxels_in_plane, "seed": seed, "options": options}


def stored_facts(folder: Path) -> dict[str, Any] | None:
    """`set_facts` of the set in a folder; None where none is."""
    mark = folder / MARK
    return json.loads(mark.read_text(encoding="utf-8")).get("settings", {}) if mark.is_file() else None


def write_set(
    name: str, root: Path, *, cases: int, voxels_in_plane: int, seed: int = 0, workers: int = 1, renew: bool = False,
    **options: Any,
) -> Path:  # fmt: skip
    """Writes a set into `root / name` and gives that folder, which a user would pass as `data_root`.

    A set of equal settings that is there is kept. It grows beside its place, in `root / .<name>.partial`, and takes it when it is
    whole; what a killed run left there is made anew. Not for several processes at once.

    cases: labelled cases (ACDC: patients of both parts; cc-ccii: patients; CT-RATE: patients).
    renew: a synthetic set of other settings or another version gives way.
    options: the set's own, see the `write` of its module.

    Raises:
        ValueError: no such set; too small; the folder holds something else.
    """
    if name not in SETS:
        raise ValueError(f"there is no synthetic set {name!r}; there are {', '.join(SETS)}")
    if cases < 4 or voxels_in_plane < 16:
        raise ValueError(f"{name}: {cases} cases of {voxels_in_plane} voxels in plane; a set needs at least 4 cases of 16 voxels")
    wanted = set_facts(cases=cases, voxels_in_plane=voxels_in_plane, seed=seed, **options)
    folder, partial = root / name, root / f".{name}.partial"
    if folder.exists():
        there = stored_facts(folder)
        if there is None:
            raise ValueError(f"{folder} is there and was not written by this function ({MARK} is missing); choose another folder")
        if there == wanted:
            return folder
        if not renew:
            other = ", ".join(sorted(key for key in wanted if there.get(key) != wanted[key]))
            raise ValueError(f"{folder} holds a synthetic set of other settings ({other}); choose another folder, or remove it")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    order = Order(root=partial, cases=cases, voxels_in_plane=voxels_in_plane, seed=seed, workers=workers)
    SETS[name].write(order, **wanted["options"])
    made_by = "synthetic: drawn by mg3d.phantom.downstream; no patient, and no result for a paper"
    write_json(partial / MARK, {"what": made_by, "name": name, "settings": wanted})
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return folder
