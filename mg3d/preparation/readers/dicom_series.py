"""DICOM headers: group slices into series, and choose the chest series."""

import logging
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

import numpy as np
from isal import igzip, isal_zlib

from mg3d.files import walk_folders
from mg3d.preparation.quarantine import Refusal

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
DICOMDIR = "DICOMDIR"
"""Name of the file that lists the DICOM files below its folder, which are read instead."""
_CT = "1.2.840.10008.5.1.4.1.1.2"
_GZIP_MAGIC = b"\x1f\x8b"
_MIN_AXIAL_COSINE = 0.8
_OTHER_UNITS = {"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"}
"""RescaleType of maps that are not in HU, such as iodine or the effective atomic number of a spectral CT."""
_KEY_TAGS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
_TAGS = [
    *_KEY_TAGS, "SOPClassUID", "ImageType", "Modality", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "AcquisitionNumber",
]  # fmt: skip


class SeriesKey(NamedTuple):
    """Identity of a series. The UID alone is not enough: programs that remove names may give all series one UID."""

    patient_id: str
    study_uid: str
    series_uid: str


class Header(NamedTuple):
    """The tags of one slice (a file, or a frame of one) that decide to which series it belongs and where it is in space."""

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
    rescale: tuple[float, float] | None
    """Slope and intercept; None if one is missing."""
    acquisition: str = ""
    frame: int | None = None
    """0-based position in an enhanced multi-frame file."""
    unit: str = ""
    """RescaleType."""

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
        """Whether this is a single axial image, not a scout, a screen capture or a map of another unit than HU."""
        if self.unit in _OTHER_UNITS:
            return False
        if self.sop_class.startswith(SECONDARY_CAPTURE) or {"LOCALIZER", "SCOUT"} & set(self.image_type) or self.frames > 1:
            return False
        return self.position_mm is not None and self.orientation is not None and abs(self.axes[2][2]) > _MIN_AXIAL_COSINE


def load_pydicom() -> ModuleType:
    """Import pydicom, which takes half a second, and silence its logger, whose warnings may quote a patient."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return pydicom


def read_headers(path: Path) -> list[Header]:
    """Headers of the DICOM files of a folder, in path order (see `series_files`), or of the series of one slice.

    Raises:
        Refusal: missing_file, unreadable, dicom_damaged (no file is DICOM).
    """
    try:
        if path.is_dir() or path.name == DICOMDIR:
            return _read_files(series_files(path))
        neighbors = _read_folder(path.parent, series_state(path))
    except (FileNotFoundError, NotADirectoryError):
        raise Refusal("missing_file", "no folder of a series") from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    series = read_series_key(path)
    return [header for header in neighbors if header.series == series]


def series_files(path: Path) -> list[Path]:
    """Files that may belong to the series of a folder, or of one slice: those next to the slice.

    The subfolders of a folder with DICOM files hold other series and are not read.

    Raises:
        OSError: a folder or file cannot be read, or does not exist.
    """
    is_slice = path.is_file() and path.name != DICOMDIR
    folder = path.parent if path.is_file() else path
    if is_slice or has_slices(folder):
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_file()]
    return [below / name for below, names in walk_folders(folder, Counter()) for name in names]


def series_state(path: Path) -> tuple[int, int, int]:
    """Number, total size and sum of the modification times in ns of `series_files`; errors as there."""
    stats = [file.stat() for file in series_files(path)]
    return len(stats), sum(stat.st_size for stat in stats), sum(stat.st_mtime_ns for stat in stats)


def has_slices(folder: Path) -> bool:
    """Whether the folder itself contains a DICOM file, not only its subfolders."""
    return any(path.name != DICOMDIR and path.is_file() and is_dicom(path) for path in folder.iterdir())


def read_series_key(path: Path) -> SeriesKey:
    """The series of one DICOM file.

    Raises:
        Refusal: unreadable, dicom_damaged (not a DICOM file of a series).
    """
    header = _read_files([path])[0]
    if not header.series.series_uid:
        raise Refusal("dicom_damaged", "no SeriesInstanceUID")
    return header.series


def is_dicom(path: Path) -> bool:
    """Whether a file, or the content of a gzip file, starts as DICOM does, with or without preamble."""
    try:
        with open_dicom(path) as stream:
            head = stream.read(140)
    except (EOFError, isal_zlib.error, igzip.BadGzipFile):
        return False
    return head[128:132] == b"DICM" or _lacks_preamble(head)


def open_dicom(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed if it is a gzip file."""
    stream = path.open("rb")
    is_gzip = stream.read(2) == _GZIP_MAGIC
    stream.seek(0)
    return igzip.IGzipFile(fileobj=stream, mode="rb") if is_gzip else stream


def read_dataset(pydicom: ModuleType, path: Path, **options: Any) -> Any:
    """A data set as `pydicom.dcmread`, also of gzip files and of files without preamble."""
    with open_dicom(path) as stream:
        lacks_preamble = _lacks_preamble(stream.read(140))
        stream.seek(0)
        dataset = pydicom.dcmread(stream, force=lacks_preamble, **options)
    if lacks_preamble:
        is_implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, f"{'Implicit' if is_implicit else 'Explicit'}VRLittleEndian")
    return dataset


def _lacks_preamble(head: bytes) -> bool:
    """Whether bytes begin with a data element of group 8 or 2 in little endian, with a short length."""
    if len(head) < 12 or head[128:132] == b"DICM" or head[:2] not in {b"\x08\x00", b"\x02\x00"} or head[3]:
        return False
    is_explicit = head[4:6].isalpha() and head[4:6].isupper()
    return int.from_bytes(head[6:8] if is_explicit else head[4:8], "little") < 256


def choose_series(headers: Sequence[Header]) -> tuple[list[Header], int]:
    """Headers of the chest series, and the number of other series.

    The axial CT series (no scouts, no captures) with most slice positions; then the thinnest; then the first UID.

    Raises:
        Refusal: not_ct, no_axial_series, several_studies.
    """
    axial = axial_series(headers)
    n_patients = len({header.series.patient_id for header in headers} - {""})
    n_studies = len({key[:2] for key in axial})
    if n_studies > 1 or n_patients > 1:
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
    if all(series[0].frames > 1 for series in ct.values()):
        raise Refusal("not_ct", "multi-frame CT without positions of its frames; convert it to one file per slice, or to NIfTI")
    if all(header.samples != 1 for series in ct.values() for header in series):
        raise Refusal("not_ct", "color images")
    axial = {key: [header for header in series if header.is_axial_slice] for key, series in ct.items()}
    axial = {key: series for key, series in axial.items() if series}
    if not axial:
        raise Refusal("no_axial_series", f"{len(ct)} CT series")
    return axial


@lru_cache(maxsize=2)
def _read_folder(folder: Path, state: tuple[int, int, int]) -> tuple[Header, ...]:
    """All headers of a folder, kept while its files stay: a folder may hold hundreds of series, each of which needs them."""
    return tuple(_read_files(series_files(folder)))


def _read_files(files: Iterable[Path]) -> list[Header]:
    pydicom = load_pydicom()
    headers, n_files = [], 0
    try:
        for path in sorted(path for path in files if path.name != DICOMDIR):
            n_files += 1
            headers += read_file(pydicom, path)
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    if not headers:
        raise Refusal("dicom_damaged", f"none of {n_files} files is DICOM")
    return headers


def read_file(pydicom: ModuleType, path: Path) -> list[Header]:
    """The headers of a file: one, or one per frame of an enhanced CT; none for a file of another format.

    Raises:
        Refusal: dicom_damaged.
        OSError: the file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tags = read_dataset(pydicom, path, stop_before_pixels=True, specific_tags=_TAGS)
        except OSError:
            raise
        except Exception:  # a damaged file raises anything, and the message may quote a patient
            if not is_dicom(path):
                return []
            raise Refusal("dicom_damaged", "an unreadable header") from None
        try:
            header = _header(path, tags)
            if header.modality in {"CT", ""} and header.sop_class == _CT and not header.size[0]:
                raise Refusal("dicom_damaged", "a slice that is cut off within its header")
            if header.frames == 1 or header.sop_class != ENHANCED_CT:
                return [header]
            return _frames(header, read_dataset(pydicom, path, stop_before_pixels=True))
        except Refusal:
            raise
        except Exception:
            raise Refusal("dicom_damaged", "a header with values of unexpected types") from None


def _header(path: Path, tags: Any) -> Header:
    return Header(
        path=path,
        series=SeriesKey(*(str(tags.get(name) or "") for name in _KEY_TAGS)),
        modality=str(tags.get("Modality", "")),
        sop_class=str(tags.get("SOPClassUID") or tags.file_meta.get("MediaStorageSOPClassUID", "")),
        image_type=_image_type(tags.get("ImageType")),
        frames=int(tags.get("NumberOfFrames") or 1),
        samples=int(tags.get("SamplesPerPixel") or 1),
        size=(int(tags.get("Rows") or 0), int(tags.get("Columns") or 0)),
        spacing_mm=_floats(tags.get("PixelSpacing"), 2),
        position_mm=_floats(tags.get("ImagePositionPatient"), 3),
        orientation=_floats(tags.get("ImageOrientationPatient"), 6),
        rescale=_rescale(tags),
        acquisition=str(tags.get("AcquisitionNumber") or ""),
        unit=str(tags.get("RescaleType") or ""),
    )


def _frames(header: Header, tags: Any) -> list[Header]:
    """One header per frame of an enhanced CT, from its functional groups."""
    shared = next(iter(tags.get("SharedFunctionalGroupsSequence") or ()), {})
    frames = []
    for number, frame in enumerate(tags.get("PerFrameFunctionalGroupsSequence") or ()):

        def group(name: str, frame: Any = frame) -> Any:
            return next((sequence[0] for tags in (frame, shared) if (sequence := tags.get(name))), {})

        content = group("FrameContentSequence")
        frames.append(
            header._replace(
                frames=1,
                frame=number,
                image_type=_image_type(group("CTImageFrameTypeSequence").get("FrameType")) or header.image_type,
                spacing_mm=_floats(group("PixelMeasuresSequence").get("PixelSpacing"), 2),
                position_mm=_floats(group("PlanePositionSequence").get("ImagePositionPatient"), 3),
                orientation=_floats(group("PlaneOrientationSequence").get("ImageOrientationPatient"), 6),
                rescale=_rescale(group("PixelValueTransformationSequence")),
                unit=str(group("PixelValueTransformationSequence").get("RescaleType") or ""),
                acquisition=f"{content.get('FrameAcquisitionNumber')} {content.get('TemporalPositionIndex')}",
            )
        )
    return frames if len(frames) == header.frames else [header]


def _image_type(value: Any) -> tuple[str, ...]:
    return tuple(str(part).upper() for part in _as_list(value))


def _rescale(tags: Any) -> tuple[float, float] | None:
    values = (tags.get("RescaleSlope"), tags.get("RescaleIntercept"))
    return None if None in values else (float(values[0]), float(values[1]))


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value or ())


def _floats(value: Any, count: int) -> tuple[float, ...] | None:
    values = tuple(float(item) for item in _as_list(value))
    return values if len(values) == count and np.isfinite(values).all() else None
