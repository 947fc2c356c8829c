"""Report labellers by name: our own, and CheXbert and RadBERT if they are installed."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mg3d.finetune.negation import CueLabeller
from mg3d.glossary import LABELS

CHEXBERT_LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
"""In the order of CheXbert's output."""


class LabelsReports(Protocol):
    """A report labeller."""

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [reports, labels]: 1 present, 0 absent."""


class LabellerEntry(NamedTuple):
    """One known labeller."""

    load: Callable[[str], LabelsReports]
    """From its path, if it needs one."""
    names: tuple[str, ...]


class _CheXbert:
    def __init__(self) -> None:
        name = "f1chexbert"
        try:
            package = importlib.import_module(name)
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
        found = np.zeros((len(reports), len(LABELS)), np.int8)
        for row, outputs in enumerate(self.model(list(reports))):
            for output in outputs:
                found[row, index[output["label"]]] = output["score"] >= 0.5
        return found


def _own(path: str) -> LabelsReports:
    from mg3d.finetune.tasks.labeller import load_labeller

    return load_labeller(path)


LABELLERS: dict[str, LabellerEntry] = {
    "tfidf": LabellerEntry(_own, LABELS),
    "cues": LabellerEntry(lambda path: CueLabeller(), LABELS),
    "chexbert": LabellerEntry(lambda path: _CheXbert(), CHEXBERT_LABELS),
    "radbert_ct": LabellerEntry(_RadBert, LABELS),
}


def open_labeller(text: str) -> tuple[LabelsReports, tuple[str, ...]]:
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
    return LABELLERS[name].load(path), LABELLERS[name].names
