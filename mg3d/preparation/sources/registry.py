"""Data sets by name.

To add one, write `sources/<name>.py` with `list_<name>(root, options) -> Inventory`, add it here, and add its name to
`DatasetName` in settings/schema.py and to `DATASETS` in datasets/schema.py. A new file format is one reader in `readers/`.
"""

from collections.abc import Callable
from pathlib import Path

from mg3d.preparation.records import Inventory
from mg3d.preparation.sources.ct_rate import list_ct_rate
from mg3d.preparation.sources.ctrg import list_ctrg
from mg3d.preparation.sources.custom import list_custom
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.rad_chestct import list_rad_chestct

SOURCES: dict[str, Callable[[Path, SourceOptions], Inventory]] = {
    "ct_rate": list_ct_rate,
    "ctrg": list_ctrg,
    "rad_chestct": list_rad_chestct,
    "custom": list_custom,
}
"""Keys as in `datasets.schema.DATASETS`. Each raises FileNotFoundError or ValueError for a folder with other contents."""

STREAMED_TABLES = {
    "ct_rate": ("radiology_text_reports/*.csv", "metadata/*.csv", "metadata/no_chest_*.txt", "multi_abnormality_labels/*.csv"),
}
"""Data sets that can be streamed -> the tables that are downloaded first (`*` also matches `/`)."""
