"""MetaImage volumes (`.mha`, or `.mhd` with its raw file) in Hounsfield units."""

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
_DATA_FILE = re.compile(rb"^ElementDataFile[ \t]*=[ \t]*([^\r\n]+)", re.MULTILINE)


def read_mha(record: VolumeRecord, root: Path) -> RawVolume:
    """The volume of one MetaImage file in HU.

    Raises:
        Refusal: missing_file, unreadable, mha_damaged, not_3d, too_large, as `geometry.raw_volume` and `choose_hu_rescale`.
    """
    path = root / record.files[0]
    _check_data_file(path)
    itk.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings contain file names
    reader = itk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() != 1:
            raise Refusal("not_3d", f"{reader.GetNumberOfComponents()} values per voxel")
        check_shape(reader.GetSize(), 4)
        image = reader.Execute()
    except RuntimeError as error:  # SimpleITK raises nothing else; the message contains the file name
        raise Refusal("mha_damaged", type(error).__name__) from None
    stored = itk.GetArrayFromImage(image).transpose(2, 1, 0)
    axes = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    return geometry.raw_volume(stored, geometry.ras_affine(axes, image.GetOrigin()), *file_rescale(stored, record))


def _check_data_file(path: Path) -> None:
    """Refuse a header that points to voxels outside the folder of `path`, or to several files."""
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER_BYTES)
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    first = re.search(rb"ElementDataFile", header, re.IGNORECASE)  # MetaIO also accepts other spellings of this line
    match = _DATA_FILE.search(header)
    if match is None or first.start() != match.start() or not match[1].strip():
        raise Refusal("mha_damaged", "expected a line `ElementDataFile = NAME` in the header; is it a complete MetaImage file?")
    name = match[1].strip().decode(errors="replace")
    if name != "LOCAL" and (name != Path(name).name or "\\" in name or name.split()[0] == "LIST" or "%" in name):
        raise Refusal("mha_damaged", "its voxels are in another folder or in several files; put them into one file")
