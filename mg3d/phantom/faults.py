"""Faults of real data sets, planted into a synthetic one on purpose: which there are, who gets them, where that is told."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mg3d.files import write_json
from mg3d.phantom import ctrg
from mg3d.phantom import faulty_files as files
from mg3d.phantom import faulty_studies as studies
from mg3d.phantom import faulty_tables as tables
from mg3d.phantom.generate import CTRG, MARK, TRAIN, VALID, PhantomSettings, Study
from mg3d.phantom.site import Site

LISTED = "faults.json"
SET_NAMES = {TRAIN: "training patients", VALID: "patients of valid", CTRG: "cases of CTRG"}


class Fault(NamedTuple):
    """One kind of fault."""

    plant: Callable[[Site, Sequence[Study]], list[str]]
    """Takes the set and one study for each entry of `groups`; gives the names of the volumes that carry the fault."""
    groups: tuple[int, ...] = (TRAIN,)
    """The set of each patient it needs."""
    share: float = 0.0
    """Instead: a share of the training patients, at least one."""
    fits: Callable[[Study], object] = bool
    """Whether a study can carry it."""
    breaks_table: bool = False
    """A whole table can no longer be read; not among `all`."""


FAULTS: dict[str, Fault] = {
    "nan_spacing": Fault(tables.nan_spacing, (TRAIN,) * 3),
    "missing_file": Fault(files.missing_file),
    "truncated_gzip": Fault(files.truncated_gzip),
    "not_3d": Fault(files.not_3d),
    "shape_mismatch": Fault(tables.shape_mismatch),
    "padding_8192": Fault(files.padding_8192),
    "fixed_in_raw_tree": Fault(files.fixed_in_raw_tree),
    "ffs_row": Fault(tables.ffs_row),
    "iop_spelling": Fault(tables.iop_spelling, (TRAIN,) * 2),
    "xyspacing_spelling": Fault(tables.xyspacing_spelling, (TRAIN,) * 3),
    "blank_age": Fault(tables.blank_age),
    "orphan_label": Fault(tables.orphan_label, ()),
    "not_given": Fault(tables.not_given),
    "empty_report": Fault(tables.empty_report),
    "patient_in_two_splits": Fault(studies.patient_in_two_splits),
    "duplicate_pixels": Fault(studies.duplicate_pixels, (TRAIN, VALID)),
    "duplicate_report_other_patient": Fault(tables.duplicate_report_other_patient, (TRAIN, VALID)),
    "head_scan": Fault(files.head_scan),
    "no_chest_listed": Fault(files.no_chest_listed, share=0.016),
    "counterfactual_pair": Fault(studies.counterfactual_pair, fits=studies.removable),
    "lying_header": Fault(files.lying_header),
    "four_d": Fault(files.four_d),
    "rgb": Fault(files.rgb),
    "zip_bomb": Fault(files.zip_bomb),
    "unreadable": Fault(files.unreadable),
    "two_rows": Fault(tables.two_rows),
    "ctrg_gap": Fault(studies.ctrg_gap, (CTRG,)),
    "ctrg_mixed_sizes": Fault(studies.ctrg_mixed_sizes, (CTRG,)),
    "ctrg_truncated_jpeg": Fault(studies.ctrg_truncated_jpeg, (CTRG,)),
    "label_flip": Fault(tables.label_flip, share=1.0),
    "latin1_csv": Fault(tables.latin1_csv, (VALID,), breaks_table=True),
    "swapped_columns": Fault(tables.swapped_columns, (), breaks_table=True),
}
"""In the order in which they are planted; label_flip takes what the others leave."""
ALL = tuple(name for name, fault in FAULTS.items() if not fault.breaks_table)


def wanted_faults(given: Iterable[str]) -> list[str]:
    """The faults that are named, in the order of FAULTS; `all` stands for those that leave every table readable.

    Raises:
        ValueError: there is no such fault.
    """
    chosen = {name for word in given for name in (ALL if word == "all" else (word,))}
    strange = sorted(chosen - FAULTS.keys())
    if strange:
        raise ValueError(f"there is no fault {', '.join(strange)}; choose from: all, {', '.join(FAULTS)}")
    return [name for name in FAULTS if name in chosen]


def plant(root: Path, wanted: Iterable[str]) -> dict[str, list[str]]:
    """Plants faults into the complete set in `root`, and returns all that it now has: name -> volumes, as in `faults.json`.

    No patient gets two. Who gets which depends on the set's seed and on what was planted before. A fault that is there
    already is left as it is; one whose planting was broken off is planted again, which gives the same files.

    Raises:
        ValueError: there is no such fault, the set is not complete, too small, or has a table that cannot be edited any more.
    """
    names, mark, listed = wanted_faults(wanted), root / MARK, root / LISTED
    state = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}
    if not state.get("complete"):
        raise ValueError(f"{root} holds no complete synthetic set; make it first")
    settings = dict(state["settings"])
    del settings["version"]
    site = Site(root, PhantomSettings(**settings))
    planted: dict[str, list[str]] = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    broken_off = [state["planting"]] if "planting" in state else []
    for name in [*broken_off, *(name for name in names if name not in planted and name not in broken_off)]:
        _refuse_broken_tables(root, name, planted)
        victims = choose_victims(site, name, planted)
        write_json(mark, {**state, "planting": name})
        planted[name] = FAULTS[name].plant(site, victims)
        write_json(listed, planted)
        state.pop("planting", None)
        write_json(mark, state)
    return planted


def choose_victims(site: Site, name: str, planted: dict[str, list[str]]) -> list[Study]:
    """The studies that get a fault: patients without one, in the order that the set's seed gives.

    Raises:
        ValueError: there are not enough of them.
    """
    fault = FAULTS[name]
    taken = {_patient(volume) for other, volumes in planted.items() if other != name for volume in volumes}
    free = {group: [study for study in site.patients(group) if _key(study) not in taken] for group in SET_NAMES}
    victims, groups = [], fault.groups
    if fault.share:
        count = min(round(fault.share * site.settings.train_patients), len(free[TRAIN]))
        groups = (TRAIN,) * max(1, count)
    for group in groups:
        fitting = next((study for study in free[group] if fault.fits(study)), None)
        if fitting is None:
            raise ValueError(
                f"{site.root}: {name} needs one of the {SET_NAMES[group]} that carries no other fault, and none is left that "
                "could carry it; make a larger set"
            )
        free[group].remove(fitting)
        victims.append(fitting)
    return victims


def _refuse_broken_tables(root: Path, name: str, planted: dict[str, list[str]]) -> None:
    broken = [other for other in planted if FAULTS[other].breaks_table]
    if broken and not FAULTS[name].breaks_table:
        raise ValueError(
            f"{root} holds {' and '.join(broken)}, so that its tables cannot be edited any more; plant {name} into a new set"
        )


def _patient(volume: str) -> str:
    """train_1 of train_1_a_1; the folder of a case of CTRG."""
    return "_".join(volume.split("_")[:2])


def _key(study: Study) -> str:
    if study.group == CTRG:
        return ctrg.case_folder(study.patient, study.settings.seed)
    return _patient(study.name)
