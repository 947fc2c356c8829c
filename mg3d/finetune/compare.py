"""Two finished runs side by side: whether they are alike but for their start, and how their scores differ."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mg3d.finetune.fit import FREE
from mg3d.finetune.kinds.base import Kind
from mg3d.finetune.results import predictions_file, read_facts, read_table
from mg3d.metrics.bootstrap import MIN_PATIENTS, PairedDifference, paired_comparisons
from mg3d.settings.encoders import ENCODERS

_MAY_DIFFER = (*FREE, "pretrained", "encoder", "load_patch_merging", "load_prefix", "minimum_coverage", "n_bootstrap")
"""Settings that say where a run starts, or nothing about it; the network is compared as it was built."""
_FACTS = {
    "parameters_in_all": "parameters", "parameters": "parameters to train", "processes": "processes", "epochs": "epochs trained",
    "finished": "finished", "folds": "folds",
}  # fmt: skip
"""Entry of scores.json -> what it is called."""
_MOST_DIFFERENCES = 8


def compare(kind: Kind, first: Path, second: Path, *, say: Callable[[str], None]) -> None:
    """Says whether two runs are alike, then each score of both and second - first, with its paired interval and p.

    Raises:
        FileNotFoundError: one of them has not ended.
        ValueError: the runs were not judged on the same cases.
    """
    facts = [read_facts(folder) for folder in (first, second)]
    for name, folder, told in zip(("first ", "second"), (first, second), facts, strict=True):
        say(f"{name}: {folder} (pretrained={told.get('trained', told)['settings']['pretrained']})")
    other = differences(*facts)
    for line in other[:_MOST_DIFFERENCES]:
        say(f"not like for like: {line}")
    if len(other) > _MOST_DIFFERENCES:
        say(f"not like for like: and {len(other) - _MOST_DIFFERENCES} more")
    if not other:
        millions = facts[0].get("parameters_in_all", 0) / 1e6
        say(f"like for like: one network ({millions:.2f} M parameters), the same cases in every part, the same protocol")
    has_test = [predictions_file(folder, "test").is_file() for folder in (first, second)]
    if has_test[0] != has_test[1]:
        lacking = (second, first)[has_test[1]]
        say(f"{lacking} has no test part: both are compared in val, by which the best epochs were chosen")
    part = "test" if all(has_test) else "val"
    found = compare_tables(kind, first, second, part=part)
    say("\n".join([f"scores in {part}; difference: second - first [95 % interval over patients]", *table_lines(found)]))
    few = sorted({row.patients for _, _, row in found.values() if row.patients < MIN_PATIENTS})
    if few:
        say(
            f"too few cases ({', '.join(map(str, few))}) to tell: with fewer than {MIN_PATIENTS} patients no p can lie below 0.05"
        )


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """What of network, cases and protocol differs between the facts of two runs, in words; nothing when they are alike."""
    first, second = one.get("trained", {}), two.get("trained", {})
    if "divided" not in first or "divided" not in second:
        return ["one of them is of an earlier version, which did not note what it was trained on"]
    told = [f"{words} {one.get(name)} and {two.get(name)}" for name, words in _FACTS.items() if one.get(name) != two.get(name)]
    read = {"vision_encoder", "standardise_voxels", "hidden_size", "fusion_heads"}
    read |= {name for of in (first, second) for name in ENCODERS[of["vision"]["vision_encoder"]].reads}
    told += _other("encoder's ", first["vision"], second["vision"], read)
    told += _other("preprocessing: ", first["preprocess"], second["preprocess"], first["preprocess"])
    for name in first["divided"]:
        one_part, two_part = first["divided"][name], second["divided"].get(name, "none")
        if one_part != two_part:
            counts = [part.split("-")[0] for part in (one_part, two_part)]
            told.append(f"other {name} cases ({counts[0]} and {counts[1]})")
    told += [f"fold {first['fold']} and {second['fold']}"] * (first["fold"] != second["fold"])
    for group in ("settings", "options"):
        told += _other("", first[group], second[group], {*first[group], *second[group]} - {*_MAY_DIFFER})
    return told


def _other(what: str, one: Mapping[str, Any], two: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    return [f"{what}{name} {one.get(name)} and {two.get(name)}" for name in sorted(names) if one.get(name) != two.get(name)]


def compare_tables(kind: Kind, first: Path, second: Path, *, part: str) -> dict[str, tuple[float, float, PairedDifference]]:
    """Score -> its value in both runs, and `paired_comparisons` of second - first; thresholds are of each run's own val.

    Raises:
        ValueError: the runs were not judged on the same cases.
    """
    one, two = (read_table(predictions_file(folder, part)) for folder in (first, second))
    if one["case_id"].tolist() != two["case_id"].tolist():
        only = set(one["case_id"]) ^ set(two["case_id"])
        raise ValueError(
            f"{first} has {len(one)} cases and {second} {len(two)}, {len(only)} in one alone, such as {sorted(only)[:3]}; two "
            "runs are compared on the same cases: the same fold, split and seed of the folds"
        )
    dev = [read_table(predictions_file(folder, "val")) if part == "test" else None for folder in (first, second)]
    systems = [partial(_scores, kind, table, of) for table, of in zip((one, two), dev, strict=True)]
    values = [system(np.arange(len(one))) for system in systems]
    known = {name: kind.rests_on(one, name) for name in values[0]}
    named = {"n_bootstrap": kind.settings.n_bootstrap, "seed": kind.settings.seed}
    found = paired_comparisons(*reversed(systems), one["patient_id"].to_numpy(), support_masks=known, **named)
    return {name: (values[0][name], values[1][name], row) for name, row in found.items()}


def _scores(kind: Kind, table: pd.DataFrame, dev: pd.DataFrame | None, rows: np.ndarray) -> Mapping[str, float]:
    return kind.statistics(table.iloc[rows], dev)


def table_lines(found: Mapping[str, tuple[float, float, PairedDifference]]) -> list[str]:
    """The table as text, at most 100 columns wide for scores of names up to 40 letters."""
    width = max(map(len, found), default=0)
    lines = [f"{'score':{width}} {'first':>7} {'second':>7} {'difference':25} {'p':>8} {'patients':>8}"]
    for name, (first, second, row) in found.items():
        interval = "" if np.isnan(row.low) else f"[{row.low:.3f}, {row.high:.3f}]"
        difference = f"{row.difference:+8.3f} {interval:16}"
        lines.append(f"{name:{width}} {first:7.3f} {second:7.3f} {difference} {row.p_text:>8} {row.patients:8}")
    return lines
