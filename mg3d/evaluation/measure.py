"""The main numbers of a card, from embeddings and labels."""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit
from torch import Tensor

from mg3d.evaluation.cards import Card
from mg3d.evaluation.results import Rows, measured
from mg3d.evaluation.zero_shot import zero_shot_logits
from mg3d.glossary import ENSEMBLE, LABELS, prompts
from mg3d.metrics.bootstrap import insufficient_reason
from mg3d.metrics.calibration import brier, calibration_error, fit_temperature, reliability_table
from mg3d.metrics.classification import auprc, auroc, count_decisions, decision_scores, macro_auroc, mean_of_defined, per_label
from mg3d.metrics.thresholds import choose_thresholds, decide

MEAN = "mean of defined"
RELIABILITY = "Reliability after the temperature"


class Scores(NamedTuple):
    """What a model says of n volumes."""

    by_wording: dict[str, np.ndarray]
    """Logits [n, 18] that a finding is there, by prompts; `ensemble` among them."""
    labels: np.ndarray
    """int8 [n, 18]: 1, 0, -1 = not known."""
    patients: np.ndarray
    """[n]."""


def prompt_texts(wordings: tuple[str, ...]) -> list[str]:
    """Every prompt of every wording: [wording, finding, (present, absent)], flat."""
    return [text for wording in wordings for label in LABELS for text in prompts(label, wording=wording)]


def logits_by_wording(volumes: Tensor, embedded: Tensor, logit_scale: float, wordings: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Logits [n, 18] for each wording, and for the ensemble, whose prompts are the mean of those of `glossary.ENSEMBLE`.

    volumes [n, E], embedded prompts [wordings, 18, 2, E], of length 1.
    """
    by_wording = dict(zip(wordings, embedded, strict=True))
    members = [by_wording[name] for name in ENSEMBLE if name in by_wording]
    if members:
        mean = sum(members)
        by_wording["ensemble"] = mean / mean.norm(dim=-1, keepdim=True)
    return {name: zero_shot_logits(volumes, pair, logit_scale) for name, pair in by_wording.items()}


def dev_part(patients: np.ndarray, share: float) -> np.ndarray:
    """bool [n]: volumes of the patients by whom thresholds and temperature are chosen; the same patients on every machine."""
    names, which = np.unique(patients, return_inverse=True)
    numbers = [int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8], "big") / 2**64 for name in names]
    return (np.array(numbers) < share)[which]


def zero_shot_tables(card: Card, scores: Scores) -> dict[str, Rows]:
    """Ranking, decisions, calibration and the spread over prompts, each with intervals over patients."""
    return {
        "Zero-shot findings": finding_rows(card, scores),
        "Zero-shot by prompts": wording_rows(card, scores),
        **decided_tables(card, scores),
    }


def finding_rows(card: Card, scores: Scores) -> Rows:
    """A row per finding and their mean: cases, prevalence, AUROC, AUPRC, and the least and greatest AUROC over the wordings."""
    labels, main = scores.labels, scores.by_wording[card.wording]
    spread = np.array([per_label(auroc, labels, scores.by_wording[name]) for name in card.wordings])
    known, settings = labels >= 0, _settings(card)
    rows = []
    for place, name in enumerate(LABELS):
        label, score = labels[:, place], main[:, place]
        lacking = insufficient_reason(label, scores.patients)
        rows.append(
            {
                "finding": name,
                "cases": int(known[:, place].sum()),
                "prevalence": mean_of_defined(np.where(known[:, place], label == 1, np.nan)),
                "auroc": measured(lambda r, a=label, s=score: auroc(a[r], s[r]), scores.patients, **settings, lacking=lacking),
                "auprc": measured(lambda r, a=label, s=score: auprc(a[r], s[r]), scores.patients, **settings, lacking=lacking),
                "auroc over prompts": _range(spread[:, place]),
            }
        )
    mean_auprc = lambda r: mean_of_defined(per_label(auprc, labels[r], main[r]))  # noqa: E731
    lacking = insufficient_reason(labels, scores.patients)
    mean = {
        "finding": MEAN,
        "cases": len(labels),
        "prevalence": mean_of_defined(np.array([row["prevalence"] for row in rows])),
        "auroc": measured(lambda r: macro_auroc(labels[r], main[r]), scores.patients, **settings, lacking=lacking),
        "auprc": measured(mean_auprc, scores.patients, **settings, lacking=lacking),
        "auroc over prompts": _range(np.array([mean_of_defined(row) for row in spread])),
    }
    return [*rows, mean]


def wording_rows(card: Card, scores: Scores) -> Rows:
    """Mean AUROC by wording; the last row is the spread over the single wordings: their mean and standard deviation."""
    rows, settings = [], _settings(card) | {"lacking": insufficient_reason(scores.labels, scores.patients)}
    for name, logits in scores.by_wording.items():
        cell = measured(lambda r, s=logits: macro_auroc(scores.labels[r], s[r]), scores.patients, **settings)
        rows.append({"prompts": name + (" (main)" if name == card.wording else ""), "auroc": cell})
    values = np.array([macro_auroc(scores.labels, scores.by_wording[name]) for name in card.wordings])
    told = f"{values.mean():.3f} ± {values.std():.3f}, {_range(values)}"
    return [*rows, {"prompts": f"over {len(values)} wordings", "auroc": told}]


def decided_tables(card: Card, scores: Scores) -> dict[str, Rows]:
    """What needs a part to choose on: thresholds by finding, and one temperature for all; told of the other patients.

    Nothing where either part has no known case.
    """
    dev = dev_part(scores.patients, card.dev_share)
    labels, logits = scores.labels, scores.by_wording[card.wording]
    if not all((labels[part] >= 0).any() for part in (dev, ~dev)):
        return {}
    thresholds = choose_thresholds(labels[dev], logits[dev], rule=card.threshold_rule)
    rest, patients, settings = labels[~dev], scores.patients[~dev], _settings(card)
    decided = decide(logits[~dev], thresholds)

    def value(name: str, columns: slice) -> dict[str, Any]:
        return measured(
            lambda r: mean_of_defined(decision_scores(count_decisions(rest[r, columns], decided[r, columns]))[name]),
            patients,
            **settings,
            lacking=insufficient_reason(rest[:, columns], patients, classes=(0,) if name == "specificity" else (1,)),
        )

    names = ("f1", "sensitivity", "specificity")
    rows = [
        {"finding": label, "threshold": float(expit(thresholds[p])), **{name: value(name, slice(p, p + 1)) for name in names}}
        for p, label in enumerate(LABELS)
    ]
    rows.append({"finding": MEAN, "threshold": "", **{name: value(name, slice(None)) for name in names}})
    told = f"{card.threshold_rule} on {int(dev.sum())} volumes, told of the other {int((~dev).sum())}"
    known = (labels >= 0) & dev[:, None]
    temperature = fit_temperature(labels[known], logits[known])
    return {
        f"Decisions at the threshold of best {told}": rows,
        **_calibration(card, rest, logits[~dev], patients, temperature),
    }


def _calibration(card: Card, labels: np.ndarray, logits: np.ndarray, patients: np.ndarray, temperature: float) -> dict[str, Rows]:
    error = partial(calibration_error, bins=card.bins)
    before, after = expit(logits), expit(logits / temperature)
    rows = []
    for name, t, chances in (("as the model gives it", 1.0, before), ("from the dev part", temperature, after)):
        errors: Mapping[str, dict[str, float]] = {
            what: measured(lambda r, m=metric, p=chances: m(labels[r].ravel(), p[r].ravel()), patients, **_settings(card))
            for what, metric in (("brier", brier), ("calibration error", error))
        }
        rows.append({"probabilities": name, "temperature": t, **errors})
    reliable = []
    for row in reliability_table(labels.ravel(), after.ravel(), bins=card.bins):
        low = row["low"] if row["low"] > 0 else -1.0
        here = np.where((after > low) & (after <= row["high"]) & (labels >= 0), labels == 1, np.nan)
        frequency = measured(lambda r, h=here: mean_of_defined(h[r].ravel()), patients, **_settings(card))
        shares = {"probability": row["probability"], "frequency": frequency}
        reliable.append({"bin": f"{row['low']:.2f}-{row['high']:.2f}", "cases": row["cases"], **shares})
    return {"Calibration, all findings": rows, RELIABILITY: reliable}


def _settings(card: Card) -> dict[str, Any]:
    return {"n_bootstrap": card.n_bootstrap, "seed": card.seed}


def _range(values: np.ndarray) -> str:
    defined = values[~np.isnan(values)]
    return f"{defined.min():.3f} to {defined.max():.3f}" if len(defined) else "-"
