"""Whether the splits are apart: no patient, scan or image in two of them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

BLOCKING = ("patient_id", "study_id", "image_sha256")
WARNING = ("report_sha256",)


class LeakError(ValueError):
    """Something lies in two splits."""


@dataclass
class LeakReport:
    """Column -> values that lie in more than one split, with the volumes that carry them."""

    blocking: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    warnings: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for people: counts, and volume ids of the first few; no text, no name."""
        found = []
        for word, part in (("leak", self.blocking), ("note", self.warnings)):
            for column, shared in part.items():
                example = ", ".join(next(iter(shared.values()))[:4])
                found.append(f"{word}: {len(shared)} values of {column} lie in more than one split, e.g. of {example}")
        return found or ["no leak: patients, scans, images and reports of the splits are apart"]


def find_leaks(rows: Iterable[Mapping[str, Any]], splits: Iterable[str]) -> LeakReport:
    """Compares index rows, each with its split."""
    seen: dict[str, dict[str, dict[str, list[str]]]] = {
        column: defaultdict(lambda: defaultdict(list)) for column in (*BLOCKING, *WARNING)
    }
    for row, split in zip(rows, splits):
        for column, values in seen.items():
            if column in WARNING and not row.get("report", "?"):
                continue  # without a report, which says nothing
            values[row[column]][split].append(row["volume_id"])
    shared = {
        column: {value: [members[0] for members in by_split.values()] for value, by_split in values.items() if len(by_split) > 1}
        for column, values in seen.items()
    }
    return LeakReport(
        {column: shared[column] for column in BLOCKING if shared[column]},
        {column: shared[column] for column in WARNING if shared[column]},
    )
