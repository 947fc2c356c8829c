"""A synthetic set that is being spoilt: its studies, volumes drawn again, and edits of files and tables that may be repeated."""

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mg3d.phantom import ct_rate, ctrg
from mg3d.phantom.generate import CTRG, PhantomSettings, Study, draw, kernels, plan, read_truth, render

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Site:
    """A set that was made with `settings`. Every edit gives the same bytes when it is made once more."""

    root: Path
    settings: PhantomSettings

    @property
    def dataset(self) -> Path:
        """CT-RATE's folder of trees and tables."""
        return self.root / "ct_rate" / "dataset"

    @cached_property
    def studies(self) -> dict[tuple[int, int], list[Study]]:
        """(set, patient) -> scans."""
        found: dict[tuple[int, int], list[Study]] = {}
        for study in plan(self.root, self.settings):
            found.setdefault((study.group, study.patient), []).append(study)
        return found

    def scans(self, study: Study) -> list[Study]:
        """All scans of a study's patient."""
        return self.studies[study.group, study.patient]

    def patients(self, group: int) -> Iterator[Study]:
        """The first scan of every patient of a set, in an order drawn with the set's seed."""
        first = [scans[0] for (its, _), scans in self.studies.items() if its == group]
        order = np.random.default_rng([self.settings.seed, group, 97]).permutation(len(first))
        yield from (first[place] for place in order)

    def volumes(self, study: Study) -> dict[str, np.ndarray]:
        """Name -> int16 HU [z, y, x] of a study's reconstructions, drawn again; CTRG has the first alone."""
        return dict(zip(names(study), render(study, draw(study)), strict=study.group != CTRG))

    def first_volume(self, study: Study) -> tuple[str, np.ndarray]:
        """Name and voxels of the first reconstruction."""
        return next(iter(self.volumes(study).items()))

    def voxel_mm(self, study: Study) -> float:
        """Side of a study's voxels."""
        return float(read_truth(study)["voxel_mm"])

    def only_path(self, name: str, *, fixed: bool = True) -> Path:
        """Where a volume lies in one of the two trees, after its file in the other one was removed."""
        ct_rate.volume_path(self.dataset, name, fixed=not fixed).unlink(missing_ok=True)
        path = ct_rate.volume_path(self.dataset, name, fixed=fixed)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def table(self, kind: str, split: str) -> Path:
        """The CSV file of a split; kind: reports, metadata, labels."""
        folders = {"reports": "radiology_text_reports", "metadata": "metadata", "labels": "multi_abnormality_labels"}
        word = split if kind == "labels" else ct_rate.REPORTS_NAME[split]
        last = "predicted_labels" if kind == "labels" else kind
        return self.dataset / folders[kind] / f"{word}_{last}.csv"

    def edit(self, kind: str, split: str, change: Callable[[Rows], Rows]) -> None:
        """Rewrites a table."""
        path = self.table(kind, split)
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), reader.fieldnames or ()
        ct_rate.write_csv(path, columns, change(rows))

    def set_cells(self, kind: str, cells: Mapping[str, Mapping[str, Any]]) -> None:
        """Volume name -> column -> new content, for volumes of one split."""
        split = next(iter(cells)).split("_")[0]
        self.edit(kind, split, lambda rows: [{**row, **cells.get(stem(row), {})} for row in rows])

    def add_rows(self, kind: str, new: Mapping[str, Mapping[str, Any]]) -> None:
        """Appends rows of volumes of one split; those of an earlier attempt are replaced."""
        split = next(iter(new)).split("_")[0]
        kept_and_new = [{"VolumeName": f"{name}.nii.gz", **row} for name, row in new.items()]
        self.edit(kind, split, lambda rows: [row for row in rows if stem(row) not in new] + kept_and_new)

    def row(self, kind: str, name: str) -> dict[str, str]:
        """The first row of a volume."""
        with self.table(kind, name.split("_")[0]).open(newline="", encoding="utf-8") as stream:
            return next(row for row in csv.DictReader(stream) if stem(row) == name)


def names(study: Study) -> list[str]:
    """train_1_a_1, ... of a scan of CT-RATE; the folder of a case of CTRG."""
    if study.group == CTRG:
        return [ctrg.case_folder(study.patient, study.settings.seed)]
    return [f"{study.name}_{number}" for number in range(1, 1 + len(kernels(study)))]


def stem(row: Mapping[str, str]) -> str:
    """The volume's name in a row of a table."""
    return row["VolumeName"].removesuffix(".nii.gz")
