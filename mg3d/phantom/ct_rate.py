"""Synthetic studies in the layout of CT-RATE: trees of NIfTI files, reports, metadata, labels."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mg3d.files import write_bytes
from mg3d.glossary import LABELS

REPORT_COLUMNS = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
METADATA_COLUMNS = (
    "VolumeName", "Manufacturer", "SeriesDescription", "ManufacturerModelName", "PatientSex", "PatientAge",
    "ReconstructionDiameter", "DistanceSourceToDetector", "DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight",
    "RotationDirection", "ExposureTime", "XRayTubeCurrent", "Exposure", "FilterType", "GeneratorPower", "FocalSpots",
    "ConvolutionKernel", "PatientPosition", "RevolutionTime", "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed",
    "TableFeedPerRotation", "SpiralPitchFactor", "DataCollectionCenterPatient", "ReconstructionTargetCenterPatient",
    "ExposureModulationType", "CTDIvol", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SamplesPerPixel",
    "PhotometricInterpretation", "Rows", "Columns", "XYSpacing", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "NumberofSlices", "ZSpacing", "StudyDate",
)  # fmt: skip
REPORTS_NAME = {"train": "train", "valid": "validation"}
"""Reports and metadata say `validation` where folders and labels say `valid`, as in the original."""


def volume_path(dataset: Path, name: str, *, fixed: bool) -> Path:
    """Where the volume `train_1_a_1` lies: <split>[_fixed]/train_1/train_1_a/train_1_a_1.nii.gz."""
    split, patient, scan, _ = name.split("_")
    folder = dataset / (f"{split}_fixed" if fixed else split)
    return folder / f"{split}_{patient}" / f"{split}_{patient}_{scan}" / f"{name}.nii.gz"


def write_fixed(path: Path, volume: np.ndarray, voxel_mm: float) -> None:
    """int16 HU (or uint8 labels) [z, y, x] with a true header; the file's own axes are (x, y, z) to the left, back and top."""
    affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = [sign * (side - 1) / 2 * voxel_mm for sign, side in zip((1, 1, -1), volume.shape[::-1], strict=True)]
    image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    write_whole(path, image)


def write_raw(path: Path, volume: np.ndarray, intercept: int) -> None:
    """The first release's form: scanner values as float64 and a header that says nothing.

    With the intercept -8192, what lies outside the round field of view is padding of raw value 0.
    """
    raw = volume.astype(np.float64) - intercept
    if intercept == -8192:
        y, x = np.ogrid[-1 : 1 : volume.shape[1] * 1j, -1 : 1 : volume.shape[2] * 1j]
        raw[:, x**2 + y**2 > 1] = 0
    write_whole(path, nib.Nifti1Image(np.ascontiguousarray(raw.transpose(2, 1, 0)), np.eye(4)))


def write_whole(path: Path, image: nib.Nifti1Image) -> None:
    """A NIfTI file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    nib.save(image, beside)
    beside.replace(path)


def metadata_row(name: str, truth: Mapping[str, Any], *, sharp: bool, intercept: int) -> dict[str, Any]:
    """The scanner's account of a volume."""
    depth, height, width = truth["shape"]
    spacing = truth["voxel_mm"]
    given = {
        "VolumeName": f"{name}.nii.gz",
        "Manufacturer": "Siemens Healthineers" if intercept == -8192 else "Philips",
        "SeriesDescription": "synthetic",
        "ManufacturerModelName": "phantom",
        "PatientSex": truth["patient"]["sex"],
        "PatientAge": f"{truth['patient']['age']:03d}Y",
        "ReconstructionDiameter": spacing * width,
        "ConvolutionKernel": "sharp" if sharp else "soft",
        "PatientPosition": "HFS",
        "ImagePositionPatient": str([-spacing * width / 2, -spacing * height / 2, -spacing * depth / 2]),
        "ImageOrientationPatient": str([1, 0, 0, 0, 1, 0]),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": height,
        "Columns": width,
        "XYSpacing": str([spacing, spacing]),
        "RescaleIntercept": intercept,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "NumberofSlices": depth,
        "ZSpacing": spacing,
        "StudyDate": 20200101,
    }
    return {column: given.get(column, "") for column in METADATA_COLUMNS}


def report_row(name: str, truth: Mapping[str, Any]) -> dict[str, str]:
    """The report as the reports' CSV has it, once per volume."""
    texts = (
        f"{name}.nii.gz",
        "Not given.",
        "Synthetic chest CT without contrast.",
        truth["report"]["findings"],
        truth["report"]["impression"],
    )
    return dict(zip(REPORT_COLUMNS, texts, strict=True))


def write_tables(dataset: Path, split: str, volumes: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """All CSV files of a split; volumes: (name, truth of its study, metadata row)."""
    other = REPORTS_NAME[split]
    reports = (report_row(name, truth) for name, truth, _ in volumes)
    write_csv(dataset / "radiology_text_reports" / f"{other}_reports.csv", REPORT_COLUMNS, reports)
    write_csv(dataset / "metadata" / f"{other}_metadata.csv", METADATA_COLUMNS, (row for _, _, row in volumes))
    labels = ({"VolumeName": f"{name}.nii.gz"} | {k: int(v) for k, v in truth["present"].items()} for name, truth, _ in volumes)
    write_csv(dataset / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", ("VolumeName", *LABELS), labels)
    (dataset / "metadata" / f"no_chest_{split}.txt").write_text("")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV file, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
