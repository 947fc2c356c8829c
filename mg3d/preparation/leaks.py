"""Whether the splits that are about to be written are apart: no patient, scan or image in two of them."""

from collections.abc import Iterable

import pyarrow as pa

from mg3d.datasets import integrity
from mg3d.datasets.integrity import LeakError, LeakReport

__all__ = ["LeakError", "LeakReport", "find_leaks"]


def find_leaks(tables: Iterable[pa.Table]) -> LeakReport:
    """Compares the index rows of every data set, each with a column `split`."""
    columns = ["split", "volume_id", *integrity.BLOCKING, *integrity.WARNING]
    return integrity.find_leaks(pa.concat_tables(table.select(columns) for table in tables))
