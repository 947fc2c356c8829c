"""Calibration of probabilities: Brier score, reliability table, expected calibration error, temperature scaling."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from mg3d.metrics.classification import known_cases

TEMPERATURES = (0.01, 100.0)
"""Search bounds. A fit that ends at a bound has no finite optimum, for example if the logits separate the labels perfectly."""


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Brier score: mean squared error of probabilities; nan without a known case.

    Findings: labels [n] (1, 0, others unknown), probabilities [n]. Classes: labels [n] (0 to K - 1, negative = unknown),
    probabilities [n, K]; the squared errors are summed over the classes (range 0 to 2).

    Raises:
        ValueError: a probability is nan or outside [0, 1], or the shapes do not match.
    """
    labels, probabilities = _known(labels, probabilities)
    if probabilities.ndim == 1:
        errors = (probabilities - labels) ** 2
    else:
        errors = ((probabilities - (labels[:, None] == np.arange(probabilities.shape[1]))) ** 2).sum(1)
    return float(errors.mean()) if len(errors) else float("nan")


def reliability_table(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 15) -> list[dict[str, Any]]:
    """One row per non-empty bin of equal width: low, high, cases, mean probability and observed frequency.

    Findings: probability and frequency of presence. Classes: probability of the predicted class and its accuracy. A bin includes
    its upper edge; the first bin also its lower edge.

    Raises:
        ValueError: as for `brier`.
    """
    outcome, probabilities = _known(labels, probabilities)
    if probabilities.ndim == 2:
        outcome, probabilities = probabilities.argmax(1) == outcome, probabilities.max(1)
    edges = np.linspace(0, 1, bins + 1)
    bin_of_case = np.clip(np.searchsorted(edges, probabilities) - 1, 0, bins - 1)
    cases, expected, observed = (np.bincount(bin_of_case, weights, bins) for weights in (None, probabilities, outcome))
    return [
        {
            "low": float(edges[row]),
            "high": float(edges[row + 1]),
            "cases": int(cases[row]),
            "probability": float(expected[row] / cases[row]),
            "frequency": float(observed[row] / cases[row]),
        }
        for row in np.flatnonzero(cases)
    ]


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 15) -> float:
    """Expected calibration error: mean |probability - frequency| of `reliability_table` weighted by cases; nan without a case."""
    table = reliability_table(labels, probabilities, bins=bins)
    gaps = [row["cases"] * abs(row["probability"] - row["frequency"]) for row in table]
    return sum(gaps) / sum(row["cases"] for row in table) if table else float("nan")


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Temperature T that minimises the negative log-likelihood of sigmoid(logits / T), or of softmax for logits [n, K].

    labels [n] as for `brier`. Fit it on a held-out split; rankings do not change. Guo et al., On Calibration of Modern Neural
    Networks, 2017.

    Raises:
        ValueError: no label is known, or a logit is not finite.
    """
    if logits.ndim == 1:
        positive, logits = known_cases(labels, logits)
        signed = np.where(positive, logits, -logits)
        loss = lambda log_t: -log_expit(signed / np.exp(log_t)).mean()  # noqa: E731
    else:
        classes, logits = labels[labels >= 0], logits[labels >= 0]
        loss = lambda log_t: -log_softmax(logits / np.exp(log_t), 1)[np.arange(len(classes)), classes].mean()  # noqa: E731
    if len(logits) == 0 or not np.isfinite(logits).all():
        raise ValueError(
            f"{len(logits)} known cases, {np.isfinite(logits).sum()} finite logits; need at least one, all of them finite"
        )
    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-7}).x))


def _known(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Known labels (bool for a finding, index for classes) and their probabilities."""
    if probabilities.ndim == 1:
        labels, probabilities = known_cases(labels, probabilities)
    elif len(labels) != len(probabilities):
        raise ValueError(f"{len(labels)} classes and probabilities {probabilities.shape}; expected [n] and [n, classes]")
    else:
        labels, probabilities = labels[labels >= 0], probabilities[labels >= 0]
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        low, high = probabilities.min(), probabilities.max()
        raise ValueError(f"probabilities between {low} and {high}; expected 0 to 1: apply a sigmoid or softmax to logits first")
    return labels, probabilities
