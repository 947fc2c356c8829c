"""Weak labels of sentences: which finding is named by its usual words, and whether the clause denies it."""

import re
from collections.abc import Sequence

import numpy as np

from mg3d.glossary import FINDING_CUES, LABELS
from mg3d.sentence_spans import polarity, split_clauses

_CUES = [re.compile(r"\b(?:" + "|".join(map(re.escape, FINDING_CUES[name])) + ")", re.IGNORECASE) for name in LABELS]
NOT_NAMED = -1


def sentence_labels(sentence: str) -> np.ndarray:
    """int8 [18]: 1 named, 0 named in clauses that deny or call normal alone, `NOT_NAMED`. Order of `glossary.LABELS`."""
    found = np.full(len(LABELS), NOT_NAMED, np.int8)
    for start, end in split_clauses(sentence):
        clause = sentence[start:end]
        named = np.array([bool(cue.search(clause)) for cue in _CUES])
        found[named] = np.maximum(found[named], int(polarity(clause) > 0))
    return found


class CueLabeller:
    """The words of the glossary as a labeller of reports: what no clause names counts as absent."""

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, 18]: 1 present, 0 absent."""
        found = [sentence_labels(report) for report in reports]
        return np.maximum(np.array(found, np.int8).reshape(-1, len(LABELS)), 0)
