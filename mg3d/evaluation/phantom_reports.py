"""Score the content of reports against the phantom's ground truth: which finding, on which side, how large.

The reader knows the wording of phantom reports (`phantom.wording`), so it is for models trained on them only. Use a labeller for
real reports.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mg3d.evaluation.tables import Bootstrap, Rows
from mg3d.glossary import LABELS
from mg3d.metrics.clinical import clinical_efficacy
from mg3d.phantom.wording import PHRASES
from mg3d.sentence_spans import polarity, split_clauses

_SIDE = re.compile(r"\b(left|right|both sides|bilateral)\b")
_MM = re.compile(r"(\d+(?:\.\d+)?) mm")
SIDES = {"left": 1, "right": 2, "both sides": 3, "bilateral": 3}
"""Codes of sides; 0 means that no side is stated."""
_SLOTS = {"where": ".*", "size": r"\d+(?:\.\d+)?", "grade": r"\w+"}


class ReportContent(NamedTuple):
    """Findings stated by n reports, or true of n studies."""

    present: np.ndarray
    """int8 [n, 18]."""
    side: np.ndarray
    """int8 [n, 18], see `SIDES`."""
    size_mm: np.ndarray
    """float [n, 18]; NaN if not stated."""


class _Statement(NamedTuple):
    report: int
    finding: int
    side: int
    size_mm: float


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], ...], ...]:
    """Per finding: patterns of its names, longest first, and of its specific phrases."""
    found = []
    for label in LABELS:
        words = PHRASES[label]
        names = [r"\b" + re.escape(name) + r"\b" for name in sorted(words.names, key=len, reverse=True)]
        found.append(tuple(re.compile(text) for text in (*names, *map(_template_pattern, words.positive))))
    return tuple(found)


def _template_pattern(template: str) -> str:
    pieces = re.split(r"\{(\w+)\}", template.lower().removesuffix("."))
    return "".join(_SLOTS[piece] if index % 2 else re.escape(piece) for index, piece in enumerate(pieces))


def read_reports(reports: Sequence[str]) -> ReportContent:
    """Content of reports. Negated and normal statements do not count, uncertain ones count as present."""
    return _collect(len(reports), [found for index, report in enumerate(reports) for found in _statements(index, report)])


def true_content(truths: Sequence[Mapping[str, Any]]) -> ReportContent:
    """Content of phantom studies."""
    return _collect(
        len(truths),
        [
            _Statement(index, LABELS.index(found["label"]), SIDES.get(found["side"], 0), float(found["size_mm"]))
            for index, truth in enumerate(truths)
            for found in truth["findings"]
        ],
    )


def _statements(index: int, report: str) -> Iterator[_Statement]:
    for start, end in split_clauses(report):
        text = report[start:end].lower()
        if polarity(text) < 0:
            continue
        side, size = _SIDE.search(text), _MM.search(text)
        for finding, patterns in enumerate(_patterns()):
            if any(pattern.search(text) for pattern in patterns):
                yield _Statement(index, finding, SIDES[side[1]] if side else 0, float(size[1]) if size else float("nan"))


def _collect(count: int, statements: Sequence[_Statement]) -> ReportContent:
    """The first stated side and size of a finding count."""
    present, side = np.zeros((count, len(LABELS)), np.int8), np.zeros((count, len(LABELS)), np.int8)
    size = np.full((count, len(LABELS)), np.nan)
    for found in statements:
        at = found.report, found.finding
        present[at] = 1
        side[at] = side[at] or found.side
        size[at] = found.size_mm if np.isnan(size[at]) else size[at]
    return ReportContent(present, side, size)


def report_rows(
    systems: Mapping[str, Sequence[str]], truths: Sequence[Mapping[str, Any]], patients: np.ndarray, bootstrap: Bootstrap
) -> Rows:
    """One row per system (name -> a report for every study): precision, recall and F1 of findings, side accuracy, size error.

    Side and size are scored for findings that are present in both; the size error is the median of |stated - true|.
    """
    true = true_content(truths)
    return [{"reports": name} | _score(read_reports(reports), true, patients, bootstrap) for name, reports in systems.items()]


def _score(stated: ReportContent, true: ReportContent, patients: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    both = (stated.present == 1) & (true.present == 1)
    sided = both & (stated.side > 0) & (true.side > 0)
    side = np.where(sided, stated.side == true.side, np.nan)
    size = np.where(both, np.abs(stated.size_mm - true.size_mm), np.nan)
    row: dict[str, Any] = {}
    for metric in ("precision", "recall", "f1"):
        statistic = lambda r, m=metric: float(clinical_efficacy(true.present[r], stated.present[r])[f"micro_{m}"])  # noqa: E731
        row[metric] = bootstrap.interval(statistic, patients)
    row |= {"sides stated": int(sided.sum()), "side accuracy": bootstrap.interval(lambda r: _reduce(side[r], np.mean), patients)}
    size_error = bootstrap.interval(lambda r: _reduce(size[r], np.median), patients)
    return row | {"sizes stated": int((~np.isnan(size)).sum()), "size error, mm": size_error}


def _reduce(values: np.ndarray, function: Any) -> float:
    """`function` of the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(function(defined)) if len(defined) else float("nan")
