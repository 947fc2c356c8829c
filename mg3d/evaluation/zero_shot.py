"""Zero-shot findings: which of two prompts a volume is nearer to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg3d.metrics.bootstrap import bootstrap_interval
from mg3d.metrics.classification import auroc, macro_auroc


def zero_shot_scores(volumes: Tensor, prompts: Tensor, logit_scale: float) -> np.ndarray:
    """Probability [n, L] that each finding is there: softmax over (present, absent) of scale * cosine.

    volumes [n, E], prompts [L, 2, E] (present first), of length 1.
    """
    logits = logit_scale * torch.einsum("ne,lpe->nlp", volumes, prompts)
    return logits.softmax(-1)[..., 0].numpy()


def zero_shot_table(
    scores: np.ndarray, present: np.ndarray, *, visible: np.ndarray | None, patients: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per finding: prevalence, AUROC for what is present and its interval, AUROC for what is visible; [n, L] each."""
    rows = []
    for place, name in enumerate(names):
        low, high = bootstrap_interval(lambda rows, p=place: auroc(present[rows, p], scores[rows, p]), patients)
        row = {
            "finding": name,
            "prevalence": float((present[:, place] == 1).mean()),
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
