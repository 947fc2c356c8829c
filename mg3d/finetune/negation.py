"""Labels of reports and sentences from cue words and negation."""

import re
from collections.abc import Sequence

import numpy as np

from mg3d.glossary import FINDING_CUES, LABELS
from mg3d.sentence_spans import polarity, split_clauses

_CUES = [re.compile(r"\b(?:" + "|".join(map(re.escape, FINDING_CUES[name])) + ")", re.IGNORECASE) for name in LABELS]
NOT_MENTIONED = -1


def sentence_labels(sentence: str) -> np.ndarray:
    """int8 [18] in the order of `LABELS`: 1 mentioned, 0 mentioned in negated or normal clauses only, `NOT_MENTIONED`."""
    labels = np.full(len(LABELS), NOT_MENTIONED, np.int8)
    for start, end in split_clauses(sentence):
        clause = sentence[start:end]
        mentioned = np.array([bool(cue.search(clause)) for cue in _CUES])
        labels[mentioned] = np.maximum(labels[mentioned], int(polarity(clause) > 0))
    return labels


class CueLabeller:
    """Labels reports by the cue words of the glossary; findings that are not mentioned are absent."""

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, 18]: 1 present, 0 absent."""
        found = [sentence_labels(report) for report in reports]
        return np.maximum(np.array(found, np.int8).reshape(-1, len(LABELS)), 0)
