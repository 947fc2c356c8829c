"""Published counts and label prevalences of the data sets."""

from typing import NamedTuple

from mg3d.glossary import PREVALENCE


class SplitCounts(NamedTuple):
    """Size of a split."""

    patients: int
    studies: int
    volumes: int


PUBLISHED_COUNTS: dict[str, dict[str, SplitCounts]] = {
    "ct_rate": {"train": SplitCounts(20_000, 24_128, 47_149), "valid": SplitCounts(1_304, 1_564, 3_039)},
    "ctrg": {"all": SplitCounts(1_804, 1_804, 1_804)},
}
"""Data set -> official split -> counts, including volumes without a chest; `all`: all splits together."""

VALID_PREVALENCE: tuple[float, ...] = (
    0.101, 0.278, 0.105, 0.070, 0.248, 0.139, 0.255, 0.195, 0.233, 0.450, 0.388, 0.273, 0.121, 0.081, 0.112, 0.191, 0.108,
    0.079,
)  # fmt: skip
PUBLISHED_PREVALENCE: dict[str, dict[str, tuple[float, ...]]] = {"ct_rate": {"train": PREVALENCE, "valid": VALID_PREVALENCE}}
"""Data set -> official split -> prevalence of each of `glossary.LABELS` per study."""
ROUNDING = 0.0005
"""Half of the last published decimal."""
