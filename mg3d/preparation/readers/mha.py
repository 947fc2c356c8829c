"""MetaImage volumes (`.mha`, `.mhd` with its raw file) in Hounsfield units."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as itk

from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import choose_hu_rescale
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.nifti import MAX_AXIS, MAX_BYTES
from mg3d.preparation.records import RawVolume, VolumeRecord

_HEAD = 1 << 14
_DATA = re.compile(rb"^ElementDataFile[ \t]*=[ \t]*([^\r\n]+)", re.MULTILINE)
_WORD = re.compile(rb"ElementDataFile", re.IGNORECASE)
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_mha(record: VolumeRecord, root: Path) -> RawVolume:
    """The volume of one MetaImage file in HU.

    Raises:
        Refusal: missing_file, unreadable, mha_damaged, not_3d, too_large, as `geometry.to_lps` and `choose_hu_rescale`.
    """
    path = root / record.files[0]
    _check_data_file(path)
    itk.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings name files
    reader = itk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_sizes(reader.GetSize(), reader.GetNumberOfComponents())
        image = reader.Execute()
    except RuntimeError as error:  # all that the library raises; its message names the file
        raise Refusal("mha_damaged", type(error).__name__) from None
    stored = itk.GetArrayFromImage(image).transpose(2, 1, 0)
    directions = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = _TO_RAS @ np.block([[directions, np.array(image.GetOrigin())[:, None]], [0, 0, 0, 1]])
    volume, spacing = geometry.to_lps(stored, affine)
    rescale = choose_hu_rescale(stored, None)
    return RawVolume(volume, spacing, rescale.source, (rescale.slope, rescale.intercept), affine=affine)


def _check_data_file(path: Path) -> None:
    """Refuses a header whose voxels would be read from anywhere but the file itself or one beside it."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    first = _WORD.search(head)  # the library also takes it behind blanks or before a colon: then it is refused
    found = _DATA.search(head)
    if found is None or first.start() != found.start():
        raise Refusal("mha_damaged", "no plain line ElementDataFile in its head")
    name = found[1].strip().decode(errors="replace")
    if name != "LOCAL" and (name != Path(name).name or "\\" in name or name.split()[0] == "LIST" or "%" in name):
        raise Refusal("mha_damaged", "voxels in another folder or in several files")


def _check_sizes(shape: tuple[int, ...], components: int) -> None:
    told = "x".join(map(str, shape))
    if len(shape) != 3 or components != 1 or min(shape) < 1:
        raise Refusal("not_3d", f"shape {told} of {components} numbers")
    if max(shape) > MAX_AXIS or np.prod(shape, dtype=object) * 8 > 2 * MAX_BYTES:
        raise Refusal("too_large", f"{told} voxels")
