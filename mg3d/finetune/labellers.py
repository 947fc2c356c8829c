"""Labellers of reports by name: our own, and those of others where they are installed."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from mg3d.finetune.cues import CueLabeller
from mg3d.finetune.labeller import load_labeller
from mg3d.glossary import LABELS

CHEXBERT = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
"""CheXbert's classes in its own order."""


class LabelsReports(Protocol):
    """Anything that tells findings of reports."""

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, names]: 1 present, 0 absent."""


class Offered(NamedTuple):
    """One labeller."""

    load: Callable[[str], LabelsReports]
    """From the path that it needs, if any."""
    names: tuple[str, ...]
    """Of its columns."""


def _needed(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(f"{what} needs the package {module} and its weights: pip install {module}") from error


class _CheXbert:
    def __init__(self) -> None:
        self.model = _needed("f1chexbert", "the CheXbert labeller").F1CheXbert()

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, 14]; a mention in doubt counts as present."""
        return np.array([self.model.get_label(report) for report in reports], np.int8)


class _RadBert:
    """The text classifier behind CT-RATE's labels, as a transformers folder of 18 logits."""

    def __init__(self, path: str) -> None:
        if not path:
            raise ValueError(
                "the RadBERT labeller of CT-RATE needs its weights as a folder of transformers with 18 outputs: radbert_ct:FOLDER"
            )
        from transformers import pipeline

        try:
            self.model = pipeline("text-classification", model=path, top_k=None, function_to_apply="sigmoid", truncation=True)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"{path} is no folder of a transformers text classifier ({type(error).__name__}); convert the weights first"
            ) from error
        if self.model.model.config.num_labels != len(LABELS):
            raise ValueError(f"{path} has {self.model.model.config.num_labels} outputs; {len(LABELS)} are expected")

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, 18], in the order of the classifier's outputs."""
        places = self.model.model.config.label2id
        found = np.zeros((len(reports), len(LABELS)), np.int8)
        for row, answer in enumerate(self.model(list(reports))):
            for entry in answer:
                found[row, places[entry["label"]]] = entry["score"] >= 0.5
        return found


LABELLERS: dict[str, Offered] = {
    "own": Offered(load_labeller, LABELS),
    "cues": Offered(lambda path: CueLabeller(), LABELS),
    "chexbert": Offered(lambda path: _CheXbert(), CHEXBERT),
    "radbert_ct": Offered(_RadBert, LABELS),
}


def open_labeller(word: str) -> tuple[LabelsReports, tuple[str, ...]]:
    """A labeller by `name` or `name:path`, or by the path of our own alone, and the names of its columns.

    Raises:
        ValueError: there is no such labeller, or it needs a path.
        FileNotFoundError: its files are not there.
        ModuleNotFoundError: it needs a package.
    """
    name, _, path = word.partition(":")
    if name not in LABELLERS and Path(word).exists():
        name, path = "own", word
    if name not in LABELLERS:
        raise ValueError(f"there is no labeller {word!r}; there are {', '.join(LABELLERS)}, or give the folder of a run")
    return LABELLERS[name].load(path), LABELLERS[name].names


def radgraph_f1(references: Sequence[str], generated: Sequence[str]) -> float:
    """RadGraph F1 of generated reports (entities and relations, its reward `partial`), where the package is installed.

    Raises:
        ModuleNotFoundError: it is not.
    """
    scorer = _needed("radgraph", "RadGraph F1").F1RadGraph(reward_level="partial")
    mean, *_ = scorer(hyps=list(generated), refs=list(references))
    return float(mean)
