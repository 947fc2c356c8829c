"""A whole scan -> classes or labels."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import RocCurveDisplay, confusion_matrix, f1_score
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.finetune.cases import UNKNOWN
from mg3d.finetune.kinds.base import Kind, Row
from mg3d.finetune.pipeline import Sample
from mg3d.metrics.classification import auroc
from mg3d.models.vision.registry import VisionEncoder


class Classifier(nn.Module):
    """The mean of an encoder's last map, a layer norm, a linear layer.

    Args:
        encoder: of volumes [B, 1, D, H, W].
        outputs: numbers per volume.
        dropout: share of features hidden before the linear layer in training.
    """

    def __init__(self, encoder: VisionEncoder, outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.LayerNorm(encoder.channels), nn.Dropout(dropout), nn.Linear(encoder.channels, outputs))

    def forward(self, volume: Tensor) -> Tensor:
        """[B, outputs] logits."""
        return self.head(self.encoder.encode(volume).mean(dim=(2, 3, 4)))


class Classification(Kind):
    """Exclusive classes (cross entropy, targets are one class index) or independent labels (binary cross entropy).

    A label that is `UNKNOWN` has no part in loss and scores. Columns: `score/<output>` in [0, 1], and `target/<output>` 1, 0 or
    UNKNOWN where the truth is known.
    """

    def network(self, encoder: VisionEncoder) -> nn.Module:
        """A `Classifier` with one logit per output."""
        return Classifier(encoder, len(self.task.outputs), dropout=self.settings.dropout)

    def loss(self, network: nn.Module, batch: Sample) -> Tensor:
        """Cross entropy, the mean over cases or over known labels."""
        return self.loss_of(network(batch["image"]), batch["target"])

    def loss_of(self, logits: Tensor, target: Tensor) -> Tensor:
        """Of logits [B, outputs] and targets int64 [B, 1] (exclusive) or [B, outputs]."""
        if self.task.exclusive:
            return F.cross_entropy(logits, target[:, 0])
        known = target != UNKNOWN
        terms = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0).to(logits), reduction="none")
        return (terms * known).sum() / known.sum().clamp(min=1)

    @torch.no_grad()
    def rows(self, network: nn.Module, batch: Sample, *, masks: Path | None = None) -> list[Row]:
        """One row per case."""
        scores = self.mirrored(lambda volume: self.activate(network(volume)), batch["image"]).float().cpu().numpy()
        return self.rows_of(scores, batch)

    def rows_of(self, scores: np.ndarray, batch: Sample) -> list[Row]:
        """One row per case, of scores [B, outputs] in [0, 1]."""
        targets = self._targets(batch["target"].cpu().numpy()) if "target" in batch else None
        rows = []
        for place, (case, patient) in enumerate(zip(batch["case_id"], batch["patient_id"], strict=True)):
            row: Row = {"case_id": case, "patient_id": patient}
            row |= {f"score/{name}": float(value) for name, value in zip(self.task.outputs, scores[place], strict=True)}
            if targets is not None:
                row |= {f"target/{name}": int(value) for name, value in zip(self.task.outputs, targets[place], strict=True)}
            rows.append(row)
        return rows

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities."""
        return logits.softmax(1) if self.task.exclusive else logits.sigmoid()

    def _targets(self, target: np.ndarray) -> np.ndarray:
        return np.eye(len(self.task.outputs), dtype=np.int64)[target[:, 0]] if self.task.exclusive else target

    def matrices(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Targets and scores [cases, outputs] of a table."""
        targets = table[[f"target/{name}" for name in self.task.outputs]].to_numpy()
        return targets, table[[f"score/{name}" for name in self.task.outputs]].to_numpy()

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`auroc/<output>`, `auroc` (their mean); exclusive: `accuracy`, `macro_f1`."""
        targets, scores = self.matrices(table)
        each = {name: auroc(targets[:, place], scores[:, place]) for place, name in enumerate(self.task.outputs)}
        defined = [value for value in each.values() if not np.isnan(value)]
        found = {"auroc": float(np.mean(defined)) if defined else float("nan")}
        if self.task.exclusive:
            truth, said = targets.argmax(1), scores.argmax(1)
            found["accuracy"] = float((truth == said).mean())
            found["macro_f1"] = float(f1_score(truth, said, average="macro", labels=np.unique(truth), zero_division=0.0))
        return found | {f"auroc/{name}": value for name, value in each.items()}

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """ROC curves, and the confusion matrix of exclusive classes."""
        targets, scores = self.matrices(table)
        roc = Figure(figsize=(5, 5), layout="constrained")
        axes = roc.add_subplot()
        for place, name in enumerate(self.task.outputs):
            known = targets[:, place] != UNKNOWN
            if len(np.unique(targets[known, place])) == 2:
                RocCurveDisplay.from_predictions(targets[known, place], scores[known, place], name=name, ax=axes)
        found = [("ROC curves", roc)]
        if self.task.exclusive:
            found.append(("Confusion", _confusion_figure(targets.argmax(1), scores.argmax(1), self.task.outputs)))
        return found


def _confusion_figure(truth: np.ndarray, said: np.ndarray, names: tuple[str, ...]) -> Figure:
    counts = confusion_matrix(truth, said, labels=range(len(names)))
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(counts, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, str(count), ha="center", va="center")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure
