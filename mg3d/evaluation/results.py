"""Results of a card: tables whose every number has an interval, their file, and how two of them are compared."""

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import false_discovery_control

from mg3d.files import write_json
from mg3d.metrics.bootstrap import MIN_PATIENTS, PairedDifference, bootstrap_interval, insufficient_reason, paired_comparison
from mg3d.metrics.classification import auroc, macro_auroc
from mg3d.metrics.retrieval import recall_at

FORMAT = 1
Rows = list[dict[str, Any]]


class Result(NamedTuple):
    """What a card gave for one model; all builtins, so that equal runs write equal files."""

    card: dict[str, Any]
    data: dict[str, Any]
    """See `Cases.facts`."""
    model: dict[str, Any]
    """What was judged, in words."""
    mark: str
    """Empty, or PARTIAL n/N."""
    tables: dict[str, Rows]
    """By heading. A cell is text, a number, or a value with `low` and `high`."""
    cases: dict[str, Any]
    """Per volume and study, for paired tests: ids, patients, labels, scores, ranks."""

    @property
    def title(self) -> str:
        """The card and, where it is so, that the data are not whole."""
        return " · ".join(filter(None, (f"card {self.card['name']} v{self.card['version']}", self.mark)))


def measured(
    statistic: Callable[[np.ndarray], float],
    groups: np.ndarray,
    *,
    n_bootstrap: int,
    seed: int,
    digits: int = 6,
    lacking: str = "",
) -> dict[str, Any]:
    """A cell: `statistic(rows)` of all rows, with `low` and `high` of its bootstrap over groups (patients).

    lacking: why there is no interval (`insufficient_reason`); the cell holds it as `why`.
    """
    low, high = (np.nan, np.nan) if lacking else bootstrap_interval(statistic, groups, n_bootstrap=n_bootstrap, seed=seed)
    value = statistic(np.arange(len(groups)))
    told = {name: round(float(number), digits) for name, number in (("value", value), ("low", low), ("high", high))}
    return told | ({"why": lacking} if lacking else {})


def shown(cell: Any) -> str:
    """A cell as text: value [low, high], or why there is no interval; numbers with three decimals."""
    if isinstance(cell, Mapping) and cell.get("why"):
        return f"{shown(cell['value'])} [{cell['why']}]"
    if isinstance(cell, Mapping):
        low, high = shown(cell["low"]), shown(cell["high"])
        return f"{shown(cell['value'])} [{low}, {high}]"
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return "-"
    if isinstance(cell, float) and 0 < cell < 0.0005:
        return "< 0.001"
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def text_rows(rows: Rows) -> list[dict[str, str]]:
    """Rows whose cells are all text, every row with all columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: shown(row.get(name)) if name in row else "" for name in names} for row in rows]


def tables_text(title: str, tables: Mapping[str, Rows]) -> str:
    """Every table under its heading and `title`, which names the card and whether the data are whole; as wide as the terminal."""
    console = Console(highlight=False, file=io.StringIO(), width=None if sys.stdout.isatty() else 150)
    for heading, rows in tables.items():
        lines = text_rows(rows)
        if not lines:
            continue
        console.print(f"\n{heading} · {title}", soft_wrap=True)
        table = Table(*lines[0])
        for line in lines:
            table.add_row(*line.values())
        console.print(table)
    return console.file.getvalue().strip("\n")


def write_result(path: Path, result: Result) -> None:
    """Writes a result as JSON; each table carries the card and the mark of its own."""
    told = {name: {"card": result.title, "rows": rows} for name, rows in result.tables.items()}
    write_json(path, _plain({"format": FORMAT, **result._asdict(), "tables": told}))


def read_result(path: Path) -> Result:
    """A result that `write_result` wrote; ValueError for another file."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held.pop("format") != FORMAT:
            raise KeyError("format")
        held["tables"] = {name: table["rows"] for name, table in held["tables"].items()}
        return Result(**held)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of tools/evaluate_card.py --json of this version ({error})") from error


def _plain(value: Any) -> Any:
    """Builtins with null for what is nan, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def same_data(first: Result, second: Result) -> None:
    """ValueError unless two results are of one card and of the same data."""
    for name, one, other in (
        ("card", f"{first.card['name']} v{first.card['version']}", f"{second.card['name']} v{second.card['version']}"),
        *((name, first.data[name], second.data[name]) for name in ("ids_sha256", "labels_sha256", "reports_sha256")),
    ):
        if one != other:
            raise ValueError(
                f"the two results differ in {name} ({one[:20]} and {other[:20]}): they were not measured on the same data, so "
                "a paired test has no meaning; evaluate both models with one card on one folder"
            )
    if first.card != second.card:
        changed = ", ".join(name for name in first.card if first.card[name] != second.card.get(name))
        raise ValueError(f"the two results differ in their card's {changed}; evaluate both with one version of mg3d")


def compare(first: Result, second: Result, *, n_bootstrap: int = 2000) -> dict[str, Rows]:
    """First minus second: macro AUROC, AUROC by finding, and recall; each with a paired interval and p (`paired_comparison`).

    `q` of findings is p by Benjamini and Hochberg, for there are many of them.

    Raises:
        ValueError: see `same_data`.
    """
    same_data(first, second)
    patients, labels = np.array(first.cases["patients"]), np.array(first.cases["labels"])
    scores = [np.array(result.cases["scores"], dtype=float) for result in (first, second)]
    settings = {"n_bootstrap": n_bootstrap, "seed": first.card["seed"]}
    pair = [partial(_macro, labels, part) for part in scores]
    rows = [_difference("zero-shot AUROC, mean", pair, patients, settings, lacking=insufficient_reason(labels, patients))]
    studies = np.array(first.cases["study_patients"])
    for direction in first.cases["ranks"]:
        if direction not in second.cases["ranks"]:
            continue
        ranks = [np.array(result.cases["ranks"][direction]) for result in (first, second)]
        groups = studies[np.array(first.cases["queries"][direction])]
        for k in first.cases["recall_ks"][direction]:
            pair = [partial(_recall, part, k) for part in ranks]
            rows.append(_difference(f"{direction}, R@{k}", pair, groups, settings))
    findings = []
    for place, name in enumerate(first.cases["findings"]):
        pair = [partial(_auroc, labels[:, place], part[:, place]) for part in scores]
        lacking = insufficient_reason(labels[:, place], patients)
        findings.append(_difference(name, pair, patients, settings, lacking=lacking))
    return {"Main numbers, first minus second": rows, "AUROC by finding, first minus second": _with_q(findings)}


def _macro(labels: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> float:
    return macro_auroc(labels[rows], scores[rows])


def _auroc(labels: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> float:
    return auroc(labels[rows], scores[rows])


def _recall(ranks: np.ndarray, k: int, rows: np.ndarray) -> float:
    return recall_at(ranks[rows], [k])[k]


def _difference(
    name: str,
    pair: Sequence[Callable[[np.ndarray], float]],
    groups: np.ndarray,
    settings: Mapping[str, int],
    *,
    lacking: str = "",
) -> dict[str, Any]:
    everything = np.arange(len(groups))
    found: PairedDifference = paired_comparison(*pair, groups, **settings)
    difference: dict[str, Any] = {"value": found.difference, "low": found.low, "high": found.high}
    if lacking:
        difference |= {"low": np.nan, "high": np.nan, "why": lacking}
    p = lacking or found.p if found.patients >= MIN_PATIENTS else f"too few cases ({found.patients}) to tell"
    return {"number": name, "first": pair[0](everything), "second": pair[1](everything), "difference": difference, "p": p}


def _with_q(rows: Rows) -> Rows:
    defined = [row for row in rows if isinstance(row["p"], float) and not np.isnan(row["p"])]
    adjusted = false_discovery_control([row["p"] for row in defined]) if defined else []
    for row, q in zip(defined, adjusted, strict=True):
        row["q"] = float(q)
    return rows
