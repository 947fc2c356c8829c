"""Statistics of the voxels of a volume: padding, percentiles, air inside the body, a histogram, and block means."""

import hashlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import decode_metadata
from mg3d.doctor.catalog import RawVolumeSource, StoredVolumeSource
from mg3d.preparation.chest import air_inside
from mg3d.preparation.engines import follow_parent
from mg3d.preparation.hounsfield import AIR_HU, PADDING_HU
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.registry import READERS

GREY = "uint8_unknown_window"
BIN_EDGES = {"hu": np.arange(-1200, 1801, 25), GREY: np.arange(0, 257, 4)}
"""Intensity unit -> edges of the histogram."""
BLOCKS = 8
"""Blocks along each axis whose means identify a volume."""
SUBSAMPLED_SIZE = 64
"""Voxels per axis that are used for percentiles and histograms; every n-th is taken."""
_SLAB = 16


class VolumeStatistics(NamedTuple):
    """Statistics of one volume."""

    refused: str = ""
    """Reason code of a volume that cannot be used."""
    shape: tuple[int, ...] = ()
    """z y x."""
    intensity_unit: str = ""
    """hu or uint8_unknown_window."""
    low: float = float("nan")
    """1st percentile without padding."""
    high: float = float("nan")
    """95th percentile without padding."""
    inside_air: float = float("nan")
    """Fraction of the body that is air, see `air_inside`; NaN for grey values."""
    histogram: np.ndarray | None = None
    """float64 [bins]: fractions of the voxels between `BIN_EDGES`."""
    sha256: str = ""
    block_means: np.ndarray | None = None
    """float32 [512], of 8 x 8 x 8 blocks; None for a volume with fewer voxels along an axis."""


class Voxels(NamedTuple):
    """Upright voxels [z, y, x] and their conversion to HU."""

    stored: np.ndarray
    scale: tuple[float, float]
    intensity_unit: str


def load_voxels(source: RawVolumeSource | StoredVolumeSource) -> Voxels:
    """The voxels of a volume. 8-bit HU of a window without air count as grey values.

    Raises:
        Refusal: a raw volume cannot be used.
        FileNotFoundError, ValueError: a shard is missing or damaged.
    """
    if isinstance(source, RawVolumeSource):
        raw = READERS[source.record.reader](source.record, source.root)
        unit = raw.hu_source if raw.hu_source == GREY else "hu"
        return Voxels(raw.voxels, raw.scale, unit)
    index, scale, unit = _open_index(source.index), (1.0, 0.0), source.intensity_unit
    window = decode_metadata(index.table.schema).get("intensity", {}).get("window")
    if window is not None and unit not in BIN_EDGES:
        low, high = window
        scale, unit = (((high - low) / 255, low), "hu") if low <= AIR_HU[1] else (scale, GREY)
    return Voxels(index.volume(source.row), scale, unit)


def measure(source: RawVolumeSource | StoredVolumeSource) -> VolumeStatistics:
    """Statistics of a volume; one that cannot be read has a reason code."""
    try:
        return voxel_statistics(load_voxels(source))
    except Refusal as refusal:
        return VolumeStatistics(refusal.code)
    except (FileNotFoundError, ValueError):
        return VolumeStatistics("unreadable")
    except Exception:  # one strange volume must not end a run of hours
        return VolumeStatistics("unknown")


def measure_all(sources: Sequence[RawVolumeSource | StoredVolumeSource], workers: int) -> Iterator[VolumeStatistics]:
    """`measure` of every source, in order, in parallel processes if there are enough volumes."""
    _open_index.cache_clear()  # files may have changed
    workers = min(workers, -(-len(sources) // 4))
    if workers <= 1:
        yield from map(measure, sources)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent) as pool:
        yield from pool.map(measure, sources, chunksize=4)


def voxel_statistics(voxels: Voxels) -> VolumeStatistics:
    """Measures a volume slab by slab, without a second copy of it."""
    shape, is_hu = voxels.stored.shape, voxels.intensity_unit == "hu"
    edges = [np.linspace(0, length, BLOCKS + 1).astype(int) for length in shape]
    sums = np.empty((shape[0], BLOCKS, BLOCKS)) if min(shape) >= BLOCKS else None
    digest = hashlib.sha256()
    for start in range(0, shape[0], _SLAB):
        slab = to_hu(voxels, slice(start, start + _SLAB))
        digest.update(slab.astype(np.int16).tobytes())
        if sums is not None:
            rows = np.add.reduceat(slab, edges[1][:-1], axis=1, dtype=np.float64)
            sums[start : start + len(slab)] = np.add.reduceat(rows, edges[2][:-1], axis=2)
    small = to_hu(voxels, tuple(slice(None, None, -(-length // SUBSAMPLED_SIZE)) for length in shape))
    if small.min() == small.max():
        return VolumeStatistics("constant_image", shape, sha256=digest.hexdigest())
    measured = small[small > PADDING_HU] if is_hu and (small > PADDING_HU).any() else small.ravel()
    bins = BIN_EDGES[voxels.intensity_unit]
    counts, _ = np.histogram(measured.clip(bins[0], bins[-1]), bins)
    low, high = np.percentile(measured, (1, 95))
    return VolumeStatistics(
        shape=shape,
        intensity_unit=voxels.intensity_unit,
        low=float(low),
        high=float(high),
        inside_air=air_inside(small) if is_hu else float("nan"),
        histogram=counts / counts.sum(),
        sha256=digest.hexdigest(),
        block_means=None if sums is None else _block_means(sums, edges),
    )


def to_hu(voxels: Voxels, part: slice | tuple[slice, ...]) -> np.ndarray:
    """float32 HU (or grey values) of a part, rounded and clipped to the range of int16."""
    values = voxels.stored[part].astype(np.float32)
    if voxels.scale != (1.0, 0.0):
        values = values * np.float32(voxels.scale[0]) + np.float32(voxels.scale[1])
    return np.clip(np.rint(values), -32768, 32767)


@lru_cache(maxsize=8)
def _open_index(path: Path) -> VolumeIndex:
    return VolumeIndex(path)


def _block_means(sums: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    depth, height, width = (np.diff(edge) for edge in edges)
    sizes = depth[:, None, None] * height[:, None] * width
    return (np.add.reduceat(sums, edges[0][:-1], axis=0) / sizes).astype(np.float32).ravel()
