"""Zero-shot classification: compare each volume with a prompt that states a finding and one that denies it."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from mg3d.evaluation.cards import Card
from mg3d.evaluation.encoder import Encoder, as_sentence
from mg3d.evaluation.tables import Bootstrap, Rows
from mg3d.glossary import ENSEMBLE, LABELS, prompts
from mg3d.metrics.bootstrap import UNDEFINED
from mg3d.metrics.classification import auprc, auroc, mean_of_defined, per_label

MEAN = "mean over findings"
"""Name of the last row of tables by finding. The mean excludes undefined values."""
Metric = Callable[[np.ndarray, np.ndarray], float]
METRICS = MappingProxyType({"auroc": auroc, "auprc": auprc})


class ZeroShotScores(NamedTuple):
    """Zero-shot scores and labels of n volumes."""

    logits: dict[str, np.ndarray]
    """[n, 18] by prompt wording, `ensemble` among them."""
    labels: np.ndarray
    """int8 [n, 18]: 1 present, 0 absent, -1 unknown."""
    patients: np.ndarray
    """[n]."""


def zero_shot_scores(volumes: Tensor, prompts: Tensor, logit_scale: float) -> np.ndarray:
    """Probability [n, L] of each finding: softmax of scale * cosine over (present, absent).

    volumes [n, E] and prompts [L, 2, E] (present first) of unit length. Computed in float64, because at a trained scale float32
    rounds clear cases to 1 and ties them.
    """
    return expit(zero_shot_logits(volumes, prompts, logit_scale))


def zero_shot_logits(volumes: Tensor, prompts: Tensor, logit_scale: float) -> np.ndarray:
    """Logits [n, L] of `zero_shot_scores`: scale * (cosine with present - cosine with absent)."""
    present, absent = prompts.double().unbind(1)
    return (logit_scale * volumes.double() @ (present - absent).T).numpy()


def embed_prompts(encoder: Encoder, wording: str = "there_is") -> Tensor:
    """Embedded prompts [18, 2, E] of a wording, present first."""
    texts = [as_sentence(text) for label in LABELS for text in prompts(label, wording=wording)]
    return encoder.embed_texts(texts).unflatten(0, (len(LABELS), 2))


def embed_wordings(encoder: Encoder, wordings: Sequence[str]) -> dict[str, Tensor]:
    """Embedded prompts [18, 2, E] by wording; `ensemble` is the mean over `glossary.ENSEMBLE`."""
    by_wording = {wording: embed_prompts(encoder, wording) for wording in wordings}
    members = [by_wording[name] for name in ENSEMBLE if name in by_wording]
    return by_wording | ({"ensemble": F.normalize(sum(members), dim=-1)} if members else {})


def classification_rows(
    labels: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    bootstrap: Bootstrap,
    *,
    metrics: Mapping[str, Metric] = METRICS,
) -> Rows:
    """One row per finding and their mean: number of labelled cases, prevalence and metrics; labels and scores [n, 18]."""
    rows = []
    for index, name in enumerate(LABELS):
        label, score = labels[:, index], scores[:, index]
        known = label >= 0
        row = {"finding": name, "cases": int(known.sum()), "prevalence": mean_of_defined(np.where(known, label == 1, np.nan))}
        for metric, function in metrics.items():
            row[metric] = bootstrap.metric(function, label, score, patients)
        rows.append(row)
    prevalence = mean_of_defined(np.array([row["prevalence"] for row in rows]))
    mean = {"finding": MEAN, "cases": len(labels), "prevalence": prevalence}
    for metric, function in metrics.items():
        mean[metric] = bootstrap.metric(function, labels, scores, patients)
    return [*rows, mean]


def zero_shot_tables(card: Card, scores: ZeroShotScores) -> dict[str, Rows]:
    """Classification by finding with the card's main wording, and mean AUROC by wording."""
    labels, patients = scores.labels, scores.patients
    rows = classification_rows(labels, scores.logits[card.wording], patients, card.bootstrap)
    by_wording = np.array([per_label(auroc, labels, scores.logits[name]) for name in card.wordings])
    means = np.array([mean_of_defined(row) for row in by_wording])
    for row, values in zip(rows, [*by_wording.T, means], strict=True):
        row["auroc over prompts"] = _range(values)
    wording_rows = [
        {
            "prompts": name + (" (main)" if name == card.wording else ""),
            "auroc": card.bootstrap.metric(auroc, labels, logits, patients),
        }
        for name, logits in scores.logits.items()
    ]
    spread = f"{means.mean():.3f} ± {means.std():.3f}, {_range(means)}"
    wording_rows.append({"prompts": f"mean ± SD over {len(means)} wordings", "auroc": spread})
    return {"Zero-shot findings": rows, "Zero-shot by prompts": wording_rows}


def _range(values: np.ndarray) -> str:
    defined = values[~np.isnan(values)]
    return f"{defined.min():.3f} to {defined.max():.3f}" if len(defined) else UNDEFINED
