"""What the owners say of their data sets: counts and prevalences."""

from typing import NamedTuple

from mg3d.glossary import PREVALENCE


class Counts(NamedTuple):
    """How much a split holds."""

    patients: int
    studies: int
    volumes: int


COUNTS: dict[str, dict[str, Counts]] = {
    "ct_rate": {"train": Counts(20_000, 24_128, 47_149), "valid": Counts(1_304, 1_564, 3_039)},
    "ctrg": {"all": Counts(1_804, 1_804, 1_804)},
}
"""Data set -> official split -> counts, volumes without a chest included; `all`: the splits together."""

VALID_PREVALENCE: tuple[float, ...] = (
    0.101, 0.278, 0.105, 0.070, 0.248, 0.139, 0.255, 0.195, 0.233, 0.450, 0.388, 0.273, 0.121, 0.081, 0.112, 0.191, 0.108,
    0.079,
)  # fmt: skip
PREVALENCES: dict[str, dict[str, tuple[float, ...]]] = {"ct_rate": {"train": PREVALENCE, "valid": VALID_PREVALENCE}}
"""Data set -> official split -> share of scans that carry each of `glossary.LABELS`, to three decimals."""
PRECISION = 0.0005
"""Half of the last decimal of a published share."""
