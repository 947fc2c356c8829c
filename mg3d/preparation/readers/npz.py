"""Arrays in `.npz` files: Rad-ChestCT as distributed, and CT-RATE as CT-CLIP's preprocessing stores it."""

import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError

import numpy as np

from mg3d.preparation.geometry import check_slices, note_length
from mg3d.preparation.hounsfield import MIN_TISSUE_FRACTION, TISSUE_HU, choose_hu_rescale
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.limits import MAX_BYTES, check_range, check_shape
from mg3d.preparation.records import RawVolume, VolumeRecord

RAD_CHESTCT_MM = (0.8, 0.8, 0.8)
CT_CLIP_MM = (1.5, 0.75, 0.75)
"""z y x."""


def read_npz(record: VolumeRecord, root: Path) -> RawVolume:
    """An array of either kind, by its key.

    Raises:
        Refusal: array_damaged without one of the keys; else as `read_rad_chestct` or `read_ct_clip`.
    """
    try:
        with zipfile.ZipFile(root / record.files[0]) as archive:
            names = archive.namelist()
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except (OSError, zipfile.BadZipFile):
        raise Refusal("array_damaged") from None
    for key, read in {"ct": read_rad_chestct, "arr_0": read_ct_clip}.items():
        if f"{key}.npy" in names:
            return read(record, root)
    raise Refusal("array_damaged", "expected an array `ct` (Rad-ChestCT) or `arr_0` (CT-CLIP)")


def read_rad_chestct(record: VolumeRecord, root: Path) -> RawVolume:
    """Key `ct`: HU [z, y, x] at 0.8 mm, slices from superior to inferior.

    Raises:
        Refusal: as `read_array`; too_few_slices, too_long, hu_ambiguous, constant_image.
    """
    stored = read_array(root / record.files[0], "ct", "iu")
    check_slices(len(stored), RAD_CHESTCT_MM[0])
    rescale = choose_hu_rescale(stored, None)
    changes = tuple(note_length(stored, RAD_CHESTCT_MM))
    return RawVolume(stored[::-1], RAD_CHESTCT_MM, rescale.source, (rescale.slope, rescale.intercept), changes)


def read_ct_clip(record: VolumeRecord, root: Path) -> RawVolume:
    """Key `arr_0`: HU / 1000 clipped to -1..1, [z, x, y] at 1.5, 0.75, 0.75 mm, x to the left and y to posterior.

    Raises:
        Refusal: as `read_rad_chestct`; hu_ambiguous also for other ranges, or if the intercept was added twice.
    """
    stored = read_array(root / record.files[0], "arr_0", "f")
    check_slices(len(stored), CT_CLIP_MM[0])
    low, high = float(stored.min()), float(stored.max())
    if not (low >= -1.001 and high <= 1.001):
        raise Refusal("hu_ambiguous", f"{low:g} to {high:g}, expected -1 to 1")
    check_range(low, high)
    tissue = float((stored[::4, ::4, ::4] > TISSUE_HU / 1000).mean())
    if tissue < MIN_TISSUE_FRACTION:
        raise Refusal("hu_ambiguous", f"{tissue:.1%} of the voxels above {TISSUE_HU} HU: the intercept was added twice")
    choose_hu_rescale(stored[::2] * np.float32(1000), None)
    changes = tuple(note_length(stored, CT_CLIP_MM))
    return RawVolume(stored.transpose(0, 2, 1), CT_CLIP_MM, "ct_clip", (1000.0, 0.0), changes)


def read_array(path: Path, key: str, kinds: str) -> np.ndarray:
    """The 3D array stored under `key`. Nothing is unpickled, and the checksum is verified.

    Args:
        path: a `.npz` file, compressed or not.
        key: name of the array.
        kinds: allowed values of `numpy.dtype.kind`, e.g. "iu".

    Raises:
        Refusal: missing_file, unreadable, array_damaged, not_3d, too_large.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
            if archive.getinfo(f"{key}.npy").file_size > MAX_BYTES:
                raise Refusal("too_large", f"more than {MAX_BYTES / 1e9:g} GB")
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1):
                raise Refusal("array_damaged", "more data than the array's shape")
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError, MemoryError, TokenError) as error:
        raise Refusal("array_damaged", type(error).__name__) from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    if array.dtype.kind not in kinds:
        raise Refusal("array_damaged", f"values of type {array.dtype}")
    check_shape(array.shape, array.itemsize)
    return array
