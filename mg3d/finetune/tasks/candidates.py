"""Classification of candidate positions in a scan: cubes cut on the fly, and LUNA16's FROC."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai import transforms as mt
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.utils.data import Dataset

from mg3d.finetune.cases import UNKNOWN, Candidate, FinetuneCase, ReferenceNodule, Split
from mg3d.finetune.data_check import InspectedFiles
from mg3d.finetune.data_root import read_csv
from mg3d.finetune.dataset import ERRORS, Draw, seeded
from mg3d.finetune.images import LPS_TO_RAS, read_image
from mg3d.finetune.settings import FinetuneSettings, Size
from mg3d.finetune.tasks.base import Row
from mg3d.finetune.tasks.classification import Classification
from mg3d.finetune.transforms import AXES, Sample, plain_tensors
from mg3d.metrics.classification import auroc
from mg3d.metrics.froc import CPM_RATES, Annotations, FrocCurve, froc, sensitivity_at

CENTRE = ("x_mm", "y_mm", "z_mm")
"""Columns of a candidate's centre, LPS."""
NO_CANDIDATE = -1
"""`candidate` of the one row of a scan without candidates, whose nodules are missed."""
CANDIDATE_FILE = "candidates.csv"
CANDIDATE_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ")
CACHED_SCANS = 4
"""Scans that a loader process keeps; an epoch reads the candidates of a scan one after another."""


def cut_cube(scan: MetaTensor, centre_mm: Sequence[float], size: Size) -> Tensor:
    """Cube [1, *size] of a scan [1, z, y, x] that is at least as large; the voxel of `centre_mm` (LPS) is at size // 2.

    Cubes at a border are shifted inwards.

    Raises:
        ValueError: the position is more than a cube outside the scan.
    """
    shape, sides = np.array(scan.shape[1:]), np.array(size)
    voxel = np.linalg.inv(np.asarray(scan.affine, dtype=np.float64)) @ LPS_TO_RAS @ [*centre_mm, 1.0]
    nearest = np.round(voxel[:3]).astype(int)
    if (nearest < -sides).any() or (nearest >= shape + sides).any():
        position = ", ".join(f"{value:.1f}" for value in centre_mm)
        raise ValueError(f"candidate at ({position}) mm is outside its scan of {shape.tolist()} voxels; expected world mm, LPS")
    start = np.clip(nearest - sides // 2, 0, shape - sides)
    box = tuple(slice(int(low), int(low + side)) for low, side in zip(start, sides, strict=True))
    return scan.as_tensor()[(slice(None), *box)].clone()


class CandidateCubes(Dataset):
    """One sample per candidate, those of a scan one after another.

    Args:
        cases: scans with their candidates.
        size: voxels of a cube, at the scan's own spacing.
        preprocess: deterministic transforms of a cube.
        random: augmentation of a cube.
        every_scan: a scan without candidates yields one sample of zeros (`NO_CANDIDATE`).
        collect_errors: as in `CaseDataset`.
    """

    def __init__(
        self,
        cases: Sequence[FinetuneCase],
        size: Size,
        *,
        preprocess: Callable[[Sample], Sample],
        random: mt.Compose | None = None,
        seed: int = 0,
        every_scan: bool = False,
        collect_errors: bool = False,
    ) -> None:
        self.cases, self.size, self.seed = list(cases), size, seed
        self.preprocess, self.random, self.collect_errors = preprocess, random, collect_errors
        counts = np.array([len(case.candidates) for case in cases])
        rows = np.maximum(counts, 1) if every_scan else counts
        self.scan_of = np.repeat(np.arange(len(rows)), rows)
        self.candidate_of = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        self.candidate_of[counts[self.scan_of] == 0] = NO_CANDIDATE

    def __len__(self) -> int:
        return len(self.scan_of)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "scan"}

    @functools.cached_property
    def scan(self) -> Callable[[int], MetaTensor]:
        """Index of a case -> its scan [1, z, y, x], padded to at least the size of a cube; cached."""
        return functools.lru_cache(maxsize=CACHED_SCANS)(self._read)

    def _read(self, index: int) -> MetaTensor:
        image = mt.Orientation(AXES, labels=None)(read_image(self.cases[index].image))
        return mt.SpatialPad(self.size, value=float(image.min()))(image)

    def targets(self) -> np.ndarray:
        """int64 [candidates]."""
        return np.array([candidate.target for case in self.cases for candidate in case.candidates], dtype=np.int64)

    def __getitem__(self, draw_index: int) -> Sample:
        row = draw_index % len(self)
        case, number = self.cases[self.scan_of[row]], int(self.candidate_of[row])
        sample: Sample = {"case_id": case.case_id, "patient_id": case.patient_id, "candidate": number}
        sample["nodules"] = json.dumps(case.nodules) if number <= 0 else ""
        if number == NO_CANDIDATE:
            centre = torch.full((3,), torch.nan, dtype=torch.float64)
            return sample | {"image": torch.zeros(1, *self.size), "centre_mm": centre, "target": torch.tensor([UNKNOWN])}
        candidate = case.candidates[number]
        try:
            cube = cut_cube(self.scan(int(self.scan_of[row])), candidate.centre_mm, self.size)
        except (ValueError, OSError) as error:
            if self.collect_errors:
                return {ERRORS: [(case.case_id, str(error).split("\n")[0])]}
            raise ValueError(f"{case.case_id}: {error}") from error
        centre = torch.tensor(candidate.centre_mm, dtype=torch.float64)
        sample |= {"centre_mm": centre, "target": torch.tensor([candidate.target])}
        sample = self.preprocess(sample | {"image": cube})
        return sample if self.random is None else seeded(self.random, self.seed, draw_index)(sample)


def drawn_by_scan(targets: np.ndarray, scan_of: np.ndarray, *, negatives: float) -> Draw:
    """All positives and `negatives` times as many random negatives; scans in random order, the rows of a scan together.

    Each scan is then read once per epoch.
    """
    positive, negative = (torch.from_numpy(np.flatnonzero(targets == value)) for value in (1, 0))
    count = min(round(negatives * len(positive)), len(negative))
    scans = torch.from_numpy(scan_of)

    def draw(generator: torch.Generator) -> Tensor:
        rows = torch.cat([positive, negative[torch.randperm(len(negative), generator=generator)[:count]]])
        rows = rows[torch.randperm(len(rows), generator=generator)]
        order = torch.randperm(int(scans.max()) + 1, generator=generator)
        return rows[torch.argsort(order[scans[rows]], stable=True)]

    return draw


class CandidateClassification(Classification):
    """Binary cross entropy over cubes around candidates.

    Columns: `candidate` (index in its scan), its centre, `score/<output>`, `target/<output>`, and on the first row of a scan
    `nodules`, the reference standard as JSON, so that FROC is computed from the table alone.

    Args:
        cube_size: voxels of a cube, at the scan's own spacing.
        negatives: negative candidates that an epoch draws per positive one.
    """

    eval_batch_size = None
    samples_share_scans = True

    def __init__(self, settings: FinetuneSettings, *, cube_size: Size, negatives: float = 1.0, **shared: Any) -> None:
        super().__init__(settings, **{"metric": "auroc", **shared})
        self.cube_size, self.negatives = cube_size, negatives

    def setup(self, split: Split, files: InspectedFiles) -> None:
        """Both classes must occur in training."""
        classes = {candidate.target for case in split.train for candidate in case.candidates}
        if not classes >= {0, 1}:
            raise ValueError(f"the training candidates have the classes {sorted(classes)}; both 0 and 1 are needed")

    def _cubes(self, cases: Sequence[FinetuneCase], **named: Any) -> CandidateCubes:
        preprocess = mt.Compose([*self.preprocess, plain_tensors()])
        return CandidateCubes(cases, self.cube_size, preprocess=preprocess, seed=self.settings.seed, **named)

    def training_data(self, cases: Sequence[FinetuneCase]) -> tuple[Dataset, Draw]:
        """Cubes, drawn as `drawn_by_scan`."""
        data = self._cubes(cases, random=self.random_transforms())
        return data, drawn_by_scan(data.targets(), data.scan_of, negatives=self.negatives)

    def evaluation_data(self, cases: Sequence[FinetuneCase], *, collect_errors: bool = False) -> Dataset:
        """Every candidate, scan by scan."""
        return self._cubes(cases, every_scan=True, collect_errors=collect_errors)

    def for_prediction(self, cases: Sequence[FinetuneCase], where: Path) -> list[FinetuneCase]:
        """Scans with the positions that `candidates.csv` in the input folder lists."""
        path = where / CANDIDATE_FILE if where.is_dir() else where.with_name(CANDIDATE_FILE)
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}, the list of candidates: {', '.join(CANDIDATE_COLUMNS)} (mm, LPS)")
        table = read_csv(path, CANDIDATE_COLUMNS, text=CANDIDATE_COLUMNS[:1])
        candidates: dict[str, list[Candidate]] = {}
        for name, *centre in table[list(CANDIDATE_COLUMNS)].itertuples(index=False):
            candidates.setdefault(name, []).append(Candidate(tuple(map(float, centre)), UNKNOWN))
        if unknown := set(candidates) - {case.case_id for case in cases}:
            raise ValueError(f"{path} lists {len(unknown)} scans that are not in {where}, such as {sorted(unknown)[:2]}")
        return [dataclasses.replace(case, candidates=tuple(candidates.get(case.case_id, ()))) for case in cases]

    @torch.no_grad()
    def rows(self, network: nn.Module, batch: Sample, *, mask_folder: Path | None = None) -> list[Row]:
        """One row per candidate."""
        rows = super().rows(network, batch, mask_folder=mask_folder)
        centres, numbers = batch["centre_mm"].cpu().numpy(), batch["candidate"].tolist()
        for row, centre, number, nodules in zip(rows, centres, numbers, batch["nodules"], strict=True):
            row |= {"candidate": number, **dict(zip(CENTRE, centre.tolist(), strict=True)), "nodules": nodules}
            if number == NO_CANDIDATE:
                row[f"score/{self.outputs[0]}"] = float("nan")
        return rows

    def curve(self, table: pd.DataFrame) -> FrocCurve | None:
        """FROC of a table, in which a bootstrap may have drawn a scan several times; None without a nodule."""
        numbers, names = table["candidate"].to_numpy(), table["case_id"].to_numpy()
        first = np.append(True, (names[1:] != names[:-1]) | (numbers[1:] <= numbers[:-1]))
        scan = np.cumsum(first) - 1
        by_scan = [_read_nodules(text) for text in table["nodules"].to_numpy()[first]]
        nodules = np.concatenate(by_scan)
        if not (nodules[:, 4] == 0).any():
            return None
        nodule_scan = np.repeat(np.arange(len(by_scan)), [len(each) for each in by_scan])
        annotations = Annotations(nodule_scan, nodules[:, :3], nodules[:, 3], nodules[:, 4] == 1)
        is_real = numbers != NO_CANDIDATE
        scores, centres = table[f"score/{self.outputs[0]}"].to_numpy()[is_real], table[list(CENTRE)].to_numpy()[is_real]
        return froc(scan[is_real], centres, scores, annotations=annotations, n_scans=len(by_scan))

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`auroc` of candidates, `cpm`, and `sensitivity@<false positives per scan>` of nodules."""
        targets, scores = (matrix[:, 0] for matrix in self.matrices(table))
        curve = self.curve(table)
        values = sensitivity_at(curve) if curve else np.full(len(CPM_RATES), np.nan)
        statistics = {"auroc": auroc(targets, scores), "cpm": float(values.mean())}
        return statistics | {f"sensitivity@{rate:g}": float(value) for rate, value in zip(CPM_RATES, values, strict=True)}

    def support_mask(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """`auroc`: labelled candidates; FROC: scans, by their first row."""
        return super().support_mask(table, score) if score == "auroc" else table["candidate"].to_numpy() <= 0

    def insufficient_reason(self, table: pd.DataFrame, score: str) -> str:
        """`auroc` only: the sensitivities of FROC are of nodules."""
        return super().insufficient_reason(table, score) if score == "auroc" else ""

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """The FROC curve, and the curves of a classification."""
        curve = self.curve(table)
        return [*([("FROC", _froc_figure(curve))] if curve else []), *super().figures(table)]


@functools.lru_cache(maxsize=100_000)
def _read_nodules(text: str) -> np.ndarray:
    """[m, 5]: x, y, z, diameter in mm, excluded."""
    nodules = [ReferenceNodule(*row) for row in json.loads(text)]
    return np.array([(*n.centre_mm, n.diameter_mm, n.excluded) for n in nodules], dtype=np.float64).reshape(-1, 5)


def _froc_figure(curve: FrocCurve) -> Figure:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.step(curve.false_positives_per_scan, curve.sensitivity, where="post")
    axes.plot(CPM_RATES, sensitivity_at(curve), "o", label="CPM operating points")
    axes.set_xscale("log", base=2)
    axes.set_xlim(CPM_RATES[0] / 2, CPM_RATES[-1] * 2)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("false positives per scan")
    axes.set_ylabel("sensitivity")
    axes.legend(loc="lower right")
    return figure
