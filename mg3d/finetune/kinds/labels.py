"""A whole scan -> independent findings, with what a table of findings is usually judged by."""

import numpy as np
import pandas as pd

from mg3d.finetune.kinds.classification import Classification
from mg3d.metrics.classification import auprc, auroc, count_decisions, decision_scores, mean_of_defined, per_label
from mg3d.metrics.thresholds import choose_thresholds, decide

RULE = "corner"
"""How a threshold is chosen, as CT-CLIP does; but on validation cases."""


class Labels(Classification):
    """Findings that may be there together; see `Classification` for columns, loss and unknown labels."""

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`auroc`, `auprc` (means over findings with both classes), `auroc/<finding>`; with `dev`, scores of decisions.

        Decisions are made by one threshold per finding, the point of the ROC curve of `dev` that is nearest to (0, 1).
        """
        targets, scores = self.matrices(table)
        each = per_label(auroc, targets, scores)
        precise = np.where(np.isnan(each), np.nan, per_label(auprc, targets, scores))
        found = {"auroc": mean_of_defined(each), "auprc": mean_of_defined(precise)}
        if dev is not None:
            decided = decide(scores, choose_thresholds(*self.matrices(dev), rule=RULE))
            made = decision_scores(count_decisions(targets, decided))
            for name in ("f1", "balanced_accuracy", "accuracy", "precision", "sensitivity", "specificity"):
                found[f"macro_{name}"] = mean_of_defined(np.asarray(made[name]))
        return found | {f"auroc/{name}": float(value) for name, value in zip(self.task.outputs, each, strict=True)}
