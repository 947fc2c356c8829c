"""Write the synthetic pre-training set: CT-RATE and CTRG-Chest trees and ground truth. Parallel, resumable, deterministic."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mg3d.files import write_json
from mg3d.phantom import ct_rate, ctrg
from mg3d.phantom.case import VERSION, PhantomCase, make_case, reconstruct
from mg3d.phantom.spec import PhantomSettings, map_cases

TRAIN, VALID, CTRG = 0, 1, 2
"""Second seed word of a study: its subset."""
SPLITS = {TRAIN: "train", VALID: "valid"}
MARK = "phantom.json"


class PhantomStudy(NamedTuple):
    """One scan of the set."""

    root: Path
    settings: PhantomSettings
    group: int
    patient: int
    scan: int
    """0 = a, 1 = b."""

    @property
    def seed_words(self) -> tuple[int, ...]:
        """Seed of the study."""
        return (self.settings.seed, self.group, self.patient, self.scan)

    @property
    def name(self) -> str:
        """`train_1_a`, or the number of a CTRG case."""
        return str(self.patient) if self.group == CTRG else f"{SPLITS[self.group]}_{self.patient}_{'ab'[self.scan]}"

    @property
    def dataset(self) -> str:
        """Name of its folder."""
        return "ctrg" if self.group == CTRG else "ct_rate"

    @property
    def truth_path(self) -> Path:
        """Ground truth; written last, so an existing file marks a finished study."""
        return self.root / "truth" / self.dataset / f"{self.name}.json"

    @property
    def intercept(self) -> int:
        """Rescale intercept of the scanner; one scanner in four pads with -8192."""
        return -8192 if self.patient % 4 == 0 else -1024


def generate(root: Path, settings: PhantomSettings, *, workers: int, masks: bool = False) -> dict[str, int]:
    """Write the set into `root`, skipping what exists; returns the numbers of `studies`, `volumes`, and `new` studies.

    masks: also write a label map of the findings of every volume (see `write_masks`), also into a finished set.

    Raises:
        ValueError: `root` holds a set with other settings.
    """
    mark = root / MARK
    expected = {"version": VERSION, **asdict(settings)}
    state = json.loads(mark.read_text()) if mark.is_file() else {"settings": expected, "complete": False}
    if state["settings"] != expected:
        different = ", ".join(sorted(name for name in expected if state["settings"].get(name) != expected[name]))
        raise ValueError(f"{root} holds a synthetic set with other settings ({different}); use another --out, or delete it")
    studies = list(plan(root, settings))
    new = 0 if state["complete"] else sum(not study.truth_path.is_file() for study in studies)
    counts = {"studies": len(studies), "volumes": sum(len(kernels(study)) for study in studies), "new": new}
    if not state["complete"]:
        write_json(mark, state)
        _for_all(write_study, studies, workers, "synthetic studies")
        _write_tables(root, studies)
        write_json(mark, state | {"complete": True})
    if masks:
        _for_all(write_masks, studies, workers, "masks of findings")
    return counts


def plan(root: Path, settings: PhantomSettings) -> Iterator[PhantomStudy]:
    """All studies of the set, in order."""
    for group, patients in ((TRAIN, settings.train_patients), (VALID, settings.valid_patients)):
        for patient in range(1, patients + 1):
            second = np.random.default_rng([settings.seed, group, patient, 99]).random() < settings.second_scans
            yield from (PhantomStudy(root, settings, group, patient, scan) for scan in range(1 + second))
    yield from (PhantomStudy(root, settings, CTRG, number, 0) for number in range(settings.ctrg_cases))


def kernels(study: PhantomStudy) -> tuple[bool, ...]:
    """Whether each reconstruction of a study has a sharp kernel; CTRG cases have one, soft reconstruction."""
    second = (
        study.group != CTRG and np.random.default_rng([*study.seed_words, 98]).random() < study.settings.second_reconstructions
    )
    return (False, True) if second else (False,)


def draw(study: PhantomStudy) -> PhantomCase:
    """Draw a study."""
    style, settings = "ctrg" if study.group == CTRG else "ctrate", study.settings
    return make_case(study.seed_words, voxels_in_plane=settings.grid, style=style, tempered=settings.tempered)


def write_study(study: PhantomStudy) -> None:
    """Draw and write one study, its ground truth last. Does nothing if it exists."""
    if study.truth_path.is_file():
        return
    case = draw(study)
    for number, sharp in enumerate(kernels(study), 1):
        volume = reconstruct(case.volume_hu, (*study.seed_words, number), sharp=sharp)
        if study.group == CTRG:
            ctrg.write_slices(study.root / "ctrg", study.patient, study.settings.seed, volume)
            continue
        dataset, name = study.root / "ct_rate" / "dataset", f"{study.name}_{number}"
        ct_rate.write_fixed(ct_rate.volume_path(dataset, name, fixed=True), volume, case.voxel_mm)
        if study.settings.raw_tree:
            ct_rate.write_raw(ct_rate.volume_path(dataset, name, fixed=False), volume, study.intercept)
    truth = {
        **case.ground_truth(),
        "study": study.name,
        "words": study.seed_words,
        "patient": {"age": case.patient.age, "sex": case.patient.sex},
        "shape": case.volume_hu.shape,
        "voxel_mm": case.voxel_mm,
        "report": {"findings": case.report.findings, "impression": case.report.impression},
    }
    write_json(study.truth_path, truth, durable=False)


def read_truth(study: PhantomStudy) -> dict[str, Any]:
    """Ground truth of a study that was written."""
    return json.loads(study.truth_path.read_text(encoding="utf-8"))


def write_masks(study: PhantomStudy) -> None:
    """Draw a study again and write the label map of each volume, `truth/masks/<set>/<volume>.nii.gz`.

    uint8 on the grid of the volume; values as in `PhantomCase.mask`. Existing files are skipped.
    """
    names = [study.name] if study.group == CTRG else [f"{study.name}_{number}" for number in range(1, 1 + len(kernels(study)))]
    paths = [study.root / "truth" / "masks" / study.dataset / f"{name}.nii.gz" for name in names]
    missing = [path for path in paths if not path.is_file()]
    case = draw(study) if missing else None
    for path in missing:
        ct_rate.write_fixed(path, case.mask, case.voxel_mm)


def _for_all(function: Callable[[PhantomStudy], None], studies: list[PhantomStudy], workers: int, description: str) -> None:
    interval_s = 0.5 if sys.stderr.isatty() else 60.0  # lines in a log file
    written = map_cases(function, studies, workers)
    for _ in tqdm(written, description, total=len(studies), unit="study", mininterval=interval_s):
        pass


def _write_tables(root: Path, studies: list[PhantomStudy]) -> None:
    for group, split in SPLITS.items():
        volumes = []
        for study in (study for study in studies if study.group == group):
            truth = read_truth(study)
            for number, sharp in enumerate(kernels(study), 1):
                name = f"{study.name}_{number}"
                volumes.append((name, truth, ct_rate.metadata_row(name, truth, sharp=sharp, intercept=study.intercept)))
        ct_rate.write_tables(root / "ct_rate" / "dataset", split, volumes)
    cases = [study for study in studies if study.group == CTRG]
    annotations = [ctrg.annotation(study.patient, study.settings.seed, read_truth(study)) for study in cases]
    write_json(root / "ctrg" / ctrg.ANNOTATIONS, annotations)
