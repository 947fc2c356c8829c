"""Writes a whole synthetic set: CT-RATE and CTRG trees and the truth of every study; parallel, resumable, deterministic."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from mg3d.files import write_json
from mg3d.phantom import ct_rate, ctrg
from mg3d.phantom.case import VERSION, Case, make_case, reconstruct
from mg3d.phantom.report import Style

TRAIN, VALID, CTRG = 0, 1, 2
"""Second seed word of a study: its set."""
SPLITS = {TRAIN: "train", VALID: "valid"}
MARK = "phantom.json"


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What decides the content of a set; two sets of equal settings are equal."""

    train_patients: int = 1500
    valid_patients: int = 320
    ctrg_cases: int = 100
    grid: int = 72
    """Voxels along x and y; 360 mm."""
    seed: int = 0
    second_scans: float = 0.05
    """Share of patients with a second scan, which is drawn anew. CT-RATE: 0.14; fewer here, for speed."""
    second_reconstructions: float = 0.15
    """Share of scans with a second, sharp reconstruction. CT-RATE: 0.90; fewer here, for speed."""
    tempered: bool = True
    """Raise rare findings (prevalence ** 0.7)."""
    raw_tree: bool = False
    """Write also the first release's tree: raw values, blank headers."""


class Study(NamedTuple):
    """One scan to be made."""

    root: Path
    settings: PhantomSettings
    group: int
    patient: int
    scan: int
    """0 = a, 1 = b."""

    @property
    def words(self) -> tuple[int, ...]:
        """Seed words of the study."""
        return (self.settings.seed, self.group, self.patient, self.scan)

    @property
    def name(self) -> str:
        """train_1_a, or the number of a CTRG case."""
        return str(self.patient) if self.group == CTRG else f"{SPLITS[self.group]}_{self.patient}_{'ab'[self.scan]}"

    @property
    def truth_path(self) -> Path:
        """Written last: the study is done when it is there."""
        return self.root / "truth" / ("ctrg" if self.group == CTRG else "ct_rate") / f"{self.name}.json"


def generate(root: Path, settings: PhantomSettings, *, workers: int, masks: bool = False) -> dict[str, int]:
    """Writes the set into `root` and returns what it holds; what is there already is kept.

    masks: also a label map of the findings of every volume, see `write_masks`; a set that is complete gets them added.

    Raises:
        ValueError: `root` holds a set of other settings.
    """
    mark = root / MARK
    wanted = {"version": VERSION, **asdict(settings)}
    state = json.loads(mark.read_text()) if mark.is_file() else {"settings": wanted, "complete": False}
    if state["settings"] != wanted:
        other = sorted(name for name in wanted if state["settings"].get(name) != wanted[name])
        raise ValueError(
            f"{root} holds a synthetic set of other settings ({', '.join(other)}); choose another --out, or remove it"
        )
    studies = list(plan(root, settings))
    counts = {"studies": len(studies), "volumes": sum(1 if study.group == CTRG else len(kernels(study)) for study in studies)}
    if not state["complete"]:
        write_json(mark, state)
        _write_set(root, settings, studies, workers)
        write_json(mark, state | {"complete": True})
    if masks:
        _for_all(write_masks, studies, workers, "masks of findings")
    return counts


def _write_set(root: Path, settings: PhantomSettings, studies: list[Study], workers: int) -> None:
    _for_all(make, studies, workers, "synthetic studies")
    for group in (TRAIN, VALID):
        _write_ct_rate_tables(root, [study for study in studies if study.group == group], SPLITS[group])
    cases = [ctrg.annotation(study.patient, settings.seed, read_truth(study)) for study in studies if study.group == CTRG]
    write_json(root / "ctrg" / ctrg.ANNOTATIONS, cases)


def plan(root: Path, settings: PhantomSettings) -> Iterator[Study]:
    """Every study of the set, in order."""
    for group, patients in ((TRAIN, settings.train_patients), (VALID, settings.valid_patients)):
        for patient in range(1, patients + 1):
            again = np.random.default_rng([settings.seed, group, patient, 99]).random() < settings.second_scans
            yield from (Study(root, settings, group, patient, scan) for scan in range(1 + again))
    yield from (Study(root, settings, CTRG, number, 0) for number in range(settings.ctrg_cases))


def kernels(study: Study) -> tuple[bool, ...]:
    """Whether each reconstruction of a CT-RATE scan is a sharp one."""
    second = np.random.default_rng([*study.words, 98]).random() < study.settings.second_reconstructions
    return (False, True) if second else (False,)


def draw(study: Study, *, without: str | None = None) -> Case:
    """The case of a study, equal whenever it is drawn; `without`, see `make_case`."""
    style: Style = "ctrg" if study.group == CTRG else "ctrate"
    settings = study.settings
    return make_case(study.words, voxels_in_plane=settings.grid, style=style, tempered=settings.tempered, without=without)


def render(study: Study, case: Case) -> list[np.ndarray]:
    """int16 HU [z, y, x] of every reconstruction of a study."""
    return [reconstruct(case.volume_hu, (*study.words, number), sharp=sharp) for number, sharp in enumerate(kernels(study), 1)]


def make(study: Study) -> None:
    """Draws and writes one study, its truth last; does nothing when it is there."""
    if study.truth_path.is_file():
        return
    case = draw(study)
    volumes = render(study, case)
    if study.group == CTRG:
        ctrg.write_slices(study.root / "ctrg", study.patient, study.settings.seed, volumes[0])
    else:
        _write_volumes(study, case, volumes)
    write_json(study.truth_path, study_truth(study, case), durable=False)


def mask_paths(study: Study) -> list[Path]:
    """truth/masks/<set>/<volume>.nii.gz for every volume of a study."""
    if study.group == CTRG:
        return [study.root / "truth" / "masks" / "ctrg" / f"{study.name}.nii.gz"]
    names = (f"{study.name}_{number}.nii.gz" for number in range(1, 1 + len(kernels(study))))
    return [study.root / "truth" / "masks" / "ct_rate" / name for name in names]


def write_masks(study: Study) -> None:
    """Draws a study again and writes where its findings are: uint8 label maps (`Case.mask`) on the grid of its volumes."""
    missing = [path for path in mask_paths(study) if not path.is_file()]
    case = draw(study) if missing else None
    for path in missing:
        ct_rate.write_fixed(path, case.mask, case.voxel_mm)


def study_truth(study: Study, case: Case) -> dict[str, Any]:
    """Everything known about a study, as builtins."""
    return {
        **case.truth(),
        "study": study.name,
        "words": study.words,
        "patient": {"age": case.patient.age, "sex": case.patient.sex},
        "shape": case.volume_hu.shape,
        "voxel_mm": case.voxel_mm,
        "report": {"findings": case.report.findings, "impression": case.report.impression},
    }


def read_truth(study: Study) -> dict[str, Any]:
    """The truth of a study that was made."""
    return json.loads(study.truth_path.read_text(encoding="utf-8"))


def _write_volumes(study: Study, case: Case, volumes: list[np.ndarray]) -> None:
    dataset = study.root / "ct_rate" / "dataset"
    for number, volume in enumerate(volumes, 1):
        name = f"{study.name}_{number}"
        ct_rate.write_fixed(ct_rate.volume_path(dataset, name, fixed=True), volume, case.voxel_mm)
        if study.settings.raw_tree:
            ct_rate.write_raw(ct_rate.volume_path(dataset, name, fixed=False), volume, intercept_of(study))


def intercept_of(study: Study) -> int:
    """The scanner's rescale intercept: one in four pads with -8192."""
    return -8192 if study.patient % 4 == 0 else -1024


def _for_all(function: Callable[[Study], None], studies: list[Study], workers: int, what: str) -> None:
    with Progress() as progress:
        bar = progress.add_task(what, total=len(studies))
        for _ in _each(function, studies, workers):
            progress.advance(bar)


def _each(function: Callable[[Study], None], studies: list[Study], workers: int) -> Iterator[None]:
    if workers <= 1:
        yield from map(function, studies)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(function, studies, chunksize=8)


def _write_ct_rate_tables(root: Path, studies: list[Study], split: str) -> None:
    volumes = []
    for study in studies:
        truth = read_truth(study)
        for number, sharp in enumerate(kernels(study), 1):
            name = f"{study.name}_{number}"
            row = ct_rate.metadata_row(name, truth, sharp=sharp, intercept=intercept_of(study))
            volumes.append((name, truth, row))
    ct_rate.write_tables(root / "ct_rate" / "dataset", split, volumes)
