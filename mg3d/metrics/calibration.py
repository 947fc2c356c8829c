"""Whether probabilities are frequencies, and the temperature that makes them so."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from mg3d.metrics.classification import known_cases

TEMPERATURES = (0.01, 100.0)
"""Bounds of the search; a temperature at one of them says that no finite one fits, as with labels that the logits separate."""


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared error of probabilities; nan without a known case.

    [n] of a finding, with labels 1, 0 and others left out; or [n, K] of classes, with labels 0 to K - 1 and those below left out:
    there it is the sum over all K, from 0 to 2.

    Raises:
        ValueError: a probability is outside [0, 1], or nan, or shapes do not fit.
    """
    if probabilities.ndim == 1:
        outcome, probabilities = _known(labels, probabilities)
        errors = (probabilities - outcome) ** 2
    else:
        classes, probabilities = _known_classes(labels, probabilities)
        errors = ((probabilities - (classes[:, None] == np.arange(probabilities.shape[1]))) ** 2).sum(1)
    return float(errors.mean()) if len(errors) else float("nan")


def reliability_table(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 15) -> list[dict[str, Any]]:
    """One row per bin of equal width that holds a case: low, high, cases, mean probability and observed frequency.

    Of findings ([n], [n]): the probability and frequency of presence. Of classes ([n], [n, K]): the probability of the chosen
    class, and how often it is right. A bin holds its upper end, the first also its lower.

    Raises:
        ValueError: as `brier`.
    """
    if probabilities.ndim == 1:
        outcome, probabilities = _known(labels, probabilities)
    else:
        classes, probabilities = _known_classes(labels, probabilities)
        outcome, probabilities = probabilities.argmax(1) == classes, probabilities.max(1)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, probabilities) - 1, 0, bins - 1)
    cases, expected, observed = (np.bincount(place, weights, bins) for weights in (None, probabilities, outcome))
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
    """Expected calibration error: |probability - frequency| of `reliability_table`, weighted by cases; nan without a case."""
    table = reliability_table(labels, probabilities, bins=bins)
    gaps = [row["cases"] * abs(row["probability"] - row["frequency"]) for row in table]
    return sum(gaps) / sum(row["cases"] for row in table) if table else float("nan")


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """T that makes sigmoid(logits / T), or softmax for logits [n, K], most likely on a held-back part; orders stay as they are.

    labels [n] as for `brier`. Guo et al., On Calibration of Modern Neural Networks, 2017. Searched between `TEMPERATURES`.

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
            f"{len(logits)} known cases, all finite: {np.isfinite(logits).all()}; a fit needs one, and finite logits"
        )
    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-7}).x))


def _known(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positive, known = known_cases(labels, probabilities)
    return positive, _in_range(known)


def _known_classes(classes: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(classes) != len(probabilities):
        raise ValueError(f"{len(classes)} classes do not fit probabilities {probabilities.shape}; give [n] and [n, classes]")
    return classes[classes >= 0], _in_range(probabilities[classes >= 0])


def _in_range(probabilities: np.ndarray) -> np.ndarray:
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        low, high = probabilities.min(), probabilities.max()
        raise ValueError(f"probabilities lie between {low} and {high}; expected 0 to 1: pass logits through a sigmoid or softmax")
    return probabilities
