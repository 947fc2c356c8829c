"""Numbers predicted from whole scans, such as a score or an age."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai import transforms as mt
from sklearn.metrics import PredictionErrorDisplay, r2_score
from torch import Tensor, nn

from mg3d.distributed import global_mean
from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.data_check import InspectedFiles
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.base import Row, TaskType
from mg3d.finetune.tasks.classification import Classifier
from mg3d.finetune.transforms import Sample
from mg3d.metrics.classification import mean_of_defined
from mg3d.models.vision.registry import VisionEncoder


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Coefficient of determination; nan without two different true values."""
    return float(r2_score(truth, predicted)) if len(set(truth)) > 1 else float("nan")


def pearson(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation; nan where either is constant."""
    is_constant = len(set(truth)) < 2 or len(set(predicted)) < 2
    return float("nan") if is_constant else float(np.corrcoef(truth, predicted)[0, 1])


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "r2": r2,
    "mae": lambda truth, predicted: float(np.abs(truth - predicted).mean()) if len(truth) else float("nan"),
    "rmse": lambda truth, predicted: float(np.sqrt(((truth - predicted) ** 2).mean())) if len(truth) else float("nan"),
    "pearson": pearson,
}


class Regression(TaskType):
    """Mean squared error of targets that are standardized by their training mean and standard deviation; nan is unknown.

    Columns: `predicted/<output>` and, if known, `target/<output>`, in the units of the table.
    """

    def __init__(self, settings: FinetuneSettings, **shared: Any) -> None:
        super().__init__(settings, **shared)
        self.mean, self.std = [0.0] * len(self.outputs), [1.0] * len(self.outputs)

    def setup(self, split: Split, files: InspectedFiles) -> None:
        """Mean and standard deviation of each target in training; ValueError if it is constant."""
        if self.metric not in ("r2", "pearson"):
            raise ValueError(f"metric={self.metric}: expected r2 or pearson")
        targets = np.array([case.target for case in split.train], dtype=float)
        for index, name in enumerate(self.outputs):
            known = targets[~np.isnan(targets[:, index]), index]
            if len(set(known)) < 2:
                raise ValueError(f"{name} has {len(set(known))} different value(s) in {len(known)} training cases; expected more")
            self.mean[index], self.std[index] = float(known.mean()), float(known.std())

    def state(self) -> dict[str, Any]:
        """Mean and standard deviation."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Mean and standard deviation."""
        self.mean, self.std = list(state["mean"]), list(state["std"])

    def network(self, encoder: VisionEncoder | None) -> nn.Module:
        """A `Classifier` with one standardized number per output."""
        return Classifier(encoder, len(self.outputs), dropout=self.settings.dropout)

    def read(self, *, with_masks: bool) -> Callable[[FinetuneCase], Sample]:
        """Targets are floats, also where all of a case are integers."""
        return mt.Compose([super().read(with_masks=with_masks), mt.CastToTyped("target", torch.float32, allow_missing_keys=True)])

    def loss(self, network: nn.Module, batch: Sample) -> Tensor:
        """Mean squared error over the known targets of all ranks."""
        target = (batch["target"] - batch["target"].new_tensor(self.mean)) / batch["target"].new_tensor(self.std)
        known = ~target.isnan()
        errors = (network(batch["image"]).float() - target.nan_to_num()) ** 2
        return global_mean((errors * known).sum(), known)

    @torch.no_grad()
    def rows(self, network: nn.Module, batch: Sample, *, mask_folder: Path | None = None) -> list[Row]:
        """One row per case."""
        values = self.averaged(lambda volume: network(volume).float(), batch["image"]).cpu().numpy() * self.std + self.mean
        rows = []
        for index, (case, patient) in enumerate(zip(batch["case_id"], batch["patient_id"], strict=True)):
            row: Row = {"case_id": case, "patient_id": patient}
            row |= {f"predicted/{name}": float(value) for name, value in zip(self.outputs, values[index], strict=True)}
            if "target" in batch:
                row |= {f"target/{name}": float(value) for name, value in zip(self.outputs, batch["target"][index], strict=True)}
            rows.append(row)
        return rows

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`r2`, `pearson`, `mae`, `rmse`; with several outputs each as `<name>/<output>`, and the means of the first two."""
        each = {name: [measure(*self._known(table, output)) for output in self.outputs] for name, measure in MEASURES.items()}
        comparable = MEASURES if len(self.outputs) == 1 else ("r2", "pearson")
        means = {name: mean_of_defined(np.array(each[name])) for name in comparable}
        by_output = {f"{name}/{output}": values[i] for name, values in each.items() for i, output in enumerate(self.outputs)}
        return means | (by_output if len(self.outputs) > 1 else {})

    def _known(self, table: pd.DataFrame, output: str) -> tuple[np.ndarray, np.ndarray]:
        known = table[table[f"target/{output}"].notna()]
        return known[f"target/{output}"].to_numpy(), known[f"predicted/{output}"].to_numpy()

    def support_mask(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """Cases with a known target."""
        outputs = [score.partition("/")[2]] if "/" in score else self.outputs
        return table[[f"target/{name}" for name in outputs]].notna().any(axis=1).to_numpy()

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """Predicted against true values."""
        figures = []
        for name in self.outputs:
            truth, predicted = self._known(table, name)
            if len(truth):
                figure = Figure(figsize=(5, 5), layout="constrained")
                axes = figure.add_subplot()
                PredictionErrorDisplay.from_predictions(truth, predicted, kind="actual_vs_predicted", ax=axes)
                figures.append((f"{name}: predicted and true values", figure))
        return figures
