"""Whether the splits that are about to be written are apart: no patient, scan or image in two of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from mg3d.datasets import checks
from mg3d.datasets.checks import LeakError, LeakReport

__all__ = ["LeakError", "LeakReport", "find_leaks"]


def find_leaks(rows: Iterable[Mapping[str, Any]], splits: Iterable[str]) -> LeakReport:
    """Compares index rows, each with its split."""
    columns = ("volume_id", *checks.BLOCKING, *checks.WARNING)
    chosen: dict[str, list[str]] = {column: [] for column in columns}
    for row in rows:
        for column, values in chosen.items():
            values.append(row[column])
    arrays = {column: pa.array(values, pa.string()) for column, values in chosen.items()}
    return checks.find_leaks(pa.table({**arrays, "split": pa.array(list(splits), pa.string())}))
