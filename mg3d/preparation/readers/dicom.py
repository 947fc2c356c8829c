"""DICOM series in Hounsfield units, from one file per slice or from enhanced multi-frame files."""

import warnings
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import AIR_HU, PADDING_HU, HuRescale, check_trusted_hu
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom_series import Header, choose_series, load_pydicom, read_dataset, read_headers
from mg3d.preparation.readers.dicom_stack import stack_series
from mg3d.preparation.records import Change, RawVolume, VolumeRecord

_INT16 = np.iinfo(np.int16)


def read_dicom(record: VolumeRecord, root: Path) -> RawVolume:
    """The chest series of a folder, or the series of one slice, in HU by each slice's RescaleSlope and RescaleIntercept.

    Padding outside the field of view becomes `PADDING_HU`.

    Raises:
        Refusal: as `read_headers`, `choose_series`, `stack_series`, `geometry.raw_volume`; codec_missing, dicom_damaged,
            duplicate_slices, hu_ambiguous, constant_image.
    """
    pydicom = load_pydicom()
    headers, n_other_series = choose_series(read_headers(root / record.files[0]))
    stack = stack_series(headers)
    volume = np.empty((len(stack.slices), *stack.positions[0][0].size), np.int16)

    @lru_cache(maxsize=2)
    def plane(position: int) -> np.ndarray:
        first, *copies = (_read_plane(pydicom, header, position) for header in stack.positions[position])
        if any(not np.array_equal(first, copy) for copy in copies):
            raise Refusal("duplicate_slices", f"at slice {position + 1} of {len(stack.positions)}")
        return first

    for index, (lower, upper, weight) in enumerate(stack.slices):
        mixed = (1 - weight) * plane(lower) + weight * plane(upper) if weight else plane(lower)
        volume[index] = np.rint(mixed)
    changes = check_trusted_hu(volume)
    if changes and not all(header.rescale for header in headers):
        raise Refusal("hu_ambiguous", f"{changes[0].detail}, and slices without RescaleSlope and RescaleIntercept")
    changes += stack.changes
    changes += [Change("other_series", f"{n_other_series} others")] if n_other_series else []
    return geometry.raw_volume(volume.transpose(2, 1, 0), stack.affine, HuRescale("dicom_header", 1.0, 0.0), changes)


def _read_plane(pydicom: ModuleType, header: Header, position: int) -> np.ndarray:
    """int16 HU [row, column] of one slice; errors name its position, counted from the lowest."""
    where = f"slice {position + 1} from below"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = _open(pydicom, header.path)
            syntax = dataset.file_meta.TransferSyntaxUID
            if syntax.is_compressed and not can_decode(syntax):
                raise Refusal("codec_missing", syntax.name)
            stored = dataset.pixel_array if header.frame is None else pydicom.pixels.pixel_array(dataset, index=header.frame)
            slope, intercept = header.rescale or (dataset.get("RescaleSlope", 1.0), dataset.get("RescaleIntercept", 0.0))
            padding = _padding_range(dataset)
        except (Refusal, MemoryError):
            raise
        except Exception as error:  # a damaged file raises anything, and the message may quote a patient
            raise Refusal("dicom_damaged", f"{where} ({type(error).__name__})") from None
    if stored.shape != header.size or not np.isfinite([slope, intercept]).all() or not slope:
        raise Refusal("dicom_damaged", f"{where}: pixels or rescaling contradict the header")
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if padding is not None:
        is_padding = (stored >= padding[0]) & (stored <= padding[1])
        # Some headers declare 0 HU as padding; values above air are measurements.
        hu[is_padding & (hu < AIR_HU[1])] = PADDING_HU
    return np.rint(hu).clip(_INT16.min, _INT16.max).astype(np.int16)


@lru_cache(maxsize=1)
def _open(pydicom: ModuleType, path: Path) -> Any:
    """The data set of a file, kept for its other frames."""
    return read_dataset(pydicom, path)


def can_decode(syntax: Any) -> bool:
    """Whether an installed package decodes a transfer syntax."""
    try:
        from pydicom.pixels import get_decoder

        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _padding_range(dataset: Any) -> tuple[int, int] | None:
    """Lowest and highest stored value that is padding."""
    ends = [dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    ends = [int(end) for end in ends if end is not None]
    if not ends:
        return None
    is_signed, bits = dataset.get("PixelRepresentation") == 1, int(dataset.BitsAllocated)
    # Some scanners write a signed value as if it were unsigned.
    ends = [end - (1 << bits) if is_signed and end >= 1 << (bits - 1) else end for end in ends]
    return min(ends), max(ends)
