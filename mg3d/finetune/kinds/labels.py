"""A whole scan -> independent findings, with what a table of findings is usually judged by."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from mg3d.finetune.cases import Case, RawScan
from mg3d.finetune.kinds.classification import Classification
from mg3d.finetune.pipeline import Sample
from mg3d.metrics.classification import auprc, auroc, count_decisions, decision_scores, mean_of_defined, per_label
from mg3d.metrics.thresholds import decide


class Labels(Classification):
    """Findings that may be there together; see `Classification` for columns, loss and unknown labels."""

    rule = "corner"  # as CT-CLIP does, but on validation cases

    def fixed(self, *, masks: bool) -> Callable[[Case], Sample]:
        """As of any kind; a scan's own file is prepared first, as the stored volumes were."""
        return partial(_prepared_first, read=super().fixed(masks=masks), shape=self.task.preprocess.size)

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`auroc`, `auprc` (means over findings with both classes), `auroc/<finding>`; with `dev`, scores of decisions.

        Decisions are made by one threshold per finding, which `rule` chooses on `dev`.
        """
        targets, scores = self.matrices(table)
        each = per_label(auroc, targets, scores)
        precise = np.where(np.isnan(each), np.nan, per_label(auprc, targets, scores))
        found = {"auroc": mean_of_defined(each), "auprc": mean_of_defined(precise)}
        if dev is not None:
            made = decision_scores(count_decisions(targets, decide(scores, self.thresholds(dev))))
            for name in ("f1", "balanced_accuracy", "accuracy", "precision", "sensitivity", "specificity"):
                found[f"macro_{name}"] = mean_of_defined(np.asarray(made[name]))
        return found | {f"auroc/{name}": float(value) for name, value in zip(self.task.outputs, each, strict=True)}


def _prepared_first(case: Case, *, read: Callable[[Case], Sample], shape: tuple[int, int, int]) -> Sample:
    return read(dataclasses.replace(case, image=RawScan(case.image, shape)) if isinstance(case.image, Path) else case)
