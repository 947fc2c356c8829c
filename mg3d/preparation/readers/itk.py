"""MetaImage (`.mha`, or `.mhd` with its raw file) and NRRD (`.nrrd`, or `.nhdr` with its raw file) in Hounsfield units."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as itk

from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import file_rescale
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.limits import check_shape
from mg3d.preparation.records import RawVolume, VolumeRecord

_HEADER_BYTES = 1 << 14
_META_DATA_FILE = re.compile(rb"^ElementDataFile[ \t]*=[ \t]*([^\r\n]+)", re.MULTILINE)
_META_3D = re.compile(rb"^NDims[ \t]*=[ \t]*3[ \t]*\r?$", re.MULTILINE)
_META_SPACING = re.compile(rb"^ElementSpacing[ \t]*=", re.MULTILINE)
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NRRD_DATA_FILE = re.compile(rb"^data ?file:[ \t]*([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
_NRRD_DIRECTIONS = re.compile(rb"^space directions:", re.MULTILINE | re.IGNORECASE)
_NRRD_SPACE = re.compile(rb"^space:[ \t]*(left|right|[LR][AP]S\b)", re.MULTILINE | re.IGNORECASE)


def read_itk(record: VolumeRecord, root: Path) -> RawVolume:
    """The volume of one MetaImage or NRRD file in HU.

    Raises:
        Refusal: missing_file, unreadable, image_damaged, nan_spacing, not_3d, too_large, as `geometry.raw_volume` and
            `choose_hu_rescale`.
    """
    path = root / record.files[0]
    is_nrrd = path.suffix.lower() in {".nrrd", ".nhdr"}
    (_check_nrrd if is_nrrd else _check_meta_image)(_read_header(path))
    itk.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings contain file names
    reader = itk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() != 1:
            raise Refusal("not_3d", f"{reader.GetNumberOfComponents()} values per voxel")
        check_shape(reader.GetSize(), 4)
        image = reader.Execute()
    except RuntimeError as error:  # SimpleITK raises nothing else; the message contains the file name
        raise Refusal("image_damaged", type(error).__name__) from None
    stored = itk.GetArrayFromImage(image).transpose(2, 1, 0)
    axes = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    return geometry.raw_volume(stored, geometry.ras_affine(axes, image.GetOrigin()), *file_rescale(stored, record))


def data_file(path: Path) -> Path | None:
    """The file beside a header that has its voxels; None if they follow the header. Raises OSError."""
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
    match = (_NRRD_DATA_FILE if header.startswith(b"NRRD") else _META_DATA_FILE).search(header)
    name = match[1].strip().decode(errors="replace") if match else "LOCAL"
    return None if name in {"", "LOCAL"} or name != Path(name).name else path.with_name(name)


def _read_header(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_HEADER_BYTES)
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None


def _check_meta_image(header: bytes) -> None:
    first = re.search(rb"ElementDataFile", header, re.IGNORECASE)  # MetaIO also accepts other spellings of this line
    match = _META_DATA_FILE.search(header)
    if match is None or first.start() != match.start() or not match[1].strip():
        raise Refusal("image_damaged", "expected a line `ElementDataFile = NAME` in the header; is it a complete MetaImage file?")
    if (name := match[1].strip().decode(errors="replace")) != "LOCAL":
        _check_data_file(name)
    if _META_3D.search(header[: match.start()]) is None:  # ITK crashes on a negative number
        raise Refusal("not_3d", "the MetaImage header has no line `NDims = 3`")
    if _META_SPACING.search(header[: match.start()]) is None:
        raise Refusal("nan_spacing", "the MetaImage header has no line `ElementSpacing`")


def _check_nrrd(header: bytes) -> None:
    header = re.split(rb"\r?\n\r?\n", header, maxsplit=1)[0]
    if not header.startswith(b"NRRD") or _NOT_TEXT.search(header):  # ITK crashes on voxels that it takes for the header
        expected = "expected lines of text that begin with NRRD and end with an empty line"
        raise Refusal("image_damaged", f"{expected}; is it a complete NRRD file?")
    if _NRRD_SPACE.search(header) is None or _NRRD_DIRECTIONS.search(header) is None:
        missing = "`space directions`" if _NRRD_SPACE.search(header) else "anatomical `space`, such as left-posterior-superior"
        raise Refusal("nan_spacing", f"the NRRD header has no {missing}")
    if (match := _NRRD_DATA_FILE.search(header)) is not None:
        _check_data_file(match[1].strip().decode(errors="replace"))


def _check_data_file(name: str) -> None:
    """Refuse voxels outside the folder of the header, or in several files."""
    if not name or name != Path(name).name or "\\" in name or name.split()[0] == "LIST" or "%" in name:
        raise Refusal("image_damaged", "its voxels are in another folder or in several files; put them into one file")
