"""A small DICOM export of a hospital: several patients, series of every kind, and a spreadsheet of reports."""

import shutil

import numpy as np
import openpyxl
import pydicom
from pydicom.uid import RLELossless
from small_dicom import CORNER_MM, write_enhanced, write_series, write_slice
from small_raw import chest

CORONAL = [1, 0, 0, 0, 0, -1]
HEADER = ("Accession No", "Exam", "Report text")


def patient_id(number):
    return f"MRN{number:05d}"


def name_of(number):
    return f"Mustermann{number}^Erika"


def marked(number, slices=40, shape=(22, 24)):
    """A chest whose fat has HU of its patient: 100 + `number`."""
    noise = np.random.default_rng(number).integers(-3, 4, (slices, *shape), np.int16)
    volume = np.full_like(noise, -1000) + noise
    volume[:, 4:-4, 4:-4] = 100 + number
    volume[:, 8:14, 8:16] = -850
    volume[2, 5, 5] = 1000 + number
    return volume


class Export:
    """Writes series into `<study>/<series>`; the n-th study of a patient has the accession A<patient>-<study>."""

    def __init__(self, root):
        self.root, self.count = root, 0

    def add(self, patient, study, description, hu=None, *, folder=None, each=None, **tags):
        """One series; returns its UID."""
        self.count += 1
        uid = f"1.2.9.{self.count}"
        values = {
            "SeriesInstanceUID": uid, "StudyInstanceUID": f"1.2.8.{patient}.{study}", "PatientID": patient_id(patient),
            "PatientName": name_of(patient), "AccessionNumber": accession(patient, study), "SeriesDescription": description,
            "StudyDate": f"2021{study:02d}15", "SliceThickness": "1.0", "ConvolutionKernel": "B30f", "Modality": "CT",
        } | tags  # fmt: skip
        folder = f"{accession(patient, study)}/{self.count:03d}" if folder is None else folder
        write_series(self.root / folder, marked(patient) if hu is None else hu, each=each, start=f"S{self.count}-", **values)
        return uid

    def enhanced(self, patient, study):
        """A multi-frame file next to the series of its study; returns its UID."""
        self.count += 1
        tags = {
            "SeriesInstanceUID": f"1.2.9.{self.count}", "StudyInstanceUID": f"1.2.8.{patient}.{study}", "SliceThickness": "1.0",
            "PatientID": patient_id(patient), "PatientName": name_of(patient), "AccessionNumber": accession(patient, study),
            "SeriesDescription": "Thorax enhanced", "StudyDate": f"2021{study:02d}15",
        }  # fmt: skip
        frames = [(plane, 5.0 * k, 0, 1) for k, plane in enumerate(marked(patient))]
        write_enhanced(self.root / accession(patient, study) / "enhanced.dcm", frames, **tags)
        return tags["SeriesInstanceUID"]

    def localizer(self, patient, study):
        image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        return self.add(patient, study, "Topogram", chest()[:2], ImageType=image_type, ImageOrientationPatient=CORONAL)


def accession(patient, study):
    return f"0{patient}0{study}"


def write_export(root):
    """30 series; returns what each should be: UID -> (used, beginning of the verdict)."""
    export, expected = Export(root), {}

    def add(verdict, *arguments, used=False, **tags):
        expected[export.add(*arguments, **tags)] = (used, verdict)

    other = "another series"
    for patient in range(1, 9):
        expected[export.localizer(patient, 1)] = (False, "no_axial_series")
        add("usable", patient, 1, "Thorax 1.0 B30f", used=True)
    add(other, 1, 1, "Thorax 1.0 B70f", ConvolutionKernel="B70f")
    add("rule: mip", 1, 1, "Thorax MIP axial", marked(1, 44), ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"])
    add("rule: body part head", 2, 1, "Head 5.0", marked(2, 60), BodyPartExamined="HEAD")
    add(other, 2, 1, "Chest 3.0", marked(2, 30), SliceThickness="3.0")
    add("not_ct", 3, 1, "T2 chest", Modality="MR")
    add("no_axial_series", 3, 1, "Thorax coronal", ImageOrientationPatient=CORONAL, each=lambda k: {
        "ImagePositionPatient": [CORNER_MM[0], CORNER_MM[1] + 3.0 * k, 0.0]})  # fmt: skip
    add("too_few_slices", 4, 1, "Bolus tracking", marked(4, 6))
    add("usable", 4, 2, "Thorax 1.0", marked(4, 33), used=True, syntax=RLELossless)
    add("usable", 5, 2, "", marked(5, 34), used=True, BodyPartExamined="CHEST")
    add(other, 5, 2, "Series 7", marked(5, 36))
    expected[export.enhanced(8, 2)] = (True, "usable")
    add("usable", 6, 2, "Lung 1.25", marked(6, 35), used=True, ConvolutionKernel="LUNG")
    gap = marked(6, 34)
    export_gap = export.add(6, 1, "Thorax with gap", gap, ConvolutionKernel="B20f")
    for path in sorted((root / accession(6, 1)).glob(f"*/S{export.count}-*")):
        if 65 <= pydicom.dcmread(path, specific_tags=["ImagePositionPatient"]).ImagePositionPatient[2] - CORNER_MM[2] < 110:
            path.unlink()
    expected[export_gap] = (False, ("missing_slices", "too_few_slices"))
    tilted = {"orientation": [1, 0, 0, 0, 0.96, 0.28], "ConvolutionKernel": "B71f"}
    add(other, 7, 1, "Thorax tilted", **tilted)
    add("rule: slices of 7 mm", 7, 1, "Thorax 7.0", SliceThickness="7.0")
    add("rule: only 110 mm long", 8, 1, "Thorax apex", marked(8, 22))
    shutil.copy(next(iter(sorted((root / "0101").rglob("*.dcm")))), root / "0101" / "stray.dcm")
    tags = {"StudyInstanceUID": "1.2.8.3.1", "PatientID": patient_id(3), "AccessionNumber": accession(3, 1), "Modality": "SR"}
    dose = root / "0301" / "dose.dcm"
    write_slice(dose, chest()[0], position=(0, 0, 0), SeriesInstanceUID="1.2.7.1", **tags)
    expected["1.2.7.1"] = (False, "not_ct")
    (root / "DICOMDIR").write_bytes(b"index")
    (root / "read me.txt").write_text("viewer")
    return expected


def write_reports(path, rows):
    """An Excel file with two title lines; accessions as numbers, as Excel makes of them."""
    book = openpyxl.Workbook()
    book.active.append(["Radiology export"])
    book.active.append([])
    book.active.append(HEADER)
    for key, text in rows:
        book.active.append([int(key) if key.isdigit() else key, "CT", text])
    book.save(path)
    return path
