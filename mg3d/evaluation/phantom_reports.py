"""Score the content of reports against the phantom's ground truth: which finding, on which side, how large.

The reader knows the wording of phantom reports (`phantom.wording`), so it is for models trained on them only. Use a labeller for
real reports.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mg3d.evaluation.tables import Bootstrap, Rows, on_rows
from mg3d.glossary import LABELS
from mg3d.metrics.clinical import clinical_efficacy
from mg3d.phantom.wording import PHRASES
from mg3d.polarity import NEGATED, span_polarities
from mg3d.sentence_spans import split_clauses

_SIDE = re.compile(r"\b(left|right|both sides|bilateral)\b")
_MM = re.compile(r"(\d+(?:\.\d+)?) mm")
_SLOTS = {"where": ".*", "size": r"\d+(?:\.\d+)?", "grade": r"\w+"}


class StatedFinding(NamedTuple):
    """A finding that a report states, or that a study has."""

    side: str
    """left, right or bilateral; empty if not stated."""
    size_mm: float
    """NaN if not stated."""


@cache
def _pattern(label: str) -> re.Pattern[str]:
    """Any name or specific phrase of a finding."""
    templates = [re.split(r"\{(\w+)\}", template.lower().removesuffix(".")) for template in PHRASES[label].positive]
    phrases = ["".join(_SLOTS[piece] if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)) for pieces in templates]
    return re.compile("|".join([rf"\b{re.escape(name)}\b" for name in PHRASES[label].names] + phrases))


def read_report(report: str) -> dict[str, StatedFinding]:
    """Findings of a report with the first side and size stated for each. Uncertain statements count, negated ones do not."""
    stated: dict[str, StatedFinding] = {}
    spans = split_clauses(report)
    for (start, end), polarity in zip(spans, span_polarities(report, spans)):
        clause = report[start:end].lower()
        if polarity == NEGATED:
            continue
        side, size = _SIDE.search(clause), _MM.search(clause)
        for label in filter(lambda label: _pattern(label).search(clause), LABELS):
            before = stated.get(label, StatedFinding("", np.nan))
            stated[label] = StatedFinding(
                before.side or (side[1].replace("both sides", "bilateral") if side else ""),
                float(size[1]) if size and np.isnan(before.size_mm) else before.size_mm,
            )
    return stated


def true_findings(truth: Mapping[str, Any]) -> dict[str, StatedFinding]:
    """Findings of a phantom study."""
    return {row["label"]: StatedFinding(row["side"], float(row["size_mm"])) for row in truth["findings"]}


def report_rows(
    systems: Mapping[str, Sequence[str]], truths: Sequence[Mapping[str, Any]], patients: np.ndarray, bootstrap: Bootstrap
) -> Rows:
    """One row per system (name -> a report for every study): precision, recall and F1 of findings, side accuracy, size error.

    Side and size are scored for findings that are present in both; the size error is the median of |stated - true|.
    """
    true = [true_findings(truth) for truth in truths]
    return [{"reports": name} | _score([*map(read_report, texts)], true, patients, bootstrap) for name, texts in systems.items()]


def _score(
    stated: Sequence[Mapping[str, StatedFinding]], true: Sequence[Mapping[str, StatedFinding]], patients: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:  # fmt: skip
    present = [np.array([[label in row for label in LABELS] for row in rows], int) for rows in (true, stated)]
    row: dict[str, Any] = {}
    for metric in ("precision", "recall", "f1"):
        statistic = on_rows(lambda true, stated, name=f"micro_{metric}": float(clinical_efficacy(true, stated)[name]), *present)
        row[metric] = bootstrap.interval(statistic, patients)
    side, size = np.full((2, len(true), len(LABELS)), np.nan)
    for study, (stated_by_label, true_by_label) in enumerate(zip(stated, true, strict=True)):
        for label in stated_by_label.keys() & true_by_label.keys():
            found, expected, index = stated_by_label[label], true_by_label[label], (study, LABELS.index(label))
            size[index] = abs(found.size_mm - expected.size_mm)
            if found.side and expected.side:
                side[index] = found.side == expected.side
    row |= {"sides stated": int((~np.isnan(side)).sum()), "side accuracy": bootstrap.mean(side, patients)}
    return row | {
        "sizes stated": int((~np.isnan(size)).sum()),
        "size error, mm": bootstrap.interval(on_rows(_median_of_defined, size), patients),
    }


def _median_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(np.median(defined)) if len(defined) else float("nan")
