"""Whether a report tells what is true of a synthetic study: which finding, on which side, how large.

The reader knows the synthetic reports' own way of putting things (`phantom.wording`), so it is for models trained on them; for
real reports use a labeller.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mg3d.evaluation.results import Rows, measured
from mg3d.glossary import LABELS
from mg3d.metrics.clinical import clinical_efficacy
from mg3d.phantom.wording import WORDS
from mg3d.sentence_spans import polarity, split_clauses

_SIDE = re.compile(r"\b(left|right|both sides|bilateral)\b")
_MM = re.compile(r"(\d+(?:\.\d+)?) mm")
SIDES = {"left": 1, "right": 2, "both sides": 3, "bilateral": 3}
"""Side of a finding -> its number; 0 = none told."""
_SLOTS = {"where": ".*", "size": r"\d+(?:\.\d+)?", "grade": r"\w+"}


class Content(NamedTuple):
    """What n reports, or the truth of n studies, say."""

    present: np.ndarray
    """int8 [n, 18]."""
    side: np.ndarray
    """int8 [n, 18], see SIDES."""
    size_mm: np.ndarray
    """float [n, 18]; nan = not told."""


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], ...], ...]:
    """Of each finding: its names, longest first, and its own sentences."""
    found = []
    for label in LABELS:
        words = WORDS[label]
        names = [r"\b" + re.escape(name) + r"\b" for name in sorted(words.names, key=len, reverse=True)]
        own = [_pattern_of(text) for text in words.positive]
        found.append(tuple(re.compile(text) for text in (*names, *own)))
    return tuple(found)


def _pattern_of(template: str) -> str:
    pieces = re.split(r"\{(\w+)\}", template.lower().removesuffix("."))
    return "".join(_SLOTS[piece] if place % 2 else re.escape(piece) for place, piece in enumerate(pieces))


def read_reports(reports: Sequence[str]) -> Content:
    """What reports state; denials and normal statements say that nothing is there, doubtful ones count as statements."""
    claims = [claim for row, report in enumerate(reports) for claim in _claims(row, report)]
    return _content(len(reports), claims)


def truth_content(truths: Sequence[Mapping[str, Any]]) -> Content:
    """What is true of synthetic studies."""
    claims = [
        (row, LABELS.index(finding["label"]), SIDES.get(finding["side"], 0), float(finding["size_mm"]))
        for row, truth in enumerate(truths)
        for finding in truth["findings"]
    ]
    return _content(len(truths), claims)


Claim = tuple[int, int, int, float]
"""Row, finding, side and mm (nan = not told)."""


def _claims(row: int, report: str) -> Iterator[Claim]:
    for start, end in split_clauses(report):
        text = report[start:end].lower()
        if polarity(text) < 0:
            continue
        side, size = _SIDE.search(text), _MM.search(text)
        for label, patterns in enumerate(_patterns()):
            if any(pattern.search(text) for pattern in patterns):
                yield row, label, SIDES[side[1]] if side else 0, float(size[1]) if size else float("nan")


def _content(count: int, claims: Sequence[Claim]) -> Content:
    """The first side and size told of a finding count."""
    present, side = np.zeros((count, len(LABELS)), np.int8), np.zeros((count, len(LABELS)), np.int8)
    size = np.full((count, len(LABELS)), np.nan)
    for row, label, where, mm in claims:
        present[row, label] = 1
        side[row, label] = side[row, label] or where
        size[row, label] = mm if np.isnan(size[row, label]) else size[row, label]
    return Content(present, side, size)


def content_row(name: str, told: Content, true: Content, patients: np.ndarray, *, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """One system's reports against the truth of their studies: findings, and of those rightly told the side and size.

    `side`: share of right sides; `size`: median of |told - true| in mm.
    """
    both = (told.present == 1) & (true.present == 1)
    sided = both & (told.side > 0) & (true.side > 0)
    side = np.where(sided, told.side == true.side, np.nan)
    size = np.where(both, np.abs(told.size_mm - true.size_mm), np.nan)
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    row: dict[str, Any] = {"reports": name}
    for what in ("precision", "recall", "f1"):
        row[what] = measured(
            lambda r, w=what: float(clinical_efficacy(true.present[r], told.present[r])[f"micro_{w}"]), patients, **settings
        )
    row["sides told"], row["side"] = int(sided.sum()), measured(lambda r: _defined(side[r], np.mean), patients, **settings)
    row["sizes told"] = int((~np.isnan(size)).sum())
    row["size error, mm"] = measured(lambda r: _defined(size[r], np.median), patients, **settings)
    return row


def content_rows(
    systems: Mapping[str, Sequence[str]],
    truths: Sequence[Mapping[str, Any]],
    patients: np.ndarray,
    *,
    n_bootstrap: int,
    seed: int,
) -> Rows:
    """A row per system (name -> a report for every study); the trivial ones belong beside a model's."""
    true = truth_content(truths)
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    return [content_row(name, read_reports(rows), true, patients, **settings) for name, rows in systems.items()]


def _defined(values: np.ndarray, of: Any) -> float:
    defined = values[~np.isnan(values)]
    return float(of(defined)) if len(defined) else float("nan")
