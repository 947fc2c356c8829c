"""A whole scan -> classes or labels."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay, confusion_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.finetune.cases import UNKNOWN
from mg3d.finetune.kinds.base import Kind, Row
from mg3d.finetune.pipeline import Sample
from mg3d.metrics.bootstrap import insufficient_reason
from mg3d.metrics.calibration import brier, calibration_error
from mg3d.metrics.classification import (
    auprc,
    auroc,
    class_scores,
    count_decisions,
    decision_scores,
    mean_of_defined,
    per_label,
)
from mg3d.metrics.thresholds import choose_thresholds, decide
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
        """Targets and scores [cases, outputs] of a table; one that is scored among cases of another is UNKNOWN elsewhere."""
        targets = table[[f"target/{name}" for name in self.task.outputs]].to_numpy(copy=True)
        for name, other in self.task.among.items():
            column, condition = (self.task.outputs.index(word) for word in (name, other))
            targets[targets[:, condition] != 1, column] = UNKNOWN
        return targets, table[[f"score/{name}" for name in self.task.outputs]].to_numpy()

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`auroc`, `auprc`, `brier`, `ece`, means over outputs, the first two also as `<name>/<output>`; and decisions.

        Exclusive: `accuracy`, `balanced_accuracy`, `macro_f1`, `sensitivity/<output>` of the most probable class; `brier` and
        `ece` of all classes together. Else sensitivity, specificity, f1 and balanced_accuracy of decisions, as
        `<name>@<threshold>/<output>`: at 0.5, and at the threshold of largest sensitivity + specificity on `dev` (`@dev`).
        """
        targets, scores = self.matrices(table)
        each = {"auroc": per_label(auroc, targets, scores), "auprc": per_label(auprc, targets, scores)}
        found = {name: mean_of_defined(values) for name, values in each.items()}
        if self.task.exclusive:
            classes = targets.argmax(1)
            found |= {"brier": brier(classes, scores), "ece": calibration_error(classes, scores)}
            decided = class_scores(classes, scores)
            found |= {name: decided[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")}
            each["sensitivity"] = decided["sensitivity"]
        else:
            found["brier"] = mean_of_defined(per_label(brier, targets, scores))
            found["ece"] = mean_of_defined(per_label(calibration_error, targets, scores))
            each |= self._decisions(targets, scores, np.full(len(self.task.outputs), 0.5), "0.5")
            if dev is not None:
                each |= self._decisions(targets, scores, self.thresholds(dev), "dev")
        named = {f"{name}/{output}": values[at] for name, values in each.items() for at, output in enumerate(self.task.outputs)}
        return found | {name: float(value) for name, value in named.items()}

    def rests_on(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """Cases whose target is known; of a sensitivity the positive ones, of a specificity the negative ones."""
        targets, (measure, _, output) = self.matrices(table)[0], score.partition("/")
        asked = targets[:, self.task.outputs.index(output)][:, None] if output else targets
        side = {"sensitivity": 1, "specificity": 0}.get(measure.partition("@")[0].removeprefix("macro_"))
        return (asked != UNKNOWN if side is None else asked == side).any(1)

    def lacks(self, table: pd.DataFrame, score: str) -> str:
        """For what ranks or counts positives and negatives; those of `accuracy`, `brier` and `ece` are of all cases."""
        targets, (measure, _, output) = self.matrices(table)[0], score.partition("/")
        measure = measure.partition("@")[0].removeprefix("macro_")
        needed = {"sensitivity": (1,), "specificity": (0,), "auroc": (1, 0), "auprc": (1, 0), "f1": (1,)}.get(measure)
        if needed is None:
            return ""
        asked = targets[:, self.task.outputs.index(output)] if output else targets
        return insufficient_reason(asked, table["patient_id"].to_numpy(), classes=needed)

    def thresholds(self, dev: pd.DataFrame) -> np.ndarray:
        """[outputs]: those that `rule` chooses on `dev`; nan where it has one class. Kept for the next draw."""
        if self._chosen is None or self._chosen[0] is not dev:
            self._chosen = (dev, choose_thresholds(*self.matrices(dev), rule=self.rule))
        return self._chosen[1]

    rule = "youden"
    """One of `mg3d.metrics.thresholds.RULES`."""
    _chosen: tuple[pd.DataFrame, np.ndarray] | None = None

    @staticmethod
    def _decisions(targets: np.ndarray, scores: np.ndarray, thresholds: np.ndarray, word: str) -> dict[str, np.ndarray]:
        found = decision_scores(count_decisions(targets, decide(scores, thresholds)))
        return {f"{name}@{word}": found[name] for name in ("sensitivity", "specificity", "f1", "balanced_accuracy")}

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """ROC and precision-recall curves, and the confusion matrix of exclusive classes."""
        targets, scores = self.matrices(table)
        found = []
        for title, display in (("ROC curves", RocCurveDisplay), ("Precision-recall curves", PrecisionRecallDisplay)):
            figure = Figure(figsize=(5, 5), layout="constrained")
            axes = figure.add_subplot()
            for place, name in enumerate(self.task.outputs):
                known = targets[:, place] != UNKNOWN
                if len(np.unique(targets[known, place])) == 2:
                    display.from_predictions(targets[known, place], scores[known, place], name=name, ax=axes)
            found.append((title, figure))
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
