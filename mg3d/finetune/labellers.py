"""Report labellers by name: by cue words, our TF-IDF classifier, and CheXbert and RadBERT if they are installed.

A labeller has `labels(reports)`: int8 [reports, labels], 1 present, 0 absent.
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg3d.glossary import FINDING_CUES, LABELS
from mg3d.polarity import NEGATED, span_polarities
from mg3d.sentence_spans import split_clauses

LABELLERS = ("tfidf", "cues", "chexbert", "radbert_ct")
CHEXBERT_LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
"""In the order of CheXbert's output."""
_CHEXBERT_PACKAGE = "f1chexbert"  # not on the list of extras: its weights are licensed separately
_CUES = [re.compile(r"\b(?:" + "|".join(map(re.escape, FINDING_CUES[name])) + ")", re.IGNORECASE) for name in LABELS]


class CueLabeller:
    """A finding is present if a cue word of the glossary occurs in a clause that is affirmed or uncertain."""

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, 18]."""
        clauses = [[*_clauses_not_negated(report)] for report in reports]
        return np.array([[any(map(cue.search, each)) for cue in _CUES] for each in clauses], np.int8).reshape(-1, len(_CUES))


def _clauses_not_negated(report: str) -> Iterator[str]:
    spans = split_clauses(report)
    for (start, end), polarity in zip(spans, span_polarities(report, spans)):
        if polarity != NEGATED:
            yield report[start:end]


class _CheXbert:
    def __init__(self) -> None:
        try:
            package = importlib.import_module(_CHEXBERT_PACKAGE)
        except ImportError as error:
            raise ModuleNotFoundError("labeller=chexbert needs a package and its weights: pip install f1chexbert") from error
        self.model = package.F1CheXbert()

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, 14]; an uncertain mention counts as present."""
        return np.array([self.model.get_label(report) for report in reports], np.int8)


class _RadBert:
    """The text classifier behind CT-RATE's labels, as a transformers folder with 18 outputs."""

    def __init__(self, path: str) -> None:
        if not path:
            raise ValueError("labeller=radbert_ct:FOLDER needs the folder of a transformers text classifier with 18 outputs")
        from transformers import pipeline

        try:
            self.model = pipeline("text-classification", model=path, top_k=None, function_to_apply="sigmoid", truncation=True)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(f"{path} is not a transformers text classifier ({type(error).__name__})") from error
        if self.model.model.config.num_labels != len(LABELS):
            raise ValueError(f"{path} has {self.model.model.config.num_labels} outputs; expected {len(LABELS)}")

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, 18]."""
        index = self.model.model.config.label2id
        labels = np.zeros((len(reports), len(LABELS)), np.int8)
        for row, outputs in enumerate(self.model(list(reports))):
            for output in outputs:
                labels[row, index[output["label"]]] = output["score"] >= 0.5
        return labels


def open_labeller(text: str) -> tuple[Any, tuple[str, ...]]:
    """A labeller by `name`, `name:path`, or the path of a run of task=labeller, and the names of its labels.

    Raises:
        ValueError: unknown name, or a path is missing.
        FileNotFoundError: its files do not exist.
        ModuleNotFoundError: a package is missing.
    """
    name, _, path = text.partition(":")
    if name not in LABELLERS and Path(text).exists():
        name, path = "tfidf", text
    if name not in LABELLERS:
        raise ValueError(f"labeller={text!r}: expected one of {', '.join(LABELLERS)}, or the folder of a run of task=labeller")
    if name == "tfidf":
        from mg3d.finetune.tasks.labeller import load_labeller

        return load_labeller(path), LABELS
    if name == "chexbert":
        return _CheXbert(), CHEXBERT_LABELS
    return (CueLabeller() if name == "cues" else _RadBert(path)), LABELS
