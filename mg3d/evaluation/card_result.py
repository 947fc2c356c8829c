"""Result of an evaluation card: JSON file, HTML page, and the paired comparison of two results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mg3d.evaluation.tables import Bootstrap, Rows, Statistic, format_rows, macro, on_rows
from mg3d.files import write_json
from mg3d.metrics.bootstrap import holm
from mg3d.metrics.classification import auroc

FORMAT = 2
RELIABILITY = "Reliability after temperature scaling"
"""Heading of the table that the HTML page also plots."""


class CardResult(NamedTuple):
    """Tables and per-case scores of one model on one card, as builtins: equal runs write equal files."""

    card: dict[str, Any]
    data: dict[str, Any]
    """`CardData.facts`."""
    model: dict[str, Any]
    """Description of the evaluated model."""
    mark: str
    """Empty, or `PARTIAL n/N` for data that are not exactly those of the card."""
    tables: dict[str, Rows]
    """By heading. A cell is text, a number, or a value with `low` and `high`."""
    cases: dict[str, Any]
    """Per volume and study, for paired comparisons: ids, patients, labels, scores, ranks."""

    @property
    def title(self) -> str:
        """Name and version of the card, and the mark."""
        return " · ".join(filter(None, (f"card {self.card['name']} v{self.card['version']}", self.mark)))


def write_result(path: Path, result: CardResult) -> None:
    """Write a result as JSON. Every table repeats the title, so no copied table loses its mark."""
    tables = {name: {"card": result.title, "rows": rows} for name, rows in result.tables.items()}
    write_json(path, _nan_to_null({"format": FORMAT, **result._asdict(), "tables": tables}))


def read_result(path: Path) -> CardResult:
    """Read a result of `write_result`; ValueError for any other file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise KeyError("format")
        content["tables"] = {name: table["rows"] for name, table in content["tables"].items()}
        return CardResult(**content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} was not written by `tools/evaluate_card.py --json` of this version ({error}). Evaluate the model again."
        ) from error


def _nan_to_null(value: Any) -> Any:
    """Builtins with NaN replaced by None, because JSON has no NaN."""
    if isinstance(value, Mapping):
        return {name: _nan_to_null(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_null(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def write_result_page(path: Path, result: CardResult) -> None:
    """Write every table and the reliability diagram as one HTML file."""
    from mg3d.visualize.page import CaptionedFigure, PageItem, write_page
    from mg3d.visualize.plots import reliability_figure

    sections: list[tuple[str, list[PageItem]]] = []
    for heading, rows in result.tables.items():
        pieces: list[PageItem] = [format_rows(rows)]
        if heading == RELIABILITY and rows:
            pieces.append(CaptionedFigure(reliability_figure(rows), "observed frequency over mean predicted probability"))
        sections.append((f"{heading} · {result.title}", pieces))
    about = [{"": name, "value": str(value)} for part in (result.card, result.data, result.model) for name, value in part.items()]
    sections.append((f"Card, data and model · {result.title}", [about]))
    write_page(path, title=f"mg3d: {result.title}", sections=sections)


def require_same_data(first: CardResult, second: CardResult) -> None:
    """Raise ValueError unless both results are of one card and the same data."""
    titles = [f"{result.card['name']} v{result.card['version']}" for result in (first, second)]
    hashes = [(name, first.data[name], second.data[name]) for name in ("ids_sha256", "labels_sha256", "reports_sha256")]
    for name, one, other in (("card", *titles), *hashes):
        if one != other:
            raise ValueError(
                f"the results differ in {name} ({one[:20]} and {other[:20]}), so a paired test is not possible. Evaluate both "
                "models with the same card on the same folder."
            )
    if first.card != second.card:
        changed = ", ".join(name for name in first.card if first.card[name] != second.card.get(name))
        raise ValueError(f"the results differ in these fields of the card: {changed}. Evaluate both with one version of mg3d.")


def compare_results(first: CardResult, second: CardResult, *, n_bootstrap: int = 2000) -> dict[str, Rows]:
    """First minus second: macro AUROC, AUROC by finding, and recall, each with a paired interval and p value.

    `p (Holm)` is the p value by finding, corrected for the number of findings.

    Raises:
        ValueError: see `require_same_data`.
    """
    require_same_data(first, second)
    bootstrap = Bootstrap(n_bootstrap, first.card["seed"])
    patients, labels = np.array(first.cases["patients"]), np.array(first.cases["labels"])
    scores = [np.array(result.cases["scores"], dtype=float) for result in (first, second)]
    mean = macro(auroc, labels, *scores)
    rows = [_comparison_row("zero-shot AUROC, mean", mean.statistics, patients, bootstrap, labels=mean.labels)]
    studies = np.array(first.cases["study_patients"])
    for direction in first.cases["ranks"]:
        if direction not in second.cases["ranks"]:
            continue
        ranks = [np.array(result.cases["ranks"][direction]) for result in (first, second)]
        query_patients = studies[np.array(first.cases["queries"][direction])]
        for k in first.cases["recall_ks"][direction]:
            recall = [on_rows(np.mean, part <= k) for part in ranks]
            rows.append(_comparison_row(f"{direction}, R@{k}", recall, query_patients, bootstrap))
    findings = []
    for index, name in enumerate(first.cases["findings"]):
        pair = [on_rows(auroc, labels[:, index], part[:, index]) for part in scores]
        findings.append(_comparison_row(name, pair, patients, bootstrap, labels=labels[:, index]))
    return {"First minus second": rows, "AUROC by finding, first minus second": _with_holm(findings)}


def _comparison_row(
    name: str, pair: Sequence[Statistic], patients: np.ndarray, bootstrap: Bootstrap, *, labels: np.ndarray | None = None
) -> dict[str, Any]:
    all_rows = np.arange(len(patients))
    difference, comparison = bootstrap.difference(*pair, patients, labels=labels)
    p = difference.get("no_interval", comparison.p)
    return {"metric": name, "first": pair[0](all_rows), "second": pair[1](all_rows), "difference": difference, "p": p}


def _with_holm(rows: Rows) -> Rows:
    tested = [row for row in rows if isinstance(row["p"], float) and not np.isnan(row["p"])]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p (Holm)"] = float(adjusted)
    return rows
