"""Folders of DICOM slices in Hounsfield units."""

import importlib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import AIR_HU, PADDING_HU, choose_hu_rescale
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom_headers import Header, choose_series, load_pydicom, read_headers, stack_series
from mg3d.preparation.records import RawVolume, VolumeRecord

_INT16 = np.iinfo(np.int16)


def read_dicom(record: VolumeRecord, root: Path) -> RawVolume:
    """The series of a named slice, or the chest series of a folder, in HU by each slice's slope and intercept.

    Padding outside the field of view becomes `PADDING_HU`.

    Raises:
        Refusal: as `read_headers`, `choose_series`, `stack_series`, `geometry.to_lps`; codec_missing, dicom_damaged,
            duplicate_slices, hu_ambiguous, constant_image.
    """
    pydicom = load_pydicom()
    chosen, others = choose_series(read_headers(root / record.files[0]))
    stack = stack_series(chosen)
    rows, columns = chosen[0].size
    volume = np.empty((int(stack.places[-1]) + 1, rows, columns), np.int16)
    for place, (number, header) in enumerate(zip(stack.places, stack.headers)):
        plane = _plane(pydicom, header)
        if place and number == stack.places[place - 1] and not np.array_equal(plane, volume[number]):
            raise Refusal("duplicate_slices", f"at place {number} of {stack.places[-1] + 1}")
        volume[number] = plane
    choose_hu_rescale(volume, None)
    upright, spacing = geometry.to_lps(volume.transpose(2, 1, 0), stack.affine)
    note = "other series in the folder" if others else ""
    return RawVolume(upright, spacing, "dicom_header", note=note, affine=stack.affine)


def _plane(pydicom: ModuleType, header: Header) -> np.ndarray:
    """int16 HU [row, column] of one slice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = pydicom.dcmread(header.path)
            syntax = found.file_meta.TransferSyntaxUID
            if syntax.is_compressed and not _can_decode(syntax):
                raise Refusal("codec_missing", syntax.name)
            stored = found.pixel_array
            slope, intercept = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
            padding = _padding(found)
        except (Refusal, MemoryError):
            raise
        except Exception as error:  # anything may stand in a damaged file; what it says may quote a patient
            raise Refusal("dicom_damaged", type(error).__name__) from None
    if stored.shape != header.size or not np.isfinite([slope, intercept]).all() or not slope:
        raise Refusal("dicom_damaged", "pixels or rescaling are not what the header says")
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if padding is not None:
        filled = (stored >= padding[0]) & (stored <= padding[1])
        # Some headers call 0 HU padding: what lies above air is a measurement.
        hu[filled & (hu < AIR_HU[1])] = PADDING_HU
    return np.rint(hu).clip(_INT16.min, _INT16.max).astype(np.int16)


def _can_decode(syntax: Any) -> bool:
    try:
        return importlib.import_module("pydicom.pixels").get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _padding(found: Any) -> tuple[int, int] | None:
    """Lowest and highest stored number that is no measurement."""
    ends = [found.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    ends = [int(end) for end in ends if end is not None]
    if not ends:
        return None
    signed = found.get("PixelRepresentation") == 1
    half, whole = 1 << (int(found.BitsAllocated) - 1), 1 << int(found.BitsAllocated)
    # Written as if unsigned, which some machines do.
    ends = [end - whole if signed and end >= half else end for end in ends]
    return min(ends), max(ends)
