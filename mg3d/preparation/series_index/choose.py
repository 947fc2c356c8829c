"""Choose one series per study by rules that are read from a TOML file."""

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg3d.preparation.series_index.words import kernel_class

RULES = Path(__file__).with_name("choose.toml")
"""The default rules, with comments."""


def read_rules(path: Path = RULES) -> dict[str, dict[str, Any]]:
    """The sections require and points; entries that a file lacks are the default's.

    Raises:
        ValueError: not a TOML file, or an unknown name.
    """
    default = tomllib.loads(RULES.read_text(encoding="utf-8"))
    try:
        rules = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a TOML file: {error}; copy and change {RULES}") from None
    for section, entries in rules.items():
        unknown = set(entries) - set(default[section]) if section in default and isinstance(entries, dict) else {section}
        if unknown:
            raise ValueError(f"{path} has the unknown entries {', '.join(sorted(unknown))}; {RULES} explains all entries")
    return {section: entries | rules.get(section, {}) for section, entries in default.items()}


def failed_rule(row: Mapping[str, Any], require: Mapping[str, Any]) -> str:
    """The first rule that a series breaks, with its value; empty if it meets all."""
    parts = set(row["body_part"].split("+"))
    if not parts & set(require["body_part"]):
        return f"body part {row['body_part'] or 'unknown'}"
    if row["kind"] not in require["kind"]:
        return row["kind"] or "ordinary reconstruction"
    if row["orientation"] not in require["orientation"]:
        return f"orientation {row['orientation'] or 'unknown'}"
    thickness = row["thickness_mm"] or row["spacing_mm"] or 0.0
    if thickness > require["max_thickness_mm"]:
        return f"slices of {thickness:g} mm"
    length = row["slices"] * (row["spacing_mm"] or 0.0)
    return f"only {length:.0f} mm long" if length < require["min_length_mm"] else ""


def score(row: Mapping[str, Any], most_slices: int, points: Mapping[str, Any]) -> float:
    """Points of a series; `most_slices` is the number of slices of the longest candidate of its study."""
    thickness = row["thickness_mm"] or row["spacing_mm"] or 0.0
    low, high = points["best_thickness_mm"]
    distance = max(low - thickness, thickness - high, 0.0)
    kind = kernel_class(row["kernel"])
    return round(
        points["chest"] * ("chest" in row["body_part"].split("+"))
        + points["original"] * row["image_type"].upper().startswith("ORIGINAL\\PRIMARY")
        + points["thickness"] * max(0.0, 1.0 - distance / 4.0)
        + points["kernel"] * (1.0 if kind == points["best_kernel"] else 0.0 if kind else 0.5)
        + points["slices"] * row["slices"] / max(most_slices, 1),
        1,
    )


def choose(rows: Sequence[dict[str, Any]], rules: Mapping[str, Mapping[str, Any]]) -> None:
    """Set score, use and verdict of all rows: one usable series of each study is used, the one with most points.

    Equal points: the one with most slices, then the first UID.
    """
    studies = defaultdict(list)
    for row in rows:
        if row["use"] and (broken := failed_rule(row, rules["require"])):
            row["use"], row["verdict"] = 0, f"rule: {broken}"
        elif row["use"]:
            studies[row["patient"], row["study"]].append(row)
    for candidates in studies.values():
        most = max(row["slices"] for row in candidates)
        for row in candidates:
            row["score"] = score(row, most, rules["points"])
        best = min(candidates, key=lambda row: (-row["score"], -row["slices"], row["series"]))
        for row in candidates:
            if row is not best:
                row["use"], row["verdict"] = 0, "another series of the study has more points"
