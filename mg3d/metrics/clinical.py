"""Clinical efficacy: agreement of the findings named in generated and reference reports."""

import numpy as np

from mg3d.metrics.classification import ConfusionCounts, count_decisions, mean_of_defined, safe_divide


def clinical_efficacy(reference: np.ndarray, generated: np.ndarray) -> dict[str, float | np.ndarray]:
    """Precision, recall and F1 of the findings [n, L] that one labeller extracts from generated and from reference reports.

    1 = named as present, 0 = not; entries with any other value on either side are ignored. Keys: `micro_f1` (all entries
    pooled), `macro_f1` (mean over findings), `example_f1` (mean over reports), `label_f1` [L], likewise for precision and recall;
    `labels` and `examples` are the numbers of findings and reports in these means.

    A finding (or report) without a positive entry on either side is undefined (nan) and excluded from the means; with positive
    entries on one side only it scores 0. An invented finding in a normal report therefore costs, and a correctly normal report
    gains nothing: for that, see the specificity of `decision_scores`.

    Raises:
        ValueError: the shapes differ or are not [n, L].
    """
    if reference.ndim != 2:
        raise ValueError(f"labels of shape {reference.shape}; expected [reports, findings]")
    micro, label, example = (_agreement(count_decisions(reference, generated, axis=axis)) for axis in (None, 0, 1))
    scores: dict[str, float | np.ndarray] = {f"micro_{name}": float(value) for name, value in micro.items()}
    scores |= {f"macro_{name}": mean_of_defined(values) for name, values in label.items()}
    scores |= {f"example_{name}": mean_of_defined(values) for name, values in example.items()}
    scores |= {f"label_{name}": values for name, values in label.items()}
    return scores | {name: int((~np.isnan(part["f1"])).sum()) for name, part in (("labels", label), ("examples", example))}


def _agreement(counts: ConfusionCounts) -> dict[str, np.ndarray]:
    tp, fp, fn, _ = counts
    defined = tp + fp + fn > 0
    return {
        "precision": np.where(defined, np.nan_to_num(safe_divide(tp, tp + fp)), np.nan),
        "recall": np.where(defined, np.nan_to_num(safe_divide(tp, tp + fn)), np.nan),
        "f1": safe_divide(2 * tp, 2 * tp + fp + fn),
    }
