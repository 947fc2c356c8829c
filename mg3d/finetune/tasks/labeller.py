"""Labels of reports from TF-IDF features and one logistic regression per label. No image is read."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

from mg3d.evaluation.baselines import fit_best_logistic
from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.data_check import InspectedFiles
from mg3d.finetune.distributed import info
from mg3d.finetune.tasks.base import Row
from mg3d.finetune.tasks.classification import Classification
from mg3d.finetune.transforms import Sample
from mg3d.metrics.thresholds import choose_thresholds, decide
from mg3d.models.vision.registry import VisionEncoder
from mg3d.polarity import NEGATED, span_polarities
from mg3d.sentence_spans import normalize_text, split_clauses

MAX_TERMS = 20_000
MIN_REPORTS = 2
"""Number of training reports that a term must occur in."""
INVERSE_PENALTIES = (1.0, 10.0, 100.0)
"""Values of C; the one with the best macro AUROC on the validation reports is used."""
_WORD = re.compile(r"[a-z]+|#")


def terms(report: str) -> list[str]:
    """Words and word pairs of every clause; those of a negated clause start with `-`."""
    tokens, spans = [], split_clauses(report)
    for (start, end), polarity in zip(spans, span_polarities(report, spans)):
        mark = "-" if polarity == NEGATED else ""
        words = _WORD.findall(normalize_text(report[start:end]))
        tokens += [mark + word for word in words] + [f"{mark}{one} {two}" for one, two in pairwise(words)]
    return tokens


class ReportClassifier(nn.Module):
    """TF-IDF features (scikit-learn) and a linear layer.

    Args:
        vocabulary: terms, in the order of the features.
        outputs: number of labels.
    """

    def __init__(self, vocabulary: Sequence[str], outputs: int) -> None:
        super().__init__()
        self.vectorizer = TfidfVectorizer(analyzer=terms, sublinear_tf=True, vocabulary=list(vocabulary))
        self.register_buffer("idf", torch.ones(len(vocabulary), dtype=torch.float64))
        self.register_buffer("thresholds", torch.full((outputs,), 0.5, dtype=torch.float64))
        self.head = nn.Linear(len(vocabulary), outputs, dtype=torch.float64)

    def scores(self, reports: Sequence[str]) -> np.ndarray:
        """Probabilities float64 [reports, outputs]."""
        self.vectorizer.idf_ = self.idf.cpu().numpy()
        weights, bias = (part.detach().cpu().numpy() for part in (self.head.weight, self.head.bias))
        return 1 / (1 + np.exp(-(self.vectorizer.transform(reports) @ weights.T + bias)))

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [reports, outputs]: 1 present, 0 absent, at the thresholds with the best F1 on validation reports."""
        return decide(self.scores(reports), self.thresholds.cpu().numpy())


class ReportLabeller(Classification):
    """Findings of a report, trained on labelled reports."""

    uses_sgd = False
    uses_encoder = False
    eval_batch_size = 64

    def setup(self, split: Split, files: InspectedFiles) -> None:
        """Some label must be known; the vocabulary is the most frequent terms of the training reports."""
        if not any(label >= 0 for part in split for case in part for label in case.target):
            raise ValueError("no report has a known label; the labeller is trained on CT-RATE's tables of labels")
        reports = [case.report for case in split.train]
        vectorizer = TfidfVectorizer(analyzer=terms, min_df=min(MIN_REPORTS, len(reports)), max_features=MAX_TERMS)
        try:
            self.vocabulary = vectorizer.fit(reports).get_feature_names_out().tolist()
        except ValueError:
            raise ValueError(f"no term occurs in {MIN_REPORTS} of the {len(reports)} training reports; use more") from None

    def state(self) -> dict[str, Any]:
        """The terms."""
        return {"terms": self.vocabulary}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The terms."""
        self.vocabulary = list(state["terms"])

    def network(self, encoder: VisionEncoder | None) -> nn.Module:
        """A `ReportClassifier`."""
        return ReportClassifier(self.vocabulary, len(self.outputs))

    def read(self, *, with_masks: bool) -> Callable[[FinetuneCase], Sample]:
        """A report and its labels."""
        return _sample

    def rows(self, network: ReportClassifier, batch: Sample, *, mask_folder: Path | None = None) -> list[Row]:
        """One row per report."""
        return self.rows_of(network.scores(batch["report"]), batch)

    def fit_closed_form(self, network: ReportClassifier, split: Split, folder: Path) -> None:
        """Fits the linear layer and the thresholds; a label with one class in training gets a score of 0.5."""
        reports, val_reports = ([case.report for case in part] for part in (split.train, split.val))
        targets, val_targets = (np.array([case.target for case in part]) for part in (split.train, split.val))
        vectorizer = TfidfVectorizer(analyzer=terms, sublinear_tf=True, vocabulary=self.vocabulary)
        train = (vectorizer.fit_transform(reports), targets)
        val = (vectorizer.transform(val_reports), val_targets)
        best, score, weights, bias = fit_best_logistic(train, val, INVERSE_PENALTIES, solver="liblinear")
        with torch.no_grad():
            for tensor, values in ((network.idf, vectorizer.idf_), (network.head.weight, weights), (network.head.bias, bias)):
                tensor.copy_(torch.as_tensor(values))
        thresholds = choose_thresholds(val_targets, network.scores(val_reports), rule="f1")
        network.thresholds.copy_(torch.as_tensor(np.nan_to_num(thresholds, nan=0.5)))
        info(f"labeller: {len(self.vocabulary)} terms, C={best}; macro AUROC {score:.3f} on validation")


def _sample(case: FinetuneCase) -> Sample:
    return {
        "case_id": case.case_id, "patient_id": case.patient_id, "report": case.report, "target": torch.tensor(case.target),
    }  # fmt: skip


def load_labeller(path: str | Path) -> ReportClassifier:
    """The labeller of a run of downstream/CT-RATE with task=labeller: its folder, that of a fold, or the checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is something else.
    """
    from mg3d.finetune.loop import read_finetuned

    path = Path(path)
    candidates = (path / name for name in ("checkpoints/best.ckpt", "fold0/checkpoints/best.ckpt"))
    file = next((file for file in candidates if file.is_file()), path)
    if not file.is_file():
        command = "bash downstream/CT-RATE/finetune.sh task=labeller data_root=..."
        raise FileNotFoundError(f"{path} holds no labeller; train one: {command}")
    stored = read_finetuned(file)
    vocabulary = stored["mg3d_finetune"]["state"].get("terms")
    if vocabulary is None:
        raise ValueError(f"{file} is a checkpoint of {stored['mg3d_finetune']['folder']}, not of a report labeller")
    weights = {name.removeprefix("network."): tensor for name, tensor in stored["state_dict"].items()}
    network = ReportClassifier(vocabulary, len(weights["thresholds"]))
    network.load_state_dict(weights)
    return network.eval()
