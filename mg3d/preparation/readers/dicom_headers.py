"""DICOM series by their headers: which files belong together, which series is the chest, how its slices lie in space."""

import importlib
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from mg3d.preparation.quarantine import Refusal

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LARGEST_SIDE = 2048
LARGEST_VOLUME = 1 << 31
"""Pixels."""
TILT_DEGREES = 1.0
GAP_SHARE = 0.1
"""How much a gap between two slices may differ from the usual one."""
_SAME_DIRECTION = 1e-3
_AXIAL = 0.9
_OFF_LINE_MM = 1.0
_TAGS = [
    "SOPClassUID", "ImageType", "Modality", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
]  # fmt: skip


class Header(NamedTuple):
    """What decides where a slice belongs."""

    path: Path
    series: str
    modality: str
    kind: str
    """SOP class."""
    image_type: tuple[str, ...]
    frames: int
    samples: int
    size: tuple[int, int]
    """Rows, columns."""
    spacing_mm: tuple[float, float] | None
    """Between rows, between columns."""
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    """Cosines (LPS) of a row and of a column."""


class Stack(NamedTuple):
    """A series in order of its places along the normal; slices of one place follow one another."""

    headers: list[Header]
    affine: np.ndarray
    """Of voxels [column, row, slice] to RAS mm."""
    places: np.ndarray
    """Number of the place of every header, from 0."""


def load_pydicom() -> ModuleType:
    """The package, quiet: what it warns of may quote a patient.

    Raises:
        Refusal: codec_missing, when it is not installed.
    """
    try:
        package = importlib.import_module("pydicom")
    except ImportError:
        raise Refusal("codec_missing", "pydicom is not installed") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return package


def read_headers(path: Path) -> list[Header]:
    """Headers of all DICOM files below the folder `path`, in path order, without files of other formats.

    If `path` is one slice, only the slices of its series in the same folder are returned.

    Raises:
        Refusal: missing_file, unreadable, dicom_damaged (no file is DICOM), codec_missing.
    """
    if path.is_file():
        series = read_series_uid(path)
        return [header for header in read_headers(path.parent) if header.series == series and header.path.parent == path.parent]
    return _headers_below(path)


def read_series_uid(path: Path) -> str:
    """SeriesInstanceUID of one DICOM file.

    Raises:
        Refusal: unreadable, dicom_damaged (not a DICOM file of a series), codec_missing.
    """
    try:
        header = _header(load_pydicom(), path)
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    if header is None or not header.series:
        raise Refusal("dicom_damaged", "not a DICOM file with a SeriesInstanceUID")
    return header.series


def _headers_below(folder: Path) -> list[Header]:
    pydicom = load_pydicom()
    if not folder.is_dir():
        raise Refusal("missing_file", "no folder of a series")
    headers, others = [], 0
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR"):
            header = _header(pydicom, path)
            others += header is None
            headers += [header] if header else []
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    if not headers:
        raise Refusal("dicom_damaged", f"none of {others} files is DICOM")
    return headers


def is_dicom(path: Path) -> bool:
    """Whether a file carries DICOM's mark."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _header(pydicom: ModuleType, path: Path) -> Header | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        except OSError:
            raise
        except Exception:  # anything may stand in a damaged file; what it says may quote a patient
            if not is_dicom(path):
                return None
            raise Refusal("dicom_damaged", "a header that cannot be read") from None
        try:
            return Header(
                path=path,
                series=str(found.get("SeriesInstanceUID", "")),
                modality=str(found.get("Modality", "")),
                kind=str(found.get("SOPClassUID", "")),
                image_type=tuple(str(word).upper() for word in _several(found.get("ImageType"))),
                frames=int(found.get("NumberOfFrames") or 1),
                samples=int(found.get("SamplesPerPixel") or 1),
                size=(int(found.get("Rows") or 0), int(found.get("Columns") or 0)),
                spacing_mm=_numbers(found.get("PixelSpacing"), 2),
                position_mm=_numbers(found.get("ImagePositionPatient"), 3),
                orientation=_numbers(found.get("ImageOrientationPatient"), 6),
            )
        except Exception:
            raise Refusal("dicom_damaged", "a header whose values are of another kind") from None


def choose_series(headers: Sequence[Header]) -> tuple[list[Header], int]:
    """The headers of the chest's series, and how many other series there are.

    Axial CT slices, no scout or capture; of these the series with most places, then the thinnest, then the first by its UID.

    Raises:
        Refusal: not_ct, no_axial_series.
    """
    by_series = defaultdict(list)
    for header in headers:
        by_series[header.series].append(header)
    ct = {name: part for name, part in by_series.items() if part[0].modality == "CT"}
    if not ct:
        words = Counter(part[0].modality if part[0].modality.isalnum() else "unknown" for part in by_series.values())
        raise Refusal("not_ct", ", ".join(f"{number} series of {word[:8]}" for word, number in words.most_common(4)))
    if all(part[0].kind == ENHANCED_CT or part[0].frames > 1 for part in ct.values()):
        raise Refusal("not_ct", "multi-frame CT; convert it to one file a slice, or to NIfTI")
    kept = {name: [header for header in part if _is_axial_slice(header)] for name, part in ct.items()}
    kept = {name: part for name, part in kept.items() if part}
    if not kept:
        raise Refusal("no_axial_series", f"{len(ct)} CT series")

    def rank(name: str) -> tuple[int, float, str]:
        along = sorted({round(_along(header), 3) for header in kept[name]})
        gap = float(np.median(np.diff(along))) if len(along) > 1 else 0.0
        return -len(along), gap, name

    best = min(kept, key=rank)
    return kept[best], len(by_series) - 1


def stack_series(headers: Sequence[Header]) -> Stack:
    """One series in space.

    Raises:
        Refusal: too_large, not_ct, nan_spacing, shape_mismatch, slices_disagree, gantry_tilt, missing_slices, too_few_slices.
    """
    first = headers[0]
    _check_sizes(headers)
    if any(header.spacing_mm is None for header in headers):
        raise Refusal("nan_spacing", "a slice without PixelSpacing")
    directions = np.array([header.orientation for header in headers])
    if np.abs(directions - directions[0]).max() > _SAME_DIRECTION:
        raise Refusal("slices_disagree", "directions differ")
    if any(not np.allclose(header.spacing_mm, first.spacing_mm, rtol=1e-3) for header in headers):
        raise Refusal("shape_mismatch", "pixels of different size")
    along = np.array([_along(header) for header in headers])
    order = np.argsort(along, kind="stable")
    along, ordered = along[order], [headers[place] for place in order]
    places = np.concatenate([[0], np.cumsum(np.diff(along) > 0.01)])
    gap = _gap(along[np.unique(places, return_index=True)[1]])
    positions = np.array([header.position_mm for header in ordered])
    row, column, normal = _axes(first)
    _check_line(positions, along, normal)
    to_lps = np.stack([row * first.spacing_mm[1], column * first.spacing_mm[0], normal * gap, positions[0]], axis=1)
    return Stack(ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.vstack([to_lps, [0, 0, 0, 1]]), places)


def _check_sizes(headers: Sequence[Header]) -> None:
    rows, columns = headers[0].size
    largest = max(max(header.size) for header in headers)
    if largest > LARGEST_SIDE or rows * columns * len(headers) > LARGEST_VOLUME:
        raise Refusal("too_large", f"{len(headers)} slices, up to {largest} pixels a side; {LARGEST_SIDE} are allowed")
    if any(header.samples != 1 for header in headers):
        raise Refusal("not_ct", "colour pictures")
    if len({header.size for header in headers}) > 1 or not rows * columns:
        raise Refusal("shape_mismatch", "slices of different size, or without one")


def _gap(along: np.ndarray) -> float:
    """The usual distance of neighbours in mm."""
    if len(along) < 2:
        raise Refusal("too_few_slices", f"{len(along)} places")
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    wrong = np.abs(gaps - usual) > GAP_SHARE * usual
    if wrong.any():
        found = f"{int(wrong.sum())} of {len(gaps)} gaps, up to {gaps.max():.2f} mm, differ from {usual:.2f} mm"
        raise Refusal("missing_slices", found)
    return float((along[-1] - along[0]) / len(gaps))


def _check_line(positions: np.ndarray, along: np.ndarray, normal: np.ndarray) -> None:
    """Refuses slices that wander sideways as they go along the normal, evenly (a tilt) or not."""
    aside = positions - positions[0] - np.outer(along - along[0], normal)
    slope = aside[-1] / (along[-1] - along[0])
    tilt = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    if tilt > TILT_DEGREES:
        raise Refusal("gantry_tilt", f"{tilt:.1f} degrees")
    off = np.linalg.norm(aside - np.outer(along - along[0], slope), axis=1).max()
    if off > _OFF_LINE_MM:
        raise Refusal("slices_disagree", f"{off:.1f} mm off their line")


def _is_axial_slice(header: Header) -> bool:
    if header.kind.startswith(SECONDARY_CAPTURE) or {"LOCALIZER", "SCOUT"} & set(header.image_type) or header.frames > 1:
        return False
    if header.position_mm is None or header.orientation is None:
        return False
    return abs(_axes(header)[2][2]) > _AXIAL


def _axes(header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors (LPS) along a row, along a column, and of the normal, which points up."""
    row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    normal = np.cross(row, column)
    return row, column, normal if normal[2] >= 0 else -normal


def _along(header: Header) -> float:
    return float(np.dot(header.position_mm, _axes(header)[2]))


def _several(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value or ())


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    numbers = tuple(float(number) for number in _several(value))
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
