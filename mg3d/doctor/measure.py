"""What the voxels of a volume say: air, padding, air inside the body, a histogram, and signatures to find copies by."""

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
from mg3d.doctor.catalogue import ArrowPlace, RawPlace
from mg3d.preparation.engines import follow_parent
from mg3d.preparation.hounsfield import AIR_HU, PADDING_HU, air_peak
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.registry import READERS

HU_EDGES = np.arange(-1200, 1801, 25)
GREY_EDGES = np.arange(0, 257, 4)
BLOCKS = 8
"""Blocks along each axis whose means are a volume's signature."""
SMALL = 64
"""Most voxels along an axis of the small volume."""
AIR_BELOW_HU = -500.0
_SLAB = 16


class VolumeFacts(NamedTuple):
    """What was measured of one volume."""

    refused: str = ""
    """Reason code when it cannot be used."""
    detail: str = ""
    shape: tuple[int, ...] = ()
    """z y x."""
    spacing_mm: tuple[float, ...] = ()
    """z y x; empty = not documented."""
    hu_source: str = ""
    unit: str = ""
    """hu or uint8_unknown_window."""
    padding: float = 0.0
    """Share of voxels that are a scanner's filling."""
    air_peak: float = float("nan")
    low: float = float("nan")
    """First percentile, padding left out."""
    high: float = float("nan")
    """95th percentile, padding left out."""
    inside_air: float = float("nan")
    """Share of air in the body, see `air_inside`; nan for grey values."""
    histogram: np.ndarray | None = None
    """float64 [bins], shares of the voxels between HU_EDGES or GREY_EDGES."""
    sha256: str = ""
    blocks: np.ndarray | None = None
    """float32 [512], means of 8 x 8 x 8 blocks; None for a volume of fewer voxels along an axis."""


class Voxels(NamedTuple):
    """Upright voxels [z, y, x] and how they become HU."""

    stored: np.ndarray
    scale: tuple[float, float]
    unit: str
    hu_source: str
    spacing_mm: tuple[float, ...]


def load(place: RawPlace | ArrowPlace) -> Voxels:
    """The voxels at a place.

    Raises:
        Refusal: a raw volume cannot be used.
        FileNotFoundError, ValueError: a shard is missing or damaged.
    """
    if isinstance(place, ArrowPlace):
        index = _index(place.index)
        spacing = index.table["spacing_mm"][place.row].as_py() or ()
        hu_source = index.table["hu_source"][place.row].as_py()
        scale, unit = _scale(index, place.unit)
        return Voxels(index.volume(place.row), scale, unit, hu_source, tuple(spacing))
    raw = READERS[place.record.reader](place.record, place.root)
    unit = raw.hu_source if raw.hu_source == "uint8_unknown_window" else "hu"
    return Voxels(raw.voxels, raw.scale, unit, raw.hu_source, tuple(raw.spacing_mm or ()))


def _scale(index: VolumeIndex, unit: str) -> tuple[tuple[float, float], str]:
    """Slope and intercept to HU, and the unit that this gives; an 8-bit window of HU that leaves out air counts as grey."""
    window = decode_metadata(index.table.schema).get("intensity", {}).get("window")
    if window is None or unit in {"hu", "uint8_unknown_window"}:
        return (1.0, 0.0), unit
    low, high = window
    return (((high - low) / 255, low), "hu") if low <= AIR_HU[1] else ((1.0, 0.0), "uint8_unknown_window")


@lru_cache(maxsize=8)
def _index(path: Path) -> VolumeIndex:
    return VolumeIndex(path)


def measure(place: RawPlace | ArrowPlace) -> VolumeFacts:
    """What the voxels at a place say; a volume that cannot be read is told by its reason."""
    try:
        return facts_of(load(place))
    except Refusal as refusal:
        return VolumeFacts(refusal.code, refusal.detail)
    except (FileNotFoundError, ValueError) as error:  # its message may name a file, hence a person
        return VolumeFacts("unreadable", type(error).__name__)
    except Exception as error:  # one strange volume must not end an examination of hours
        return VolumeFacts("unknown", type(error).__name__)


def facts_of(voxels: Voxels) -> VolumeFacts:
    """Measures a volume in slabs, so that no second copy of it is made."""
    shape = voxels.stored.shape
    edges = [np.linspace(0, length, BLOCKS + 1).astype(int) for length in shape]
    planes = np.empty((shape[0], BLOCKS, BLOCKS)) if min(shape) >= BLOCKS else None
    digest = hashlib.sha256()
    for start in range(0, shape[0], _SLAB):
        slab = to_hu(voxels, slice(start, start + _SLAB))
        digest.update(slab.astype(np.int16).tobytes())
        if planes is not None:
            rows = np.add.reduceat(slab, edges[1][:-1], axis=1, dtype=np.float64)
            planes[start : start + len(slab)] = np.add.reduceat(rows, edges[2][:-1], axis=2)
    small = small_volume(voxels)
    measured = small[small > PADDING_HU] if voxels.unit == "hu" else small.ravel()
    bins = HU_EDGES if voxels.unit == "hu" else GREY_EDGES
    measured = measured if measured.size else small.ravel()
    counts = count_bins(measured, bins)
    low, high = np.percentile(measured, (1, 95))
    is_hu = voxels.unit == "hu"
    if float(small.min()) == float(small.max()):
        return VolumeFacts("constant_image", f"every voxel is {float(small.flat[0]):g}", shape, sha256=digest.hexdigest())
    return VolumeFacts(
        shape=shape,
        spacing_mm=voxels.spacing_mm,
        hu_source=voxels.hu_source,
        unit=voxels.unit,
        padding=float((small <= PADDING_HU).mean()) if is_hu else 0.0,
        air_peak=air_peak(small) if is_hu else float("nan"),
        low=float(low),
        high=float(high),
        inside_air=air_inside(small) if is_hu else float("nan"),
        histogram=counts / counts.sum(),
        sha256=digest.hexdigest(),
        blocks=None if planes is None else _block_means(planes, edges),
    )


def count_bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many values lie between each two of evenly spaced edges; what lies beyond counts in the outer bins."""
    place = ((values - edges[0]) / (edges[1] - edges[0])).astype(np.int64)
    return np.bincount(np.clip(place, 0, len(edges) - 2), minlength=len(edges) - 1)


def _block_means(planes: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    sums = np.add.reduceat(planes, edges[0][:-1], axis=0)
    depth, height, width = (np.diff(edge) for edge in edges)
    return (sums / (depth[:, None, None] * height[:, None] * width)).astype(np.float32).ravel()


def to_hu(voxels: Voxels, part: slice | tuple[slice, ...]) -> np.ndarray:
    """float32 HU (or grey values) of a part, rounded, within the range of int16."""
    values = voxels.stored[part].astype(np.float32)
    if voxels.scale != (1.0, 0.0):
        values = values * np.float32(voxels.scale[0]) + np.float32(voxels.scale[1])
    return np.clip(np.rint(values), -32768, 32767)


def small_volume(voxels: Voxels, most: int = SMALL) -> np.ndarray:
    """float32 [z, y, x] of every n-th voxel of each axis, so that none is longer than `most`."""
    return to_hu(voxels, tuple(slice(None, None, -(-length // most)) for length in voxels.stored.shape))


def air_inside(volume_hu: np.ndarray) -> float:
    """Share of the body that is air: lungs in a chest, little in a head or an abdomen.

    volume_hu [z, y, x]. In each axial plane a voxel below -500 HU is inside the body when at least three of its four
    neighbours along y and x, at any distance, are not air. The share is those voxels among them and all that is not air.
    """
    tissue = volume_hu >= AIR_BELOW_HU
    before, behind = (np.logical_or.accumulate(tissue, axis=axis) for axis in (1, 2))
    after, beyond = (np.flip(np.logical_or.accumulate(np.flip(tissue, axis), axis=axis), axis) for axis in (1, 2))
    sides = before.astype(np.int8) + after + behind + beyond
    inside = int((~tissue & (sides >= 3)).sum())
    return inside / max(inside + int(tissue.sum()), 1)


def measure_all(places: Sequence[RawPlace | ArrowPlace], workers: int) -> Iterator[VolumeFacts]:
    """`measure` of every place, in order; with processes when there is work for several."""
    _index.cache_clear()  # files may have changed since
    workers = min(workers, -(-len(places) // 4))
    if workers <= 1:
        yield from map(measure, places)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent)
    try:
        yield from pool.map(measure, places, chunksize=4)
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
