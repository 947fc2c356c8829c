"""Zero-shot findings: which of two prompts a volume is nearer to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from torch import Tensor

from mg3d.metrics.bootstrap import bootstrap_interval, insufficient_reason
from mg3d.metrics.classification import auroc, macro_auroc


def zero_shot_scores(volumes: Tensor, prompts: Tensor, logit_scale: float) -> np.ndarray:
    """Probability [n, L] that each finding is there: softmax over (present, absent) of scale * cosine.

    volumes [n, E], prompts [L, 2, E] (present first), of length 1. float64: at a trained scale, single precision rounds clear
    cases to 1 and ties them.
    """
    return expit(zero_shot_logits(volumes, prompts, logit_scale))


def zero_shot_logits(volumes: Tensor, prompts: Tensor, logit_scale: float) -> np.ndarray:
    """Logits [n, L] of the probabilities of `zero_shot_scores`: scale * (cosine with present - cosine with absent)."""
    present, absent = prompts.double().unbind(1)
    return (logit_scale * volumes.double() @ (present - absent).T).numpy()


def zero_shot_table(
    scores: np.ndarray, present: np.ndarray, *, visible: np.ndarray | None, patients: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per finding: prevalence, AUROC for what is present and its interval, AUROC for what is visible; [n, L] each.

    present and visible: 1, 0, -1 = not known; the prevalence is among the known.
    Of too few positives or negatives (`insufficient_reason`) the interval is nan.
    """
    rows = []
    for place, name in enumerate(names):
        known = present[present[:, place] >= 0, place]
        low, high = np.nan, np.nan
        if not insufficient_reason(present[:, place], patients):
            low, high = bootstrap_interval(lambda rows, p=place: auroc(present[rows, p], scores[rows, p]), patients)
        row = {
            "finding": name,
            "prevalence": float(known.mean()) if len(known) else float("nan"),
            "auroc": auroc(present[:, place], scores[:, place]),
            "low": low,
            "high": high,
        }
        if visible is not None:
            row["auroc_visible"] = auroc(visible[:, place], scores[:, place])
        rows.append(row)
    return rows


def macro_interval(scores: np.ndarray, present: np.ndarray, *, of: Sequence[int], patients: np.ndarray) -> tuple[float, float]:
    """Interval of the macro AUROC over the columns `of`."""
    return bootstrap_interval(lambda rows: macro_auroc(present[rows], scores[rows], of=of), patients)
