"""Classification of whole scans: exclusive classes or independent labels."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.distributed import global_mean
from mg3d.finetune.cases import UNKNOWN, FinetuneCase, Split
from mg3d.finetune.data_check import InspectedFiles
from mg3d.finetune.distributed import info
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.base import LAST_EPOCH, Row, TaskType
from mg3d.finetune.transforms import Sample
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

DECISIONS = ("sensitivity", "specificity", "f1", "balanced_accuracy")


class Classifier(nn.Module):
    """Global average pooling of the encoder's last feature map, layer norm and a linear layer."""

    def __init__(self, encoder: VisionEncoder, outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.LayerNorm(encoder.channels), nn.Dropout(dropout), nn.Linear(encoder.channels, outputs))

    def forward(self, volume: Tensor) -> Tensor:
        """Logits [B, outputs] of volumes [B, 1, D, H, W]."""
        return self.head(self.encoder.encode(volume).mean(dim=(2, 3, 4)))


class Classification(TaskType):
    """Exclusive classes (cross entropy, the target is a class index) or independent labels (binary cross entropy).

    Columns: `score/<output>` in [0, 1] and, if known, `target/<output>`: 1, 0 or UNKNOWN (excluded from loss and scores).

    Args:
        exclusive: exactly one output is true.
        condition: output -> the output among whose positives alone it is scored.
        threshold_rule: how decision thresholds are chosen on validation cases, see `mg3d.metrics.thresholds.RULES`.
        class_weights: weight the loss inversely to the frequency of a class (labels: pos_weight) in training.
        focal_gamma: focal loss; 0 = cross entropy.
    """

    def __init__(
        self,
        settings: FinetuneSettings,
        *,
        exclusive: bool = False,
        condition: Mapping[str, str] | None = None,
        threshold_rule: str = "youden",
        class_weights: bool = False,
        focal_gamma: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(settings, **shared)
        self.exclusive, self.condition, self.threshold_rule = exclusive, dict(condition or {}), threshold_rule
        self.class_weights, self.focal_gamma = class_weights, focal_gamma
        self.weights: list[list[float]] = []  # of negatives and positives of each output, or of each class
        self._thresholds: tuple[pd.DataFrame, np.ndarray] | None = None

    def network(self, encoder: VisionEncoder | None) -> nn.Module:
        """A `Classifier` with one logit per output."""
        return Classifier(encoder, len(self.outputs), dropout=self.settings.dropout)

    def loss(self, network: nn.Module, batch: Sample) -> Tensor:
        """Mean cross entropy over cases, or over known labels."""
        return self.loss_of(network(batch["image"]), batch["target"])

    def setup(self, split: Split, files: InspectedFiles) -> None:
        """Class weights of the training cases, and the score that selects the best epoch."""
        if split.val and self.uses_sgd and self.settings.mode == "train" and self.settings.select == "best":
            self._choose_selection(split.val)
        if self.class_weights:
            targets = np.array([case.target for case in split.train], dtype=np.int64)
            columns = [targets[:, 0]] if self.exclusive else targets.T
            classes = range(len(self.outputs) if self.exclusive else 2)
            counts = [[max((column == value).sum(), 1) for value in classes] for column in columns]
            self.weights = [[sum(row) / (len(row) * count) for count in row] for row in counts]

    def _choose_selection(self, cases: Sequence[FinetuneCase]) -> None:
        """`metric`; where it is undefined on these cases, its mean over the outputs with both classes, or the last epoch."""
        guesses = np.random.default_rng(0).random((len(cases), len(self.outputs)))
        targets = torch.tensor([case.target for case in cases])
        names = [str(index) for index in range(len(cases))]
        table = pd.DataFrame(self.rows_of(guesses, {"case_id": names, "patient_id": names, "target": targets}))
        scores = {name: value for name, value in self.statistics(table).items() if name.partition("/")[0] not in ("brier", "ece")}
        if self.metric not in scores:
            raise ValueError(f"metric={self.metric}: expected one of {', '.join(scores)}")
        defined = [name for name in (self.metric, self.metric.partition("/")[0]) if not np.isnan(scores.get(name, np.nan))]
        self.selection = defined[0] if defined else LAST_EPOCH
        if self.selection != self.metric:
            counts = ", ".join(f"{name}: {(column == 1).sum()} positive, {(column == 0).sum()} negative"
                               for name, column in zip(self.outputs, self.matrices(table)[0].T, strict=True))  # fmt: skip
            limited = f", limited by max_cases={self.settings.max_cases}" if self.settings.max_cases else ""
            info(
                f"{self.metric} is undefined on the {len(cases)} validation cases ({counts}{limited}); "
                + (f"{self.selection} selects the best epoch" if defined else "the last epoch is used")
            )

    def loss_of(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the known labels of all ranks, for logits [B, outputs] and int64 [B, 1] (exclusive) or [B, outputs]."""
        known = target != UNKNOWN
        label = target.clamp(min=0)
        if self.exclusive:
            terms = F.cross_entropy(logits, label[:, 0], reduction="none")[:, None]
        else:
            terms = F.binary_cross_entropy_with_logits(logits, label.to(logits), reduction="none")
        if self.focal_gamma:
            terms = terms * (1 - torch.exp(-terms)) ** self.focal_gamma  # exp(-terms): probability of the true class
        weight = known.to(terms)
        if self.weights:
            weights = label.new_tensor(self.weights, dtype=terms.dtype).expand(label.shape[1], -1)
            weight = weight * weights.gather(1, label.T).T
        return global_mean((terms * weight).sum(), known)

    @torch.no_grad()
    def rows(self, network: nn.Module, batch: Sample, *, mask_folder: Path | None = None) -> list[Row]:
        """One row per case."""
        scores = self.averaged(lambda volume: self.activate(network(volume).float()), batch["image"])
        return self.rows_of(scores.cpu().numpy(), batch)

    def rows_of(self, scores: np.ndarray, batch: Sample) -> list[Row]:
        """Rows of scores [B, outputs] in [0, 1]."""
        targets = None
        if "target" in batch:
            targets = batch["target"].cpu().numpy()
            targets = np.eye(len(self.outputs), dtype=np.int64)[targets[:, 0]] if self.exclusive else targets
        rows = []
        for index, (case, patient) in enumerate(zip(batch["case_id"], batch["patient_id"], strict=True)):
            row: Row = {"case_id": case, "patient_id": patient}
            row |= {f"score/{name}": float(value) for name, value in zip(self.outputs, scores[index], strict=True)}
            if targets is not None:
                row |= {f"target/{name}": int(value) for name, value in zip(self.outputs, targets[index], strict=True)}
            rows.append(row)
        return rows

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities."""
        return logits.softmax(1) if self.exclusive else logits.sigmoid()

    def matrices(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Targets and scores [cases, outputs] of a table; UNKNOWN where the condition of an output is not met."""
        targets = table[[f"target/{name}" for name in self.outputs]].to_numpy(copy=True)
        for name, other in self.condition.items():
            targets[targets[:, self.outputs.index(other)] != 1, self.outputs.index(name)] = UNKNOWN
        return targets, table[[f"score/{name}" for name in self.outputs]].to_numpy()

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`auroc`, `auprc`, `brier`, `ece` (macro averages); the first two also as `<name>/<output>`.

        Exclusive: `accuracy`, `balanced_accuracy`, `macro_f1`, `sensitivity/<output>` and `f1/<output>` of the most probable
        class. Otherwise `<name>@0.5/<output>` and, with `dev`, `<name>@val/<output>` at thresholds chosen on validation cases;
        their macro averages are `macro_<name>@...`.
        """
        targets, scores = self.matrices(table)
        by_output = {"auroc": per_label(auroc, targets, scores), "auprc": per_label(auprc, targets, scores)}
        statistics = {name: mean_of_defined(values) for name, values in by_output.items()}
        if self.exclusive:
            classes = targets.argmax(1)
            statistics |= {"brier": brier(classes, scores), "ece": calibration_error(classes, scores)}
            decided = class_scores(classes, scores)
            statistics |= {name: decided[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")}
            by_output |= {name: decided[name] for name in ("sensitivity", "f1")}
        else:
            statistics["brier"] = mean_of_defined(per_label(brier, targets, scores))
            statistics["ece"] = mean_of_defined(per_label(calibration_error, targets, scores))
            thresholds = {"0.5": np.full(len(self.outputs), 0.5)} | ({} if dev is None else {"val": self.thresholds(dev)})
            for where, values in thresholds.items():
                decided = decision_scores(count_decisions(targets, decide(scores, values)))
                by_output |= {f"{name}@{where}": decided[name] for name in DECISIONS}
                statistics |= {f"macro_{name}@{where}": mean_of_defined(decided[name]) for name in DECISIONS}
        each = {f"{name}/{output}": values[i] for name, values in by_output.items() for i, output in enumerate(self.outputs)}
        return statistics | {name: float(value) for name, value in each.items()}

    def components(self, score: str) -> list[str]:
        """`balanced_accuracy` of exclusive classes is the mean sensitivity."""
        return super().components("sensitivity" if self.exclusive and score == "balanced_accuracy" else score)

    def support_mask(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """Cases with a known label; for a sensitivity the positive ones, for a specificity the negative ones."""
        labels, measure = self._labels(table, score)
        side = {"sensitivity": 1, "specificity": 0}.get(measure)
        return (labels != UNKNOWN if side is None else labels == side).any(1)

    def insufficient_reason(self, table: pd.DataFrame, score: str) -> str:
        """Too few positives or negatives for a score that needs them."""
        labels, measure = self._labels(table, score)
        needed = {
            "sensitivity": (1,),
            "specificity": (0,),
            "auroc": (1, 0),
            "auprc": (1, 0),
            "f1": (1,),
            "balanced_accuracy": (1,) if self.exclusive else (1, 0),
        }.get(measure)
        return insufficient_reason(labels, table["patient_id"].to_numpy(), classes=needed) if needed else ""

    def _labels(self, table: pd.DataFrame, score: str) -> tuple[np.ndarray, str]:
        """Labels [cases, 1 or outputs] that a score depends on, and the name of its measure."""
        targets, (measure, _, output) = self.matrices(table)[0], score.partition("/")
        labels = targets[:, [self.outputs.index(output)]] if output else targets
        return labels, measure.partition("@")[0].removeprefix("macro_")

    def thresholds(self, dev: pd.DataFrame) -> np.ndarray:
        """[outputs]: thresholds chosen on `dev`; nan where it has one class. Cached for the bootstrap."""
        if self._thresholds is None or self._thresholds[0] is not dev:
            self._thresholds = (dev, choose_thresholds(*self.matrices(dev), rule=self.threshold_rule))
        return self._thresholds[1]

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """ROC and precision-recall curves, one per fold, and the confusion matrix of exclusive classes."""
        targets, scores = self.matrices(table)
        folds = table["fold"].to_numpy() if "fold" in table else np.zeros(len(table), dtype=int)
        figures, curves = [], []
        for (index, name), fold in itertools.product(enumerate(self.outputs), sorted(set(folds))):
            part = (targets[:, index] != UNKNOWN) & (folds == fold)
            if len(np.unique(targets[part, index])) == 2:
                label = f"{name}, fold {fold}" if "fold" in table else name
                curves.append((label, targets[part, index], scores[part, index]))
        for title, display in (("ROC curves", RocCurveDisplay), ("Precision-recall curves", PrecisionRecallDisplay)):
            figure = Figure(figsize=(5, 5), layout="constrained")
            axes = figure.add_subplot()
            for label, target, score in curves:
                display.from_predictions(target, score, name=label, ax=axes)
            figures.append((title, figure))
        if self.exclusive:
            figure = Figure(figsize=(4, 4), layout="constrained")
            ConfusionMatrixDisplay.from_predictions(
                targets.argmax(1), scores.argmax(1), labels=range(len(self.outputs)), display_labels=self.outputs, cmap="Blues",
                colorbar=False, ax=figure.add_subplot(),
            )  # fmt: skip
            figures.append(("Confusion matrix", figure))
        return figures
