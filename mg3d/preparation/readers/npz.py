"""Arrays in `.npz` files: Rad-ChestCT as distributed, CT-RATE as CT-CLIP's preprocessing leaves it. Nothing is unpickled."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mg3d.preparation.geometry import MAX_LENGTH_MM, MIN_SLICES
from mg3d.preparation.hounsfield import MIN_TISSUE_FRACTION, TISSUE_HU, choose_hu_rescale
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.nifti import MAX_BYTES
from mg3d.preparation.records import RawVolume, VolumeRecord

RAD_CHESTCT_MM = (0.8, 0.8, 0.8)
CT_CLIP_MM = (1.5, 0.75, 0.75)
"""z y x."""


def read_rad_chestct(record: VolumeRecord, root: Path) -> RawVolume:
    """Key `ct`, HU [z, y, x] of 0.8 mm. The file's z runs down: it is turned.

    Raises:
        Refusal: missing_file, unreadable, array_damaged, not_3d, too_large, too_few_slices, too_long, hu_ambiguous,
            constant_image.
    """
    stored = read_array(root / record.files[0], "ct", "iu")
    _check_length(len(stored), RAD_CHESTCT_MM[0])
    rescale = choose_hu_rescale(stored, None)
    return RawVolume(stored[::-1], RAD_CHESTCT_MM, rescale.source, (rescale.slope, rescale.intercept))


def read_ct_clip(record: VolumeRecord, root: Path) -> RawVolume:
    """Key `arr_0`, HU / 1000 cut to -1..1, [z, x, y] of 1.5, 0.75, 0.75 mm, where x runs to the left and y to posterior.

    Raises:
        Refusal: as `read_rad_chestct`; hu_ambiguous also for other numbers, or when the intercept was added twice.
    """
    stored = read_array(root / record.files[0], "arr_0", "f")
    _check_length(len(stored), CT_CLIP_MM[0])
    low, high = float(stored.min()), float(stored.max())
    if not (low >= -1.001 and high <= 1.001):
        raise Refusal("hu_ambiguous", f"{low:g} to {high:g}, where -1 to 1 is expected")
    tissue = float((stored[::4, ::4, ::4] > TISSUE_HU / 1000).mean())
    if low == high:
        raise Refusal("constant_image", f"every voxel is {low:g}")
    if tissue < MIN_TISSUE_FRACTION:
        raise Refusal("hu_ambiguous", f"{tissue:.1%} of the voxels above {TISSUE_HU} HU: the intercept was added twice")
    choose_hu_rescale(stored[::2] * np.float32(1000), None)
    return RawVolume(stored.transpose(0, 2, 1), CT_CLIP_MM, "ct_clip", (1000.0, 0.0))


def read_array(path: Path, key: str, kinds: str) -> np.ndarray:
    """The array of three axes that `path` holds under `key`; its sum is checked.

    Args:
        path: a `.npz` file, compressed or not.
        key: name of the array.
        kinds: allowed kinds of numbers, letters of `numpy.dtype.kind`.

    Raises:
        Refusal: missing_file, unreadable, array_damaged, not_3d, too_large.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
            reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
            shape, by_column, kind = reader(stream)
            _check(shape, kind, kinds)
            content = stream.read(int(np.prod(shape)) * kind.itemsize)
            if stream.read(1):  # reaching the end also checks the sum
                raise Refusal("array_damaged", "more numbers than its shape")
        return np.frombuffer(content, kind).reshape(shape, order="F" if by_column else "C")
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Refusal("array_damaged", type(error).__name__) from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None


def _check(shape: tuple[int, ...], kind: np.dtype, kinds: str) -> None:
    if kind.kind not in kinds:
        raise Refusal("array_damaged", f"numbers of type {kind}")
    if len(shape) != 3 or not all(shape):
        raise Refusal("not_3d", f"shape {'x'.join(map(str, shape))}")
    if int(np.prod(shape, dtype=object)) * kind.itemsize > MAX_BYTES:
        raise Refusal("too_large", f"shape {'x'.join(map(str, shape))}")


def _check_length(slices: int, thick_mm: float) -> None:
    if slices < MIN_SLICES:
        raise Refusal("too_few_slices", f"{slices} slices, at least {MIN_SLICES} expected")
    if slices * thick_mm > MAX_LENGTH_MM:
        raise Refusal("too_long", f"{slices * thick_mm:.0f} mm")
