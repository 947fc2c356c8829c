"""Wording overlap of generated and reference reports: BLEU, ROUGE-L and CIDEr-D by pycocoevalcap."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:[-'’/]\w+)*")
ORDERS = (1, 2, 3, 4)
"""n-gram orders of BLEU."""


def tokenize(report: str) -> str:
    """Lower-case words separated by spaces; punctuation is removed, `1.5` and `ground-glass` are one word each.

    Used instead of the PTB tokenizer of the COCO captions, which needs Java and treats clitics, slashes and brackets differently:
    compare only scores with the same tokenizer.
    """
    return " ".join(_TOKEN.findall(report.lower()))


def caption_counts(generated: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Per-report statistics, float64 [n], from which `caption_scores` computes the scores of any subset or resample.

    Texts are split at spaces: apply `tokenize` first. `length` and `reference_length` in words, `matched1` to `matched4` (n-grams
    shared with the reference), `rouge_l` (F, beta 1.2), `cider` (CIDEr-D; its word weights come from all n references; nan for a
    single report). An empty generated report scores 0. References are whole; the original code shortens them and replaces rare
    words first, so its scores are of an easier text.

    Raises:
        ValueError: there is no report, or the lengths differ.
    """
    if len(generated) != len(references) or len(references) == 0:
        raise ValueError(f"{len(generated)} generated reports for {len(references)} references; pass one for each, at least one")
    cooked = [cook_test(text, cook_refs([reference])) for text, reference in zip(generated, references, strict=True)]
    counts = {"length": [each["testlen"] for each in cooked], "reference_length": [each["reflen"][0] for each in cooked]}
    counts |= {f"matched{order}": [each["correct"][order - 1] for each in cooked] for order in ORDERS}
    hypotheses, targets = ({i: [" ".join(text.split())] for i, text in enumerate(texts)} for texts in (generated, references))
    counts["rouge_l"] = Rouge().compute_score(targets, hypotheses)[1]
    counts["cider"] = Cider().compute_score(targets, hypotheses)[1] if len(references) > 1 else [np.nan]
    return {name: np.asarray(values, dtype=np.float64) for name, values in counts.items()}


def caption_scores(counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`bleu1` to `bleu4` of the corpus, mean `rouge_l` and mean `cider` (0 to 10), from `caption_counts`."""
    length, reference_length = counts["length"].sum(), counts["reference_length"].sum()
    log_brevity = min(0.0, 1 - reference_length / length) if length else -np.inf
    totals = [np.maximum(counts["length"] - order + 1, 0).sum() for order in ORDERS]
    precisions = [counts[f"matched{order}"].sum() / max(total, 1) for order, total in zip(ORDERS, totals, strict=True)]
    with np.errstate(divide="ignore"):
        log_means = np.cumsum(np.log(precisions)) / np.array(ORDERS)
    bleu = {f"bleu{order}": float(np.exp(mean + log_brevity)) for order, mean in zip(ORDERS, log_means, strict=True)}
    return bleu | {name: float(np.mean(counts[name])) for name in ("rouge_l", "cider")}
