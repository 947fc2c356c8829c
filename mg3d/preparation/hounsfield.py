"""Decide whether stored values are already in HU. CT-RATE contains both kinds, and rescaling twice turns tissue into air."""

from typing import NamedTuple

import numpy as np

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import Change, VolumeRecord

CLIP_HU = (-1024, 3071)
AIR_HU = (-1100, -900)
"""Range in which the air peak of a CT must be."""
AIR_QUANTILE = 0.30
"""The air peak is searched among the lowest values up to this quantile."""
PADDING_HU = -3000
"""Values at or below are padding outside the field of view (-8192, -3024), not measurements."""
KNOWN_PADDING_HU = (-2000, -2048)
"""Padding values above `PADDING_HU` that scanners write."""
VACUUM_HU = -1000
"""HU of air by definition; segmentation tools write it around a masked body."""
MIN_PADDING_FRACTION = 0.01
"""Padding covers at least 1 % of the voxels ..."""
PADDING_GAP_HU = 300
"""... and is isolated: within 300 HU above it are ..."""
MAX_EDGE_RATIO = 0.1
"""... at most a tenth as many voxels (interpolated edges)."""
TISSUE_HU = -500
MIN_TISSUE_FRACTION = 0.03
"""At least this fraction of a CT of a body is above `TISSUE_HU`; if the intercept was added twice, only dense bone is."""
BONE_HU = 500
MAX_BONE_FRACTION = 0.1
"""At most this fraction of a CT of a body is above `BONE_HU`; if the intercept is missing, soft tissue is as well."""
_SAMPLES = 1 << 17


class HuRescale(NamedTuple):
    """HU = stored * slope + intercept."""

    source: str
    """already_hu: stored values are HU; trusted: so by --hu trust; metadata_table: its slope and intercept apply."""
    slope: float
    intercept: float


def choose_hu_rescale(stored: np.ndarray, table: tuple[float, float] | None) -> HuRescale:
    """Decide by the location of the air peak, and not by the folder of the file, whether a volume is in HU.

    Args:
        stored: all voxels, any shape. Large volumes are sampled with an odd stride, which visits all columns.
        table: slope and intercept of the metadata table.

    Raises:
        Refusal: `constant_image`; `hu_ambiguous` if the air peak is outside -1100 to -900 HU in both readings.
    """
    sample = _sample(stored)
    peak = air_peak(sample)
    has_table = table is not None and np.isfinite(table).all() and table[0] != 0
    rescaled_peak = air_peak(sample * np.float32(table[0]) + np.float32(table[1])) if has_table else float("nan")
    is_air, is_air_rescaled = (AIR_HU[0] <= value <= AIR_HU[1] for value in (peak, rescaled_peak))
    if is_air and not (is_air_rescaled and _lowest_may_be_padding(sample, table)):
        return HuRescale("already_hu", 1.0, 0.0)
    if is_air_rescaled:
        return HuRescale("metadata_table", *table)
    if not has_table:
        raise Refusal("hu_ambiguous", f"air at {peak:g}, and no slope and intercept in the metadata")
    raise Refusal("hu_ambiguous", f"air at {peak:g} as stored and at {rescaled_peak:g} with the metadata's intercept")


def file_rescale(stored: np.ndarray, record: VolumeRecord) -> tuple[HuRescale, list[Change]]:
    """The rescale of a file without documented units: by its air, or HU as stored if the recipe says so."""
    if record.hu == "trust":
        return HuRescale("trusted", 1.0, 0.0), check_trusted_hu(stored)
    return choose_hu_rescale(stored, record.table and (record.table.slope, record.table.intercept)), []


def check_trusted_hu(hu: np.ndarray) -> list[Change]:
    """The change of a volume whose header defines HU, but whose air peak is above -900 HU, as of a small field of view.

    Raises:
        Refusal: `constant_image`; `hu_ambiguous` if the air peak is below -1100 HU, as nothing is less dense than air, or if
            there is no air and soft tissue is as dense as bone, as with an intercept that was lost.
    """
    sample = _sample(hu)
    peak = air_peak(sample)
    if peak < AIR_HU[0]:
        raise Refusal("hu_ambiguous", f"air at {peak:g} HU by the header, which is less dense than air")
    if peak <= AIR_HU[1]:
        return []
    if (dense := float((sample > BONE_HU).mean())) > MAX_BONE_FRACTION:
        raise Refusal("hu_ambiguous", f"no air by the header, and {dense:.0%} of the voxels above {BONE_HU} HU")
    return [Change("no_air", f"lowest values near {peak:g} HU")]


def fill_nan(stored: np.ndarray, air: float) -> tuple[np.ndarray, list[Change]]:
    """Replace NaN outside the field of view by `air`. NaN counts as outside if no axis has measured voxels on both sides of it.

    Raises:
        Refusal: hu_ambiguous for NaN inside the field of view, or infinite voxels.
    """
    if stored.dtype.kind != "f" or np.isfinite(stored.sum(dtype=np.float64)):
        return stored, []
    measured = ~np.isnan(stored)
    if np.isinf(stored).any():
        raise Refusal("hu_ambiguous", "infinite voxels")
    for axis in range(3):
        extent = stored.shape[axis] - measured.argmax(axis) - np.flip(measured, axis).argmax(axis)
        if (measured.any(axis) & (extent != measured.sum(axis))).any():
            raise Refusal("hu_ambiguous", f"{(~measured).sum()} voxels are NaN, some of them between measured ones")
    return np.where(measured, stored, stored.dtype.type(air)), [Change("filled_nan", f"{(~measured).mean():.0%} of the voxels")]


def _sample(stored: np.ndarray) -> np.ndarray:
    """Up to `_SAMPLES` voxels as float32, without NaN."""
    flat = stored.ravel(order="K")
    sample = flat[:: (flat.size // _SAMPLES) | 1].astype(np.float32)
    sample = sample[~np.isnan(sample)]
    if not np.isfinite(sample).all():
        raise Refusal("hu_ambiguous", "infinite voxels")
    if not sample.size or sample.min() == sample.max():
        raise Refusal("constant_image", f"every voxel is {sample[0] if sample.size else float('nan'):g}")
    return sample


def air_peak(values_hu: np.ndarray) -> float:
    """The most frequent value among the lowest 30 %, padding excluded; nan if all voxels are padding."""
    values = _without_padding(values_hu)
    if not values.size:
        return float("nan")
    index = int(AIR_QUANTILE * (values.size - 1))
    lowest, counts = np.unique(np.rint(values[values <= np.partition(values, index)[index]]), return_counts=True)
    return float(lowest[counts.argmax()])


def _without_padding(values_hu: np.ndarray) -> np.ndarray:
    """Values that are measurements, as a flat array.

    The lowest value is not padding if hardly any tissue remains above it: then it is air, and the intercept was added twice.
    """
    values = values_hu[values_hu > PADDING_HU]
    if values.min(initial=AIR_HU[0]) < AIR_HU[0] and _lowest_is_isolated(values):
        others = values[values > values.min()]
        return others if (others > TISSUE_HU).mean() >= MIN_TISSUE_FRACTION else values
    return values


def _lowest_is_isolated(values: np.ndarray) -> bool:
    """Whether many voxels have exactly the lowest value and hardly any are slightly above."""
    lowest = values.min()
    same, near = int((values == lowest).sum()), int((values < lowest + PADDING_GAP_HU).sum())
    return MIN_PADDING_FRACTION * values.size <= same < values.size and near - same <= MAX_EDGE_RATIO * same


def _lowest_may_be_padding(stored: np.ndarray, table: tuple[float, float]) -> bool:
    """Whether the lowest value, which looks like air, is padding of a volume that is not in HU yet.

    Noise-free air is isolated as well. At exactly `VACUUM_HU` it is air, unless the table maps it to a known padding value.
    """
    lowest = float(stored.min())
    if lowest == VACUUM_HU and lowest * table[0] + table[1] not in KNOWN_PADDING_HU:
        return False
    return _lowest_is_isolated(stored)
