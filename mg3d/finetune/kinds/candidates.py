"""Places in a scan -> whether each is a nodule: cubes cut on the fly, and LUNA16's FROC."""

import dataclasses
import functools
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai import transforms as mt
from torch import Tensor, nn
from torch.utils.data import Dataset

from mg3d.finetune.cases import UNKNOWN, Candidate, Case, Finding
from mg3d.finetune.images import LPS_TO_RAS, read_volume
from mg3d.finetune.kinds.base import Draw, Plain, Row
from mg3d.finetune.kinds.classification import Classification
from mg3d.finetune.pipeline import ReadCase, Sample, Ticket, fixed_steps, own_words, random_steps, reordered
from mg3d.finetune.task import Preprocess
from mg3d.metrics.classification import auroc
from mg3d.metrics.froc import CPM_RATES, Annotations, FrocCurve, froc, sensitivity_at

PLACE = ("x_mm", "y_mm", "z_mm")
"""Columns of a candidate's centre, LPS."""
NO_CANDIDATE = -1
"""`place` of the one row of a scan without candidates; its nodules are missed all the same."""
LIST = "candidates.csv"
"""Beside new scans: what is to be looked at."""
LIST_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ")
MEMORY_BYTES = 2 * 1024**3
"""Of the scans that a loader process keeps; the last one is kept in any case."""


class Scan(NamedTuple):
    """A whole scan; its voxels may be a view of a file that is mapped into memory."""

    voxels: np.ndarray
    """[i, j, k]."""
    affine: np.ndarray
    """[4, 4], voxel -> RAS mm."""


class RecentScans:
    """Scans by number, read when asked for; the latest stay in memory up to `most_bytes`, and one at least."""

    def __init__(self, read: Callable[[int], Scan], most_bytes: int) -> None:
        self.read, self.most_bytes = read, most_bytes
        self.held: OrderedDict[int, Scan] = OrderedDict()

    def __getitem__(self, number: int) -> Scan:
        if number not in self.held:
            while self.held and self._bytes() > self.most_bytes:
                self.held.popitem(last=False)
            self.held[number] = self.read(number)
            while len(self.held) > 1 and self._bytes() > self.most_bytes:
                self.held.popitem(last=False)
        self.held.move_to_end(number)
        return self.held[number]

    def _bytes(self) -> int:
        return sum(scan.voxels.nbytes for scan in self.held.values())


def turned(scan: Scan, axes: str) -> Scan:
    """A view of a scan with array axes of the order and directions `axes` (MONAI's letters)."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(scan.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    affine = scan.affine @ nib.orientations.inv_ornt_aff(turn, scan.voxels.shape)
    return Scan(nib.orientations.apply_orientation(scan.voxels, turn), affine)


def padded(scan: Scan, sides: Sequence[int], value: float) -> Scan:
    """A scan of at least `sides` voxels, where need be with `value` on both ends."""
    lack = np.maximum(np.array(sides) - scan.voxels.shape, 0)
    if not lack.any():
        return scan
    before = lack // 2
    pads = list(zip(before, lack - before, strict=True))
    shift = np.eye(4)
    shift[:3, 3] = -before
    return Scan(np.pad(scan.voxels.astype(np.float32), pads, constant_values=value), scan.affine @ shift)


def voxel_of(centre_mm: Sequence[float], affine: np.ndarray) -> np.ndarray:
    """Voxel coordinates [3] along the array axes of a world place x, y, z (LPS, mm); affine: voxel -> RAS mm, [4, 4]."""
    return (np.linalg.inv(affine) @ LPS_TO_RAS @ [*centre_mm, 1.0])[:3]


def cut_cube(scan: Scan, centre_mm: Sequence[float], sides: Sequence[int]) -> Tensor:
    """float32 [1, *sides] of a scan at least as large: the voxel of `centre_mm` at sides // 2, shifted inwards at borders.

    Raises:
        ValueError: the place is more than a side away from the scan, so it is of another scan or another convention.
    """
    nearest = np.round(voxel_of(centre_mm, scan.affine)).astype(int)
    size, sides = np.array(scan.voxels.shape), np.array(sides)
    if (nearest < -sides).any() or (nearest >= size + sides).any():
        told = ", ".join(f"{value:.1f}" for value in centre_mm)
        raise ValueError(f"a candidate at ({told}) mm lies outside its scan of {size.tolist()} voxels; expected world mm, LPS")
    start = np.clip(nearest - sides // 2, 0, size - sides)
    box = tuple(slice(int(low), int(low + side)) for low, side in zip(start, sides, strict=True))
    return torch.from_numpy(np.array(scan.voxels[box], dtype=np.float32, order="C"))[None]


class Cubes(Dataset):
    """One sample per candidate, those of a scan one after another; what is drawn for a ticket depends on seed and ticket alone.

    Args:
        cases: scans with their candidates.
        read: case -> its scan, at least as large as a cube.
        finish: what is done to a cube [1, *sides] first.
        sides: voxels of a cube along the array axes.
        random: changes of a cube.
        every_scan: a scan without candidates gives one sample (`NO_CANDIDATE`), of zeros.
    """

    def __init__(
        self, cases: Sequence[Case], read: Callable[[Case], Scan], *, finish: Callable[[Tensor], Tensor], sides: Sequence[int],
        seed: int = 0, random: mt.Compose | None = None, every_scan: bool = False, most_bytes: int = MEMORY_BYTES,
    ) -> None:  # fmt: skip
        self.cases, self.sides, self.seed, self.random = list(cases), tuple(sides), seed, random
        self.read, self.finish = read, finish
        counts = np.array([len(case.candidates) for case in cases])
        rows = np.maximum(counts, 1) if every_scan else counts
        self.scan_of = np.repeat(np.arange(len(rows)), rows)
        self.place_of = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        self.place_of[counts[self.scan_of] == 0] = NO_CANDIDATE
        self.scans = RecentScans(self._scan, most_bytes)

    def __len__(self) -> int:
        return len(self.scan_of)

    def _scan(self, number: int) -> Scan:
        return self.read(self.cases[number])

    def targets(self) -> np.ndarray:
        """int64 [len(self)]."""
        return np.array([candidate.target for case in self.cases for candidate in case.candidates], dtype=np.int64)

    def __getitem__(self, ticket: Ticket) -> Sample:
        row = ticket % len(self)
        case, place = self.cases[self.scan_of[row]], int(self.place_of[row])
        sample: Sample = {"case_id": case.case_id, "patient_id": case.patient_id, "place": place}
        sample["findings"] = json.dumps(case.findings) if place <= 0 else ""
        if place == NO_CANDIDATE:
            unknown = torch.full((3,), torch.nan, dtype=torch.float64)
            return sample | {"image": torch.zeros(1, *self.sides), "centre_mm": unknown, "target": torch.tensor([UNKNOWN])}
        candidate = case.candidates[place]
        try:
            cube = cut_cube(self.scans[int(self.scan_of[row])], candidate.centre_mm, self.sides)
        except ValueError as error:
            raise ValueError(f"{case.case_id}: {error}") from error
        sample["image"] = self.finish(cube)
        sample["centre_mm"] = torch.tensor(candidate.centre_mm, dtype=torch.float64)
        sample["target"] = torch.tensor([candidate.target])
        if self.random is None:
            return sample
        words = np.random.SeedSequence([self.seed, ticket]).generate_state(1)
        self.random.set_random_state(seed=int(words[0]))
        return self.random(sample)


def drawn_by_scan(targets: np.ndarray, scan_of: np.ndarray, *, negatives: float) -> Draw:
    """All positives and `negatives` times as many randomly chosen negatives; scans in random order, each scan's rows together.

    A scan is then read once in an epoch, and most of a batch is still of other scans.
    """
    positive, negative = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    wanted = min(round(negatives * len(positive)), len(negative))

    def draw(generator: np.random.Generator) -> np.ndarray:
        rows = np.concatenate([positive, generator.choice(negative, wanted, replace=False)])
        rows = generator.permutation(rows)
        turn = generator.permutation(scan_of.max() + 1)
        return rows[np.argsort(turn[scan_of[rows]], kind="stable")]

    return draw


class Candidates(Classification):
    """Binary cross entropy over cubes around candidates.

    Columns: `place` of a candidate in its scan, its centre, `score/<output>`, `target/<output>`, and on the first row of a scan
    `findings`, the nodules of the reference as JSON; so FROC is computed from the table alone.
    """

    evaluation_size = None

    def check(self, cases: Sequence[Case]) -> None:
        """Refuses settings without a cube, and candidates without a nodule or without anything else."""
        if not self.task.preprocess.patch:
            raise ValueError(f"{self.task.folder} declares no preprocess.patch, the size of cubes around candidates")
        found = {candidate.target for case in cases for candidate in case.candidates}
        if not found >= {0, 1}:
            raise ValueError(f"the candidates have the classes {sorted(found)}; both 0 and 1 are needed to learn from")

    def _cubes(self, cases: Sequence[Case], *, random: mt.Compose | None = None, every_scan: bool) -> Cubes:
        sides = reordered(self.task.preprocess.patch, self.axes)
        read, finish = self._native(sides) if self._is_native() else (self._prepared, mt.Identity())
        memory = MEMORY_BYTES if self.settings.cache == "memory" else 0
        return Cubes(
            cases, read, finish=finish, sides=sides, seed=self.settings.seed, random=random, every_scan=every_scan,
            most_bytes=memory,
        )  # fmt: skip

    def _is_native(self) -> bool:
        """Whether a cube can be cut first and windowed then, as nothing else is done to a scan: many times faster."""
        steps = dataclasses.replace(self.task.preprocess, crops=1, positive_share=0.5)
        return steps.window is not None and steps == Preprocess(window=steps.window, patch=steps.patch)

    def _native(self, sides: Sequence[int]) -> tuple[Callable[[Case], Scan], Callable[[Tensor], Tensor]]:
        low, high = self.task.preprocess.window
        window = mt.ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
        return functools.partial(_read_native, axes=self.axes, sides=sides, low=low), window

    def _prepared(self, case: Case) -> Scan:
        steps = mt.Compose([ReadCase(masks=False), *fixed_steps(self.task.preprocess, keys=["image"], axes=self.axes)])
        with own_words():
            image = steps(case)["image"]
        return Scan(image[0].numpy(), np.asarray(image.affine, dtype=np.float64))

    def training_data(self, cases: Sequence[Case]) -> tuple[Dataset, Draw]:
        """Cubes, and which are drawn in an epoch: see `drawn_by_scan`."""
        changes = random_steps(self.task.augment, keys=["image"], axes=self.axes) if self.settings.augment else []
        data = self._cubes(cases, random=mt.Compose([*changes, Plain(["image"])]), every_scan=False)
        targets = data.targets()
        if not (targets == 1).any():
            raise ValueError(f"none of the {len(targets)} candidates of the training scans is a nodule; nothing can be learned")
        return data, drawn_by_scan(targets, data.scan_of, negatives=self.task.negatives)

    def evaluation_data(self, cases: Sequence[Case]) -> Dataset:
        """Every candidate, scan by scan."""
        return self._cubes(cases, every_scan=True)

    def for_prediction(self, cases: Sequence[Case], where: Path) -> list[Case]:
        """Scans with the candidates of `candidates.csv` beside them; a scan that is not in it gets none."""
        path = where / LIST if where.is_dir() else where.with_name(LIST)
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}; it tells where to look: {', '.join(LIST_COLUMNS)}, world mm, LPS")
        table = pd.read_csv(path, dtype={LIST_COLUMNS[0]: str})
        if missing := set(LIST_COLUMNS) - set(table):
            raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {list(table)[:6]}")
        found: dict[str, list[Candidate]] = {}
        for name, *place in table[list(LIST_COLUMNS)].itertuples(index=False):
            found.setdefault(name, []).append(Candidate(tuple(map(float, place)), UNKNOWN))
        if strange := set(found) - {case.case_id for case in cases}:
            raise ValueError(f"{path} names {len(strange)} scans that are not there, such as {sorted(strange)[:2]}")
        return [dataclasses.replace(case, candidates=tuple(found.get(case.case_id, ()))) for case in cases]

    @torch.no_grad()
    def rows(self, network: nn.Module, batch: Sample, *, masks: Path | None = None) -> list[Row]:
        """One row per candidate."""
        rows = super().rows(network, batch, masks=masks)
        centres, places = batch["centre_mm"].cpu().numpy(), batch["place"].tolist()
        for row, centre, place, findings in zip(rows, centres, places, batch["findings"], strict=True):
            row |= {"place": place, **dict(zip(PLACE, centre.tolist(), strict=True)), "findings": findings}
            if place == NO_CANDIDATE:
                row[f"score/{self.task.outputs[0]}"] = float("nan")
        return rows

    def curve(self, table: pd.DataFrame) -> FrocCurve | None:
        """FROC of a table, in which a scan may be drawn several times; None without a nodule to be found."""
        places, names = table["place"].to_numpy(), table["case_id"].to_numpy()
        first = np.append(True, (names[1:] != names[:-1]) | (places[1:] <= places[:-1]))
        scan = np.cumsum(first) - 1
        each = [_read_findings(text) for text in table["findings"].to_numpy()[first]]
        of = np.repeat(np.arange(len(each)), [len(found) for found in each])
        found = np.concatenate(each)
        if not (found[:, 4] == 0).any():
            return None
        annotations = Annotations(of, found[:, :3], found[:, 3], found[:, 4] == 1)
        real = places != NO_CANDIDATE
        scores = table[f"score/{self.task.outputs[0]}"].to_numpy()
        return froc(
            scan[real], table[list(PLACE)].to_numpy()[real], scores[real], annotations=annotations, all_scans=np.arange(len(each))
        )  # fmt: skip

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`auroc` of candidates, `cpm`, and `sensitivity@<false positives per scan>` of nodules."""
        targets, scores = (matrix[:, 0] for matrix in self.matrices(table))
        curve = self.curve(table)
        rates = sensitivity_at(curve) if curve else np.full(len(CPM_RATES), np.nan)
        found = {"auroc": auroc(targets, scores), "cpm": float(rates.mean())}
        return found | {f"sensitivity@{rate:g}": float(value) for rate, value in zip(CPM_RATES, rates, strict=True)}

    def rests_on(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """`auroc`: candidates that are known; FROC: scans, by their first row."""
        return super().rests_on(table, score) if score == "auroc" else table["place"].to_numpy() <= 0

    def lacks(self, table: pd.DataFrame, score: str) -> str:
        """`auroc` alone: sensitivities here are of nodules, at a rate of false positives."""
        return super().lacks(table, score) if score == "auroc" else ""

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """The FROC curve and what a classification shows."""
        curve = self.curve(table)
        return [*([("FROC", _froc_figure(curve))] if curve else []), *super().figures(table)]


def _read_native(case: Case, *, axes: str, sides: Sequence[int], low: float) -> Scan:
    return padded(turned(Scan(*read_volume(case.image)), axes), sides, low)


@functools.lru_cache(maxsize=100_000)
def _read_findings(text: str) -> np.ndarray:
    """[m, 5]: x, y, z, diameter in mm, whether excluded."""
    findings = [Finding(*row) for row in json.loads(text)]
    return np.array([(*f.centre_mm, f.diameter_mm, f.excluded) for f in findings], dtype=np.float64).reshape(-1, 5)


def _froc_figure(curve: FrocCurve) -> Figure:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.step(curve.false_positives_per_scan, curve.sensitivity, where="post")
    axes.plot(CPM_RATES, sensitivity_at(curve), "o", label="rates of the CPM")
    axes.set_xscale("log", base=2)
    axes.set_xlim(CPM_RATES[0] / 2, CPM_RATES[-1] * 2)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("false positives per scan")
    axes.set_ylabel("sensitivity")
    axes.legend(loc="lower right")
    return figure
