"""Whether stored numbers are Hounsfield units already: CT-RATE has both kinds, and applying the table twice turns all to air."""

from typing import NamedTuple

import numpy as np

from mg3d.preparation.quarantine import Refusal

CLIP_HU = (-1024, 3071)
AIR_HU = (-1100, -900)
PADDING_HU = -3000
"""What lies at or below is no measurement but a scanner's filling outside the field of view (-8192, -3024)."""
VACUUM_HU = -1000
"""Air by the definition of the unit; what a program writes around a body that it cut out."""
FILLINGS_HU = (-2000, -2048)
"""Filling above `PADDING_HU` that scanners are known to write."""
FILLING_SHARE, FILLING_GAP_HU, FILLING_EDGE = 0.01, 300, 0.1
"""Other filling (-2048, -2000) is told by its share of the voxels, at least, and by how few lie less than that above it: beside
each ten voxels of it one at most, which a resampled volume has at its edge."""
TISSUE_HU, TISSUE_SHARE = -500, 0.03
"""Of any CT of a body at least this share lies above; of one whose intercept was added twice only dense bone does."""
AIR_SHARE = 0.30
_SAMPLE = 1 << 17


class HuRescale(NamedTuple):
    """HU = stored * slope + intercept."""

    source: str
    """already_hu: stored values are HU; metadata_table: its slope and intercept apply."""
    slope: float
    intercept: float


def air_peak(values_hu: np.ndarray) -> float:
    """The most frequent value below the 30th percentile, padding left out; nan for nothing but padding."""
    values = without_filling(values_hu)
    if not values.size:
        return float("nan")
    edge = np.partition(values, int(AIR_SHARE * (values.size - 1)))[int(AIR_SHARE * (values.size - 1))]
    lowest, counts = np.unique(np.rint(values[values <= edge]), return_counts=True)
    return float(lowest[counts.argmax()])


def without_filling(values_hu: np.ndarray) -> np.ndarray:
    """The values that are measurements, flat: none of `PADDING_HU` and below, nor of another filling below air.

    Air that an intercept was added to twice is no filling: nothing is left above as tissue.
    """
    values = values_hu[values_hu > PADDING_HU]
    if values.min(initial=AIR_HU[0]) < AIR_HU[0] and _lowest_stands_apart(values):
        rest = values[values > values.min()]
        return rest if (rest > TISSUE_HU).mean() >= TISSUE_SHARE else values
    return values


def _lowest_stands_apart(values: np.ndarray) -> bool:
    """Whether the lowest value is one that a program wrote: many voxels have just it, next to none one a little above."""
    lowest = values.min()
    same, near = int((values == lowest).sum()), int((values < lowest + FILLING_GAP_HU).sum())
    return FILLING_SHARE * values.size <= same < values.size and near - same <= FILLING_EDGE * same


def _may_be_filling(stored: np.ndarray, table: tuple[float, float]) -> bool:
    """Whether a lowest value that looks like air is filling of numbers that are no HU yet; air then lies where the table says.

    Air without noise stands apart as well. At just `VACUUM_HU` it is air, unless the table makes a known filling of it.
    """
    lowest = float(stored.min())
    if lowest == VACUUM_HU and lowest * table[0] + table[1] not in FILLINGS_HU:
        return False
    return _lowest_stands_apart(stored)


def choose_hu_rescale(stored: np.ndarray, table: tuple[float, float] | None) -> HuRescale:
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
    has_table = table is not None and np.isfinite(table).all() and table[0] != 0
    shifted = air_peak(sample * np.float32(table[0]) + np.float32(table[1])) if has_table else float("nan")
    is_air, is_air_shifted = (AIR_HU[0] <= found <= AIR_HU[1] for found in (peak, shifted))
    if is_air and not (is_air_shifted and _may_be_filling(sample, table)):
        return HuRescale("already_hu", 1.0, 0.0)
    if is_air_shifted:
        return HuRescale("metadata_table", *table)
    if not has_table:
        raise Refusal("hu_ambiguous", f"air at {peak:g}, and no slope and intercept in the metadata")
    raise Refusal("hu_ambiguous", f"air at {peak:g} as stored and at {shifted:g} with the metadata's intercept")
