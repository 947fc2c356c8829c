"""Options of all data sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CtrgSplit = Literal["resplit", "original"]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What `list_*` may need to list the volumes of a data set; each uses what applies to it."""

    out: Path
    """Output folder of the preparation. The salt of hashed ids is stored here and reused by later runs."""
    val_patients: int = 500
    """Number of training patients that become val, see `split.draw_val_patients`."""
    seed: int = 0
    """Of the val draw."""
    limit: int | None = None
    """Maximum number of volumes per official split."""
    ctrg_split: CtrgSplit = "resplit"
    """CTRG: resplit draws val from train and uses the rest as test; original keeps the published splits."""
    listing: Sequence[str] | None = None
    """CT-RATE: paths of all files relative to the root, if they are streamed from elsewhere; None lists the root."""
    table: Path | None = None
    """custom: CSV, Excel or JSON table of volumes and reports; None uses all volumes of the folder, without reports."""
    keep_ids: bool = False
    """custom: use file and patient names as ids instead of hashes."""
