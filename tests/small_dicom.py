"""Small DICOM series of a chest [z, y, x]; file names do not reveal the slice order."""

import random

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid
from small_raw import chest, volume_record

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom import read_dicom

SPACING = (5.0, 3.0, 2.5)
"""z y x in mm."""
CORNER_MM = (-31.0, -43.0, -207.0)
"""x y z of voxel [0, 0, 0]."""
NAME = "Muster^Erika"
UPRIGHT = (1, 0, 0, 0, 1, 0)


def read(folder):
    return read_dicom(volume_record(folder.name, reader="dicom"), folder.parent)


def refusal(folder):
    """Code and detail, which contain no name of a patient or file."""
    with pytest.raises(Refusal) as caught:
        read(folder)
    assert not any(name in str(caught.value) for name in (*NAME.split("^"), "IM0", str(folder.parent)))
    assert (caught.value.__cause__, caught.value.__suppress_context__) in {(None, True), (None, False)}
    return caught.value.code, caught.value.detail


def sorted_files(folder):
    """From inferior to superior."""
    return sorted(folder.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))


def write_slice(path, stored, *, position, orientation=UPRIGHT, spacing=SPACING[1:], syntax=ExplicitVRLittleEndian, **tags):
    """One file of int16 or uint16 [row, column]; `tags` override, and None removes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    values = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1",
        "PatientName": NAME, "PatientID": NAME,
        "ImagePositionPatient": [float(mm) for mm in position], "ImageOrientationPatient": list(orientation),
        "PixelSpacing": list(spacing), "Rows": stored.shape[0], "Columns": stored.shape[1], "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
        "PixelRepresentation": int(stored.dtype == np.int16), "RescaleSlope": 1, "RescaleIntercept": 0,
        "PixelData": stored.tobytes(),
    } | tags  # fmt: skip
    for name, value in values.items():
        if value is not None:
            setattr(found, name, value)
    if syntax == RLELossless:
        found.compress(RLELossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    if syntax not in {RLELossless, ExplicitVRLittleEndian}:
        _encode(path, syntax)
    return path


def write_series(folder, hu=None, *, slope=1, intercept=0, kind=np.int16, each=None, start="IM", **common):
    """Write a series from HU [z, y, x] with slices 5 mm apart; `each(index)` returns further tags of a slice.

    Files are named `<start><number>.dcm`, numbered in random order.
    """
    hu = chest(7) if hu is None else hu
    stored = np.rint((hu - float(intercept)) / slope).astype(kind)
    numbers = random.Random(0).sample(range(len(stored)), len(stored))
    for index, plane in enumerate(stored):
        position = (CORNER_MM[0], CORNER_MM[1], CORNER_MM[2] + index * SPACING[0])
        tags = {"RescaleSlope": slope, "RescaleIntercept": intercept, **common, **(each(index) if each else {})}
        write_slice(folder / f"{start}{numbers[index]:04d}.dcm", plane, **{"position": position, **tags})
    return folder


def write_enhanced(path, frames, *, shared=True, **tags):
    """One enhanced CT; frames are (HU [y, x], height in mm, intercept, temporal position), in any order."""
    stored = np.stack([hu - intercept for hu, _, intercept, _ in frames]).astype(np.int16)

    def sequence(**tags):
        item = pydicom.Dataset()
        for name, value in tags.items():
            setattr(item, name, value)
        return pydicom.Sequence([item])

    common = {
        "PixelMeasuresSequence": sequence(PixelSpacing=list(SPACING[1:])),
        "PlaneOrientationSequence": sequence(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    }
    per_frame = []
    for _, height, intercept, temporal in frames:
        item = pydicom.Dataset()
        item.PlanePositionSequence = sequence(ImagePositionPatient=[*CORNER_MM[:2], CORNER_MM[2] + height])
        item.PixelValueTransformationSequence = sequence(RescaleSlope=1, RescaleIntercept=intercept)
        item.FrameContentSequence = sequence(TemporalPositionIndex=temporal)
        for name, value in () if shared else common.items():
            setattr(item, name, value)
        per_frame.append(item)
    groups = pydicom.Dataset()
    for name, value in common.items() if shared else ():
        setattr(groups, name, value)
    return write_slice(
        path, stored[0], position=(0, 0, 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=len(frames),
        PixelData=stored.tobytes(), ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None, RescaleSlope=None,
        RescaleIntercept=None, SharedFunctionalGroupsSequence=pydicom.Sequence([groups]),
        PerFrameFunctionalGroupsSequence=pydicom.Sequence(per_frame), **tags,
    )  # fmt: skip


def _encode(path, syntax):
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
