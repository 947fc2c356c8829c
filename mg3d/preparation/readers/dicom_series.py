"""DICOM headers: group files into series, choose the chest series, and order its slices in space."""

import importlib
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from mg3d.preparation.geometry import ras_affine
from mg3d.preparation.quarantine import Refusal

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
MAX_SIDE = 2048
MAX_VOXELS = 1 << 31
GAP_TOLERANCE = 0.1
"""Allowed deviation of the gap between two slices, as a fraction of the median gap."""
_DIRECTION_TOLERANCE = 1e-3
_MIN_AXIAL_COSINE = 0.8
_MAX_OFFSET_MM = 1.0
_SAME_POSITION_MM = 0.01
_KEY_TAGS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
_TAGS = [
    *_KEY_TAGS, "SOPClassUID", "ImageType", "Modality", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
    "RescaleSlope", "RescaleIntercept",
]  # fmt: skip


class SeriesKey(NamedTuple):
    """Identity of a series. The UID alone is not enough: programs that remove names may give all series one UID."""

    patient_id: str
    study_uid: str
    series_uid: str


class Header(NamedTuple):
    """The tags of one file that decide to which series it belongs and where it is in space."""

    path: Path
    series: "SeriesKey"
    modality: str
    sop_class: str
    image_type: tuple[str, ...]
    frames: int
    samples: int
    size: tuple[int, int]
    """Rows, columns."""
    spacing_mm: tuple[float, float] | None
    """Between rows, between columns."""
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    """Direction cosines (LPS) of a row and of a column."""
    has_rescale: bool
    """Whether slope and intercept are given."""

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit vectors (LPS) along a row, along a column, and the normal, which points to superior."""
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        normal = np.cross(row, column)
        return row, column, normal if normal[2] >= 0 else -normal

    @property
    def height_mm(self) -> float:
        """Position along the normal."""
        return float(np.dot(self.position_mm, self.axes[2]))

    @property
    def is_axial_slice(self) -> bool:
        """Whether this is a single axial image, not a scout or a screen capture."""
        if self.sop_class.startswith(SECONDARY_CAPTURE) or {"LOCALIZER", "SCOUT"} & set(self.image_type) or self.frames > 1:
            return False
        return self.position_mm is not None and self.orientation is not None and abs(self.axes[2][2]) > _MIN_AXIAL_COSINE


class Stack(NamedTuple):
    """A series, sorted from inferior to superior."""

    headers: list[Header]
    affine: np.ndarray
    """Voxels [column, row, slice] to RAS mm."""
    indices: np.ndarray
    """Slice index of every header, from 0; equal for headers of one position."""


def load_pydicom() -> ModuleType:
    """Import pydicom and silence its logger, whose warnings may quote a patient.

    Raises:
        Refusal: codec_missing if it is not installed.
    """
    try:
        package = importlib.import_module("pydicom")
    except ImportError:
        raise Refusal("codec_missing", "pydicom is not installed") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return package


def read_headers(path: Path) -> list[Header]:
    """Headers of the DICOM files of a folder, in path order (see `series_files`), or of the series of one slice.

    Raises:
        Refusal: missing_file, unreadable, dicom_damaged (no file is DICOM), codec_missing.
    """
    try:
        files = series_files(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Refusal("missing_file", "no folder of a series") from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    if path.is_dir():
        return _read_files(files)
    series = read_series_key(path)
    return [header for header in _read_files(files) if header.series == series]


def series_files(path: Path) -> list[Path]:
    """Files that may belong to the series of a folder, or of one slice: those next to the slice.

    The subfolders of a folder with DICOM files hold other series and are not read.

    Raises:
        OSError: a folder or file cannot be read, or does not exist.
    """
    folder = path.parent if path.is_file() else path
    alone = path.is_file() or has_slices(path)
    return [file for file in (folder.iterdir() if alone else folder.rglob("*")) if file.is_file()]


def has_slices(folder: Path) -> bool:
    """Whether the folder itself contains a DICOM file, not only its subfolders."""
    return any(path.is_file() and is_dicom(path) for path in folder.iterdir())


def read_series_key(path: Path) -> SeriesKey:
    """The series of one DICOM file.

    Raises:
        Refusal: unreadable, dicom_damaged (not a DICOM file of a series), codec_missing.
    """
    header = _read_files([path])[0]
    if not header.series.series_uid:
        raise Refusal("dicom_damaged", "no SeriesInstanceUID")
    return header.series


def is_dicom(path: Path) -> bool:
    """Whether a file starts with the DICOM preamble."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def choose_series(headers: Sequence[Header]) -> tuple[list[Header], int]:
    """Headers of the chest series, and the number of other series.

    The axial CT series (no scouts, no captures) with most slice positions; then the thinnest; then the first UID.

    Raises:
        Refusal: not_ct, no_axial_series, several_studies.
    """
    axial = axial_series(headers)
    n_patients, n_studies = len({key.patient_id for key in axial}), len({key[:2] for key in axial})
    if n_studies > 1:
        raise Refusal("several_studies", f"{n_studies} studies of {n_patients} patients")

    def rank(key: SeriesKey) -> tuple[int, float, str]:
        heights = sorted({round(header.height_mm, 3) for header in axial[key]})
        gap = float(np.median(np.diff(heights))) if len(heights) > 1 else 0.0
        return -len(heights), gap, key.series_uid

    return axial[min(axial, key=rank)], len({header.series for header in headers}) - 1


def axial_series(headers: Sequence[Header]) -> dict[SeriesKey, list[Header]]:
    """The axial slices of each CT series that has any.

    Raises:
        Refusal: not_ct, no_axial_series.
    """
    by_key: dict[SeriesKey, list[Header]] = defaultdict(list)
    for header in headers:
        by_key[header.series].append(header)
    ct = {key: series for key, series in by_key.items() if series[0].modality == "CT"}
    if not ct:
        names = (series[0].modality for series in by_key.values())
        modalities = Counter(name[:8] if name.isalnum() else "unknown" for name in names)
        raise Refusal("not_ct", ", ".join(f"{count} series of {name}" for name, count in modalities.most_common(4)))
    if all(series[0].sop_class == ENHANCED_CT or series[0].frames > 1 for series in ct.values()):
        raise Refusal("not_ct", "multi-frame CT; convert it to one file per slice, or to NIfTI")
    axial = {key: [header for header in series if header.is_axial_slice] for key, series in ct.items()}
    axial = {key: series for key, series in axial.items() if series}
    if not axial:
        raise Refusal("no_axial_series", f"{len(ct)} CT series")
    return axial


def stack_series(headers: Sequence[Header]) -> Stack:
    """Sort the slices of one series along their normal.

    Raises:
        Refusal: too_large, not_ct, nan_spacing, shape_mismatch, slices_disagree, missing_slices, too_few_slices.
    """
    first = headers[0]
    _check_same_grid(headers)
    heights = np.array([header.height_mm for header in headers])
    order = np.argsort(heights, kind="stable")
    heights, ordered = heights[order], [headers[index] for index in order]
    indices = np.concatenate([[0], np.cumsum(np.diff(heights) > _SAME_POSITION_MM)])
    gap = _slice_gap(heights[np.unique(indices, return_index=True)[1]])
    positions = np.array([header.position_mm for header in ordered])
    row, column, normal = first.axes
    step = _slice_direction(positions, heights, normal) * gap
    axes = np.stack([row * first.spacing_mm[1], column * first.spacing_mm[0], step], axis=1)
    return Stack(ordered, ras_affine(axes, positions[0]), indices)


def _read_files(files: Iterable[Path]) -> list[Header]:
    pydicom = load_pydicom()
    headers, n_files = [], 0
    try:
        for path in sorted(path for path in files if path.name != "DICOMDIR"):
            n_files += 1
            if (header := read_header(pydicom, path)) is not None:
                headers.append(header)
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    if not headers:
        raise Refusal("dicom_damaged", f"none of {n_files} files is DICOM")
    return headers


def read_header(pydicom: ModuleType, path: Path) -> Header | None:
    """The header of one file; None for a file of another format.

    Raises:
        Refusal: dicom_damaged.
        OSError: the file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        except OSError:
            raise
        except Exception:  # a damaged file raises anything, and the message may quote a patient
            if not is_dicom(path):
                return None
            raise Refusal("dicom_damaged", "an unreadable header") from None
        try:
            return Header(
                path=path,
                series=SeriesKey(*(str(tags.get(name) or "") for name in _KEY_TAGS)),
                modality=str(tags.get("Modality", "")),
                sop_class=str(tags.get("SOPClassUID", "")),
                image_type=tuple(str(value).upper() for value in _as_list(tags.get("ImageType"))),
                frames=int(tags.get("NumberOfFrames") or 1),
                samples=int(tags.get("SamplesPerPixel") or 1),
                size=(int(tags.get("Rows") or 0), int(tags.get("Columns") or 0)),
                spacing_mm=_floats(tags.get("PixelSpacing"), 2),
                position_mm=_floats(tags.get("ImagePositionPatient"), 3),
                orientation=_floats(tags.get("ImageOrientationPatient"), 6),
                has_rescale=tags.get("RescaleSlope") is not None and tags.get("RescaleIntercept") is not None,
            )
        except Exception:
            raise Refusal("dicom_damaged", "a header with values of unexpected types") from None


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value or ())


def _floats(value: Any, count: int) -> tuple[float, ...] | None:
    values = tuple(float(item) for item in _as_list(value))
    return values if len(values) == count and np.isfinite(values).all() else None


def _check_same_grid(headers: Sequence[Header]) -> None:
    first = headers[0]
    rows, columns = first.size
    largest = max(max(header.size) for header in headers)
    if largest > MAX_SIDE or rows * columns * len(headers) > MAX_VOXELS:
        raise Refusal("too_large", f"{len(headers)} slices of up to {largest} pixels a side; at most {MAX_SIDE} are allowed")
    if any(header.samples != 1 for header in headers):
        raise Refusal("not_ct", "color images")
    if len({header.size for header in headers}) > 1 or not rows * columns:
        raise Refusal("shape_mismatch", "slices of different size, or without a size")
    if any(header.spacing_mm is None for header in headers):
        raise Refusal("nan_spacing", "a slice without PixelSpacing")
    if any(not np.allclose(header.spacing_mm, first.spacing_mm, rtol=1e-3) for header in headers):
        raise Refusal("shape_mismatch", "different PixelSpacing")
    directions = np.array([header.orientation for header in headers])
    if np.abs(directions - directions[0]).max() > _DIRECTION_TOLERANCE:
        raise Refusal("slices_disagree", "different directions")


def _slice_gap(heights: np.ndarray) -> float:
    """Mean distance of neighboring slices in mm."""
    if len(heights) < 2:
        raise Refusal("too_few_slices", f"{len(heights)} slice positions")
    gaps = np.diff(heights)
    median = float(np.median(gaps))
    n_wrong = int((np.abs(gaps - median) > GAP_TOLERANCE * median).sum())
    if n_wrong:
        raise Refusal("missing_slices", f"{n_wrong} of {len(gaps)} gaps, up to {gaps.max():.2f} mm, differ from {median:.2f} mm")
    return float((heights[-1] - heights[0]) / len(gaps))


def _slice_direction(positions: np.ndarray, heights: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Step (LPS) between slices per mm along the normal; differs from the normal if the gantry was tilted."""
    sideways = positions - positions[0] - np.outer(heights - heights[0], normal)
    slope = sideways[-1] / (heights[-1] - heights[0])
    offset = np.linalg.norm(sideways - np.outer(heights - heights[0], slope), axis=1).max()
    if offset > _MAX_OFFSET_MM:
        raise Refusal("slices_disagree", f"{offset:.1f} mm off their line")
    return normal + slope
