"""A report -> findings: TF-IDF of words and word pairs, clause by clause, and one logistic regression per finding."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from sklearn.preprocessing import normalize
from torch import nn
from torch.utils.data import Dataset

from mg3d.finetune.cases import Case, Parts
from mg3d.finetune.kinds.base import Row
from mg3d.finetune.kinds.labels import Labels
from mg3d.finetune.kinds.probe import fit_planes, set_values
from mg3d.finetune.pipeline import CaseDataset, Sample
from mg3d.metrics.classification import auroc, mean_of_defined, per_label
from mg3d.metrics.thresholds import choose_thresholds
from mg3d.models.vision.registry import VisionEncoder
from mg3d.sentence_spans import normalize_text, polarity, split_clauses

MOST_TERMS = 20_000
FEWEST_REPORTS = 2
"""In how many training reports a term must stand."""
STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse penalties that are tried; the best on the validation reports is taken."""
_WORD = re.compile(r"[a-z]+|#")


def terms(report: str) -> list[str]:
    """Words and pairs of neighbouring words of every clause; those of a clause that denies carry a mark."""
    found = []
    for start, end in split_clauses(report):
        clause = report[start:end]
        mark = "-" if polarity(clause) < 0 else ""
        words = _WORD.findall(normalize_text(clause))
        found += [mark + word for word in words] + [f"{mark}{one} {two}" for one, two in pairwise(words)]
    return found


class TextPlanes(nn.Module):
    """Weights of the terms and one plane per finding.

    Args:
        count: terms.
        outputs: findings.
    """

    def __init__(self, count: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("idf", torch.ones(count, dtype=torch.float64))
        self.register_buffer("thresholds", torch.full((outputs,), 0.5, dtype=torch.float64))
        self.head = nn.Linear(count, outputs, dtype=torch.float64)

    def scores(self, counts: csr_matrix) -> np.ndarray:
        """Probabilities float64 [n, outputs] of counts of terms [n, terms]."""
        weights, offsets = (part.detach().cpu().numpy() for part in (self.head.weight, self.head.bias))
        return 1 / (1 + np.exp(-(weighted(counts, self.idf.cpu().numpy()) @ weights.T + offsets)))

    def place(self, weights: np.ndarray, offsets: np.ndarray) -> None:
        """Takes the planes of `fit_planes`."""
        set_values(self.head.weight, weights)
        set_values(self.head.bias, offsets)


def counted(reports: Sequence[str], place_of: Mapping[str, int]) -> csr_matrix:
    """How often each known term stands in each report, [n, terms]."""
    rows = [Counter(place_of[term] for term in terms(report) if term in place_of) for report in reports]
    starts = np.cumsum([0, *(len(row) for row in rows)])
    places = np.array([place for row in rows for place in row], dtype=np.int64)
    values = np.array([value for row in rows for value in row.values()], dtype=np.float64)
    return csr_matrix((values, places, starts), shape=(len(rows), len(place_of)))


def weighted(counts: csr_matrix, idf: np.ndarray) -> csr_matrix:
    """TF-IDF with logarithmic counts, rows of length 1."""
    counts = counts.copy()
    counts.data = 1 + np.log(counts.data)
    return normalize(counts @ diags(idf))


class Labeller(Labels):
    """Labels of reports; decisions of `mg3d.finetune.labeller` are made by the thresholds that have the best F1 in val."""

    by_steps = False
    rule = "f1"

    def check(self, cases: Sequence[Case]) -> None:
        """Refuses reports without any known label: there would be nothing to learn."""
        if not any(label >= 0 for case in cases for label in case.target):
            raise ValueError("no report has a known label; the labeller learns from CT-RATE's tables of labels")

    def fit(self, cases: Sequence[Case]) -> None:
        """Takes the terms from the training reports, the most frequent ones."""
        frequent = Counter(term for case in cases for term in set(terms(case.report)))
        kept = sorted(frequent, key=lambda term: (-frequent[term], term))[:MOST_TERMS]
        self.words = [term for term in kept if frequent[term] >= FEWEST_REPORTS]
        if not self.words:
            raise ValueError(f"no term stands in {FEWEST_REPORTS} of the {len(cases)} training reports; more reports are needed")

    def state(self) -> dict[str, Any]:
        """The terms."""
        return {"terms": self.words}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The opposite of `state`."""
        self.words = list(state["terms"])

    @property
    def place_of(self) -> dict[str, int]:
        """Term -> column."""
        return {term: place for place, term in enumerate(self.words)}

    def network(self, encoder: VisionEncoder) -> nn.Module:
        """`TextPlanes`; the image encoder has no part in it."""
        return TextPlanes(len(self.words), len(self.task.outputs))

    def fixed(self, *, masks: bool) -> Callable[[Case], Sample]:
        """A report, and its labels."""
        return _sample

    def evaluation_data(self, cases: Sequence[Case]) -> Dataset:
        """One sample per report."""
        return CaseDataset(cases, self.fixed(masks=False))

    def settle(self, network: TextPlanes, parts: Parts, *, folder: Path, say: Callable[[str], None]) -> None:
        """Fits the planes; a finding of one class alone in train gets a score of 0.5 everywhere."""
        counts, wanted = self._data(parts.train)
        val_counts, val_wanted = self._data(parts.val)
        idf = np.log((1 + counts.shape[0]) / (1 + np.diff(counts.tocsc().indptr))) + 1
        inputs, best = weighted(counts, idf), (-1.0, 0.0, None)
        set_values(network.idf, idf)
        for strength in STRENGTHS:
            planes = fit_planes(inputs, wanted, strength, solver="liblinear")
            network.place(*planes)
            score = float(np.nan_to_num(mean_of_defined(per_label(auroc, val_wanted, network.scores(val_counts)))))
            best = max(best, (score, strength, planes), key=lambda found: found[0])
        score, chosen, planes = best
        network.place(*planes)
        thresholds = choose_thresholds(val_wanted, network.scores(val_counts), rule=self.rule)
        set_values(network.thresholds, np.nan_to_num(thresholds, nan=0.5))
        say(f"labeller: {len(self.words)} terms, C={chosen} has the best macro AUROC in val, {score:.3f}")

    def _data(self, cases: Sequence[Case]) -> tuple[csr_matrix, np.ndarray]:
        return counted([case.report for case in cases], self.place_of), np.array([case.target for case in cases])

    def rows(self, network: TextPlanes, batch: Sample, *, masks: Path | None = None) -> list[Row]:
        """One row per report."""
        return self.rows_of(network.scores(counted(batch["text"], self.place_of)), batch)


def _sample(case: Case) -> Sample:
    if not case.report:
        raise ValueError(f"{case.case_id} has no report; texts are labelled by mg3d.finetune.labeller.load_labeller(...).labels")
    names = {"case_id": case.case_id, "patient_id": case.patient_id}
    return names | {"text": case.report, "target": torch.tensor(case.target)}
