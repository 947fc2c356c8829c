"""Decisions at a threshold and calibration: both are fitted on the card's development patients and reported on the others."""

import hashlib
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit

from mg3d.evaluation.card_result import RELIABILITY
from mg3d.evaluation.cards import Card
from mg3d.evaluation.tables import Rows, on_rows
from mg3d.evaluation.zero_shot import MEAN, ZeroShotScores
from mg3d.glossary import LABELS
from mg3d.metrics.calibration import brier, calibration_error, fit_temperature, reliability_table
from mg3d.metrics.classification import count_decisions, decision_scores
from mg3d.metrics.thresholds import choose_thresholds, decide


def development_mask(patients: np.ndarray, fraction: float) -> np.ndarray:
    """bool [n]: volumes of development patients, chosen by a hash of the id and so independent of the other data."""
    names, index = np.unique(patients, return_inverse=True)
    hashes = [int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8], "big") / 2**64 for name in names]
    return (np.array(hashes) < fraction)[index]


def decision_and_calibration_tables(card: Card, scores: ZeroShotScores) -> dict[str, Rows]:
    """F1, sensitivity and specificity by finding, calibration before and after temperature scaling, and the reliability table.

    Empty where the development or the test patients have no known label.
    """
    dev = development_mask(scores.patients, card.dev_fraction)
    labels, logits = scores.labels, scores.logits[card.wording]
    if not all((labels[part] >= 0).any() for part in (dev, ~dev)):
        return {}
    thresholds = choose_thresholds(labels[dev], logits[dev], rule=card.threshold_rule)
    known = (labels >= 0) & dev[:, None]
    temperature = fit_temperature(labels[known], logits[known])
    test = (labels[~dev], logits[~dev], scores.patients[~dev])
    volumes = f"threshold from {int(dev.sum())} volumes, tested on {int((~dev).sum())}"
    return {
        f"Decisions at the best {card.threshold_rule}, {volumes}": _decision_rows(card, *test, thresholds=thresholds),
        "Calibration, all findings": _calibration_rows(card, *test, temperature=temperature),
        RELIABILITY: _reliability_rows(card, *test, temperature=temperature),
    }


def _decision_rows(card: Card, labels: np.ndarray, logits: np.ndarray, patients: np.ndarray, *, thresholds: np.ndarray) -> Rows:
    decisions = decide(logits, thresholds)

    def cell(metric: str, columns: slice) -> dict[str, Any]:
        score = lambda label, decision: float(decision_scores(count_decisions(label, decision))[metric])  # noqa: E731
        classes = (0,) if metric == "specificity" else (1,)
        return card.bootstrap.metric(score, labels[:, columns], decisions[:, columns], patients, classes=classes)

    rows: Rows = []
    for index, name in enumerate([*LABELS, MEAN]):
        columns = slice(index, index + 1) if name != MEAN else slice(None)
        row = {"finding": name, "threshold": float(expit(thresholds[index])) if name != MEAN else ""}
        rows.append(row | {metric: cell(metric, columns) for metric in ("f1", "sensitivity", "specificity")})
    return rows


def _calibration_rows(card: Card, labels: np.ndarray, logits: np.ndarray, patients: np.ndarray, *, temperature: float) -> Rows:
    metrics = {"brier": brier, "calibration error": partial(calibration_error, bins=card.bins)}
    rows = []
    for name, t in (("uncalibrated", 1.0), ("after temperature scaling", temperature)):
        probabilities = expit(logits / t)
        row: dict[str, Any] = {"probabilities": name, "temperature": t}
        for metric, function in metrics.items():
            pooled = lambda labels, p, f=function: f(labels.ravel(), p.ravel())  # noqa: E731
            row[metric] = card.bootstrap.interval(on_rows(pooled, labels, probabilities), patients)
        rows.append(row)
    return rows


def _reliability_rows(card: Card, labels: np.ndarray, logits: np.ndarray, patients: np.ndarray, *, temperature: float) -> Rows:
    probabilities, rows = expit(logits / temperature), []
    for row in reliability_table(labels.ravel(), probabilities.ravel(), bins=card.bins):
        low = row["low"] if row["low"] > 0 else -1.0
        in_bin = (probabilities > low) & (probabilities <= row["high"]) & (labels >= 0)
        positive = np.where(in_bin, labels == 1, np.nan)
        frequency = card.bootstrap.mean(positive, patients)
        name = f"{row['low']:.2f}-{row['high']:.2f}"
        rows.append({"bin": name, "cases": row["cases"], "probability": row["probability"], "frequency": frequency})
    return rows
