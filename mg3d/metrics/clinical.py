"""Whether a generated report names the findings that its reference names (clinical efficacy)."""

import numpy as np

from mg3d.metrics.classification import ConfusionCounts, count_decisions, mean_of_defined, safe_divide


def clinical_efficacy(reference: np.ndarray, generated: np.ndarray) -> dict[str, float | np.ndarray]:
    """Precision, recall and F1 of findings, by one labeller, of generated reports against their references; both [n, L].

    1 = named as present, 0 = not; anything else is unknown, and a place that is unknown on either side is left out. Keys are
    `micro_f1` (all places together), `macro_f1` (mean over findings), `example_f1` (mean over reports) and `label_f1` [L], and
    likewise with precision and recall; `labels` and `examples` say over how many the means go.

    What is present on neither side, a finding or a report, has no value (nan) and is left out of means. What is present on one
    side only has precision, recall and F1 of 0. So inventing a finding in a normal report costs, and a report that is rightly
    normal gains nothing: see the specificity of `decision_scores` for that.

    Raises:
        ValueError: the shapes differ or are not [n, L].
    """
    if reference.ndim != 2:
        raise ValueError(f"labels of shape {reference.shape}; expected [reports, findings]")
    micro, label, example = (_agreement(count_decisions(reference, generated, axis=axis)) for axis in (None, 0, 1))
    found: dict[str, float | np.ndarray] = {f"micro_{name}": float(value) for name, value in micro.items()}
    found |= {f"macro_{name}": mean_of_defined(values) for name, values in label.items()}
    found |= {f"example_{name}": mean_of_defined(values) for name, values in example.items()}
    found |= {f"label_{name}": values for name, values in label.items()}
    found |= {name: int((~np.isnan(part["f1"])).sum()) for name, part in (("labels", label), ("examples", example))}
    return found


def _agreement(counts: ConfusionCounts) -> dict[str, np.ndarray]:
    hits, false_alarms, misses, _ = counts
    somewhere = hits + false_alarms + misses > 0
    return {
        "precision": np.where(somewhere, np.nan_to_num(safe_divide(hits, hits + false_alarms)), np.nan),
        "recall": np.where(somewhere, np.nan_to_num(safe_divide(hits, hits + misses)), np.nan),
        "f1": safe_divide(2 * hits, 2 * hits + false_alarms + misses),
    }
