"""How much of a reference report's wording a generated one shares."""

import re
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:[-'’/]\w+)*")
NEEDS_JAVA = "needs Java"


class CaptionScores(NamedTuple):
    """Scores of n generated reports."""

    corpus: dict[str, float | str]
    """bleu_1 to bleu_4, rouge_l, cider, and meteor where it was asked for: a number, or `NEEDS_JAVA`."""
    per_report: dict[str, np.ndarray]
    """[n] of rouge_l and cider, the means of which are the corpus's, and of meteor, whose mean is not; BLEU has none."""


def tokenize(report: str) -> str:
    """Lower-case words with a space between them; punctuation is dropped, 1.5 and ground-glass are one word each.

    In place of the PTB tokeniser of the COCO captions, which needs Java. That one drops punctuation too, but differs in clitics,
    slashes and brackets, so compare only scores of one tokeniser.
    """
    return " ".join(_TOKEN.findall(report.lower()))


def caption_scores(generated: Sequence[str], references: Sequence[str], *, meteor: bool = False) -> CaptionScores:
    """BLEU-1 to 4, ROUGE-L (F, recall weighing 1.2 times) and CIDEr-D, by pycocoevalcap, of whole reports after `tokenize`.

    BLEU and METEOR are of the corpus, from 0 to 1; CIDEr weighs words by how rare they are among these references, goes up to 10
    and is nan for a single report. An empty generated report scores 0. References are taken as they are: the original shortens
    them and replaces rare words first, so its scores are of an easier text. `meteor` starts Java, some seconds.

    Raises:
        ValueError: there is no report, lengths differ, or a reference has no word.
    """
    if len(generated) != len(references) or len(references) == 0:
        raise ValueError(f"{len(generated)} generated reports for {len(references)} references; give one for each, at least one")
    told = {place: [tokenize(report)] for place, report in enumerate(references)}
    made = {place: [tokenize(report)] for place, report in enumerate(generated)}
    empty = [place for place, (report,) in told.items() if not report]
    if empty:
        raise ValueError(f"{len(empty)} references have no word, the first in place {empty[0]}; leave these cases out")
    corpus: dict[str, float | str] = {}
    per_report = {}
    for order, score in enumerate(Bleu(4).compute_score(told, made, verbose=0)[0], start=1):
        corpus[f"bleu_{order}"] = float(score)
    scorers = {"rouge_l": Rouge, "cider": Cider}
    if meteor and shutil.which("java"):
        scorers["meteor"] = Meteor
    elif meteor:
        corpus["meteor"] = NEEDS_JAVA
    for name, scorer in scorers.items():
        mean, each = scorer().compute_score(told, made)
        corpus[name], per_report[name] = float(mean), np.asarray(each, dtype=float)
    if len(told) == 1:
        corpus["cider"], per_report["cider"] = float("nan"), np.full(1, np.nan)
    return CaptionScores(corpus, per_report)
