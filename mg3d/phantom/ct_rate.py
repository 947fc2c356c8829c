"""Layout of CT-RATE: trees of NIfTI files and tables of reports, metadata and labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg3d.glossary import LABELS
from mg3d.phantom.writers import write_csv, write_nifti

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
"""The tables of reports and metadata say `validation` where folders and labels say `valid`, as in the public set."""


def volume_path(dataset: Path, name: str, *, fixed: bool) -> Path:
    """Path of the volume `train_1_a_1`: <split>[_fixed]/train_1/train_1_a/train_1_a_1.nii.gz."""
    split, patient, scan, _ = name.split("_")
    folder = dataset / (f"{split}_fixed" if fixed else split)
    return folder / f"{split}_{patient}" / f"{split}_{patient}_{scan}" / f"{name}.nii.gz"


def write_fixed(path: Path, volume: np.ndarray, voxel_mm: float) -> None:
    """Write int16 HU (or uint8 labels) [z, y, x] with a correct header; the file axes are (x, y, z), LPS."""
    affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = [sign * (side - 1) / 2 * voxel_mm for sign, side in zip((1, 1, -1), volume.shape[::-1], strict=True)]
    write_nifti(path, volume.transpose(2, 1, 0), affine, coded=True)


def write_raw(path: Path, volume: np.ndarray, intercept: int) -> None:
    """Write scanner values as float64 with a blank header, as in the first release.

    With intercept -8192, voxels outside the circular field of view are padding with raw value 0.
    """
    raw = volume.astype(np.float64) - intercept
    if intercept == -8192:
        y, x = np.ogrid[-1 : 1 : volume.shape[1] * 1j, -1 : 1 : volume.shape[2] * 1j]
        raw[:, x**2 + y**2 > 1] = 0
    write_nifti(path, raw.transpose(2, 1, 0), np.eye(4))


def metadata_row(name: str, truth: Mapping[str, Any], *, sharp: bool, intercept: int) -> dict[str, Any]:
    """Row of a volume in the metadata table."""
    depth, height, width = truth["shape"]
    spacing = truth["voxel_mm"]
    values = {
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
    return {column: values.get(column, "") for column in METADATA_COLUMNS}


def write_tables(dataset: Path, split: str, volumes: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Write all tables of a split; volumes: (name, ground truth of its study, metadata row)."""
    files = [f"{name}.nii.gz" for name, _, _ in volumes]
    truths = [truth for _, truth, _ in volumes]
    texts = [(truth["report"]["findings"], truth["report"]["impression"]) for truth in truths]
    technique = ("Not given.", "Synthetic chest CT without contrast.")
    reports = [dict(zip(REPORT_COLUMNS, (file, *technique, *text), strict=True)) for file, text in zip(files, texts, strict=True)]
    labels = [
        {"VolumeName": file, **{label: int(value) for label, value in truth["present"].items()}}
        for file, truth in zip(files, truths, strict=True)
    ]
    name = REPORTS_NAME[split]
    write_csv(dataset / "radiology_text_reports" / f"{name}_reports.csv", REPORT_COLUMNS, reports)
    write_csv(dataset / "metadata" / f"{name}_metadata.csv", METADATA_COLUMNS, (row for _, _, row in volumes))
    write_csv(dataset / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", ("VolumeName", *LABELS), labels)
    (dataset / "metadata" / f"no_chest_{split}.txt").write_text("")
