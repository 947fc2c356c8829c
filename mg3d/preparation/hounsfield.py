"""Whether stored numbers are Hounsfield units already: CT-RATE has both kinds, and applying the table twice turns all to air."""

from typing import NamedTuple

import numpy as np

from mg3d.preparation.quarantine import Refusal

CLIP_HU = (-1024, 3071)
AIR_HU = (-1100, -900)
PADDING_HU = -3000
"""What lies at or below is no measurement but a scanner's filling outside the field of view (-8192, -3024)."""
AIR_SHARE = 0.30
_SAMPLE = 1 << 17


class HuRule(NamedTuple):
    """HU = stored * slope + intercept."""

    name: str
    """baked: stored numbers are HU; csv: slope and intercept of the metadata table apply."""
    slope: float
    intercept: float


def air_peak(values_hu: np.ndarray) -> float:
    """The most frequent value below the 30th percentile, padding left out; nan for nothing but padding."""
    values = values_hu[values_hu > PADDING_HU]
    if not values.size:
        return float("nan")
    edge = np.partition(values, int(AIR_SHARE * (values.size - 1)))[int(AIR_SHARE * (values.size - 1))]
    lowest, counts = np.unique(np.rint(values[values <= edge]), return_counts=True)
    return float(lowest[counts.argmax()])


def choose_rule(stored: np.ndarray, table: tuple[float, float] | None) -> HuRule:
    """The rule of a volume, from where its air lies; the folder a file lies in decides nothing.

    Args:
        stored: all voxels, any shape. Large volumes are sampled at an odd stride, which walks over all columns.
        table: slope and intercept of the metadata table.

    Raises:
        Refusal: `constant_image`; `hu_ambiguous` when neither reading puts air between -1100 and -900 HU.
    """
    flat = stored.ravel(order="K")
    sample = flat[:: (flat.size // _SAMPLE) | 1].astype(np.float32)
    if not np.isfinite(sample).all():
        raise Refusal("hu_ambiguous", "voxels that are not finite")
    if sample.min() == sample.max():
        raise Refusal("constant_image", f"every voxel is {sample[0]:g}")
    peak = air_peak(sample)
    if AIR_HU[0] <= peak <= AIR_HU[1]:
        return HuRule("baked", 1.0, 0.0)
    if table is None or not np.isfinite(table).all() or table[0] == 0:
        raise Refusal("hu_ambiguous", f"air at {peak:g}, and no slope and intercept in the metadata")
    shifted = air_peak(sample * np.float32(table[0]) + np.float32(table[1]))
    if AIR_HU[0] <= shifted <= AIR_HU[1]:
        return HuRule("csv", *table)
    raise Refusal("hu_ambiguous", f"air at {peak:g} as stored and at {shifted:g} with the metadata's intercept")
