"""DICOM series written by hand become the volume they were cut from, or a refusal that tells no name."""

import itertools
import sys

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from small_dicom import CORNER_MM, NAME, SPACING, write_series, write_slice
from small_raw import SHAPE, chest

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom import read_dicom
from mg3d.preparation.records import VolumeRecord

SECOND = "1.2.3.2"


def read(folder):
    told = {"findings": None, "impression": None, "official_split": "none", "split": "train", "reconstruction": 1}
    ids = {"volume_id": "custom/a", "study_id": "a", "patient_id": "a", "dataset": "custom", "source": "custom/a"}
    return read_dicom(VolumeRecord(**ids, **told, files=(folder.name,), reader="dicom"), folder.parent)


def refusal(folder):
    """Code and detail; neither tells a patient's or a file's name."""
    with pytest.raises(Refusal) as caught:
        read(folder)
    told = str(caught.value)
    assert not any(word in told for word in (*NAME.split("^"), "IM0", str(folder.parent)))
    chain = (caught.value.__cause__, caught.value.__suppress_context__)
    assert chain in {(None, True), (None, False)}
    return caught.value.code, caught.value.detail


def files(folder):
    """In the order of their places, from below."""
    return sorted(folder.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))


def change(path, **tags):
    found = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(found, name, value)
    found.save_as(path)


def test_slices_are_sorted_by_position_not_by_name_or_number(tmp_path):
    folder = write_series(tmp_path / "Muster", each=lambda place: {"InstanceNumber": (place * 7) % 26})
    assert [path.name for path in files(folder)] != sorted(path.name for path in folder.iterdir())
    found = read(folder)
    np.testing.assert_array_equal(found.voxels, chest(7))
    assert found.voxels.dtype == np.int16
    assert found.spacing_mm == pytest.approx(SPACING)
    assert (found.hu_source, found.scale, found.note) == ("dicom_header", (1.0, 0.0), "")


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2, -1024), (0.5, -1010)])
@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_slope_and_intercept_of_the_header_make_hu(tmp_path, slope, intercept, kind):
    hu = chest(7) // 2 * 2
    folder = write_series(tmp_path / "Muster", hu, slope=slope, intercept=intercept, kind=kind)
    np.testing.assert_array_equal(read(folder).voxels, hu)


def test_every_slice_has_its_own_slope_and_intercept(tmp_path):
    hu = chest(7)

    def each(place):
        stored = (hu[place] - (place - 1000)).astype(np.int16)
        return {"RescaleIntercept": place - 1000, "PixelData": stored.tobytes()}

    np.testing.assert_array_equal(read(write_series(tmp_path / "Muster", hu, each=each)).voxels, hu)


LINES = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)]
DIRECTIONS = [(row, column) for row, column in itertools.product(LINES, LINES) if np.dot(row, column) == 0]


@pytest.mark.parametrize(("row", "column"), DIRECTIONS)
def test_rows_and_columns_in_any_direction_give_the_same_volume(tmp_path, row, column):
    hu = chest(7)
    turned = any(row[:1])  # rows run along x
    planes = hu if turned else hu.transpose(0, 2, 1)
    rows_up, columns_up = sum(column) > 0, sum(row) > 0
    planes = planes[:, :: 1 if rows_up else -1, :: 1 if columns_up else -1]
    ends = [(length - 1) * mm for length, mm in zip(hu.shape, SPACING)]
    corner = np.array(CORNER_MM[:2]) + [
        ends[2] * (min(*row[:1], *column[:1]) < 0), ends[1] * (min(row[1], column[1]) < 0),
    ]  # fmt: skip

    def each(place):
        return {"position": (*corner, CORNER_MM[2] + place * SPACING[0])}

    spacing = (SPACING[1], SPACING[2]) if turned else (SPACING[2], SPACING[1])
    found = read(write_series(tmp_path / "Muster", planes, orientation=(*row, *column), spacing=spacing, each=each))
    np.testing.assert_array_equal(found.voxels, hu)
    assert found.spacing_mm == pytest.approx(SPACING)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("intercept", [0, -1024])
def test_compressed_slices_give_the_very_numbers(tmp_path, syntax, intercept):
    folder = write_series(tmp_path / "Muster", syntax=syntax, intercept=intercept)
    np.testing.assert_array_equal(read(folder).voxels, chest(7))


def test_a_compression_without_a_decoder_is_named(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "Muster", syntax=RLELossless)
    monkeypatch.setattr("pydicom.pixels.decoders.RLELosslessDecoder._available", {})
    assert refusal(folder) == ("codec_missing", "RLE Lossless")


@pytest.mark.parametrize(("form", "padding"), [("SS", -2000), ("US", 63536)])  # the second as if it were unsigned
def test_padding_counts_as_outside_and_not_as_air(tmp_path, form, padding):
    hu = chest(7)
    hu[:, :3] = -2000
    folder = write_series(tmp_path / "Muster", hu)
    for path in folder.iterdir():
        found = pydicom.dcmread(path)
        found.add_new("PixelPaddingValue", form, padding)
        found.save_as(path)
    found = read(folder)
    np.testing.assert_array_equal(found.voxels[:, 3:], hu[:, 3:])
    assert set(np.unique(found.voxels[:, :3])) == {-3000}


def test_a_header_that_calls_water_padding_is_not_believed(tmp_path):
    folder = write_series(tmp_path / "Muster", PixelPaddingValue=0, intercept=int(chest(7)[11, 11, 11]))
    np.testing.assert_array_equal(read(folder).voxels, chest(7))


def two_series(folder, first, second, **told):
    write_series(folder / "one", chest(7)[:first], SeriesInstanceUID=SECOND)
    write_series(folder / "two", chest(9)[:second], SeriesInstanceUID="1.2.3.1", **told)
    return folder


@pytest.mark.parametrize(("first", "second", "chosen"), [(24, 26, 9), (26, 24, 7), (26, 26, 9)])
def test_of_several_series_the_one_with_most_slices_is_taken_then_the_first_uid(tmp_path, first, second, chosen):
    found = read(two_series(tmp_path / "Muster", first, second))
    np.testing.assert_array_equal(found.voxels, chest(chosen)[: max(first, second)])
    assert found.note == "other series in the folder"


def test_of_equally_many_slices_the_thinner_series_is_taken(tmp_path):
    def each(place):
        return {"position": (*CORNER_MM[:2], CORNER_MM[2] + 4 * place), "SeriesInstanceUID": "1.2.3.9"}

    found = read(two_series(tmp_path / "Muster", 26, 26, each=each))
    np.testing.assert_array_equal(found.voxels, chest(9))
    assert found.spacing_mm == pytest.approx((4, *SPACING[1:]))


def test_two_series_in_one_folder_are_told_apart_by_their_uid(tmp_path):
    write_series(tmp_path / "Muster", chest(7)[:22], SeriesInstanceUID="1.2.3.1")
    for number, plane in enumerate(chest(9)):
        position = (*CORNER_MM[:2], CORNER_MM[2] + number * SPACING[0])
        write_slice(tmp_path / "Muster" / f"B{number}.dcm", plane, position=position, SeriesInstanceUID=SECOND)
    np.testing.assert_array_equal(read(tmp_path / "Muster").voxels, chest(9))


@pytest.mark.parametrize("same_series", [True, False])
def test_scouts_captures_and_dose_reports_are_left_aside(tmp_path, same_series):
    folder = write_series(tmp_path / "Muster")
    series = {} if same_series else {"SeriesInstanceUID": SECOND}
    scout = np.zeros((40, 30), np.int16)
    sagittal = {"position": (0, 0, 0), "orientation": (0, 1, 0, 0, 0, -1)}
    write_slice(folder / "A1.dcm", scout, **sagittal, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **series)
    flat = {"position": (0, 0, 9)}
    write_slice(folder / "A2.dcm", scout, **flat, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **series)
    capture = "1.2.840.10008.5.1.4.1.1.7"
    write_slice(folder / "A3.dcm", scout, **flat, SOPClassUID=capture, ImageType=["DERIVED", "SECONDARY"], **series)
    report = "1.2.840.10008.5.1.4.1.1.88.67"
    write_slice(folder / "A4.dcm", scout, **flat, SOPClassUID=report, Modality="SR", SeriesInstanceUID="1.2.3.3", PixelData=None)
    write_slice(folder / "A5.dcm", scout, position=(0, 0, 9), ImagePositionPatient=None, **series)
    write_slice(folder / "A6.dcm", scout, **flat, NumberOfFrames=3, **series)
    found = read(folder)
    np.testing.assert_array_equal(found.voxels, chest(7))
    assert found.note == "other series in the folder"


def test_other_files_are_passed_over(tmp_path):
    folder = write_series(tmp_path / "Muster")
    (folder / "DICOMDIR").write_bytes(b"x" * 200)
    (folder / "notes.txt").write_text("a viewer's notes")
    (folder / "empty").write_bytes(b"")
    np.testing.assert_array_equal(read(folder).voxels, chest(7))


def test_scouts_alone_are_no_chest(tmp_path):
    scout = {"ImageType": "LOCALIZER"}
    for number in range(3):
        write_slice(tmp_path / "Muster" / f"{number}.dcm", np.zeros((9, 7), np.int16), position=(0, 0, number), **scout)
    assert refusal(tmp_path / "Muster") == ("no_axial_series", "1 CT series")


@pytest.mark.parametrize("tags", [{"NumberOfFrames": 4}, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}])
def test_files_of_many_frames_are_refused_with_a_way_out(tmp_path, tags):
    code, detail = refusal(write_series(tmp_path / "Muster", **tags))
    assert code == "not_ct"
    assert "convert it" in detail


def test_another_modality_is_refused_by_its_name(tmp_path):
    assert refusal(write_series(tmp_path / "Muster", Modality="MR")) == ("not_ct", "1 series of MR")


@pytest.mark.parametrize(("degrees", "code"), [(0.5, None), (-0.5, None), (5.0, "gantry_tilt"), (-12.0, "gantry_tilt")])
def test_a_tilted_gantry_is_refused(tmp_path, degrees, code):
    radians = np.radians(degrees)
    column = (0.0, float(np.cos(radians)), float(np.sin(radians)))
    folder = write_series(tmp_path / "Muster", orientation=(1, 0, 0, *column))
    if code is None:
        np.testing.assert_array_equal(read(folder).voxels, chest(7))
    else:
        assert refusal(folder) == (code, f"{abs(degrees):.1f} degrees")


@pytest.mark.parametrize("degrees", [4, 8])
def test_slices_rotated_by_more_than_five_degrees_are_refused(tmp_path, degrees):
    radians = np.radians(degrees)
    column = np.array([0.0, np.cos(radians), np.sin(radians)])
    normal = np.cross([1, 0, 0], column)

    def each(place):
        return {"position": tuple(np.array(CORNER_MM) + place * SPACING[0] * normal)}

    folder = write_series(tmp_path / "Muster", orientation=(1, 0, 0, *map(float, column)), each=each)
    if degrees > 5:
        assert refusal(folder) == ("oblique", "8.0 degrees, 5 allowed; resample to axial slices")
        return
    found = read(folder)
    np.testing.assert_array_equal(found.voxels, chest(7))
    assert found.spacing_mm == pytest.approx(SPACING)


def test_a_missing_slice_is_refused(tmp_path):
    folder = write_series(tmp_path / "Muster")
    files(folder)[11].unlink()
    assert refusal(folder) == ("missing_slices", "1 of 24 gaps, up to 10.00 mm, differ from 5.00 mm")


def test_equal_copies_of_a_slice_count_once_and_different_ones_are_refused(tmp_path):
    folder = write_series(tmp_path / "Muster")
    copied = files(folder)[11]
    (folder / "IM9999.dcm").write_bytes(copied.read_bytes())
    np.testing.assert_array_equal(read(folder).voxels, chest(7))
    change(folder / "IM9999.dcm", PixelData=(chest(7)[11] + np.int16(1)).tobytes())
    assert refusal(folder) == ("duplicate_slices", "at slice 11 of 26")


def test_a_side_of_20000_pixels_is_refused_before_a_pixel_is_read(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "Muster", Rows=20_000)
    monkeypatch.setattr("mg3d.preparation.readers.dicom._read_plane", None)
    code, detail = refusal(folder)
    assert code == "too_large"
    assert "26 slices of up to 20000 pixels a side; at most 2048 are allowed" in detail


def test_a_scout_of_20000_pixels_harms_nobody(tmp_path):
    folder = write_series(tmp_path / "Muster")
    write_slice(folder / "A.dcm", np.zeros((4, 4), np.int16), position=(0, 0, 0), Rows=20_000, ImageType="LOCALIZER")
    np.testing.assert_array_equal(read(folder).voxels, chest(7))


def test_twenty_slices_are_needed(tmp_path):
    assert refusal(write_series(tmp_path / "Muster", chest(7)[:19]))[0] == "too_few_slices"
    np.testing.assert_array_equal(read(write_series(tmp_path / "Erika", chest(7)[:20])).voxels, chest(7)[:20])


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"Rows": 21}, "shape_mismatch"),
        ({"PixelSpacing": [3.0, 2.0]}, "shape_mismatch"),
        ({"PixelSpacing": None}, "nan_spacing"),
        ({"orientation": (0.98, 0.199, 0, -0.199, 0.98, 0)}, "slices_disagree"),
        ({"position": (-28.0, -43.0, -207.0 + 11 * 5)}, "slices_disagree"),
        ({"SamplesPerPixel": 3}, "not_ct"),
        ({"RescaleSlope": 0}, "dicom_damaged"),
        ({"PixelData": bytes(100)}, "dicom_damaged"),
        ({"PixelData": None}, "dicom_damaged"),
        ({"BitsAllocated": 12}, "dicom_damaged"),
    ],
)
def test_one_slice_that_does_not_fit_refuses_the_series(tmp_path, tags, code):
    folder = write_series(tmp_path / "Muster", each=lambda place: tags if place == 11 else {})
    assert refusal(folder)[0] == code


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_a_file_that_ends_early_is_refused(tmp_path, kept):
    folder = write_series(tmp_path / "Muster")
    path = files(folder)[11]
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert refusal(folder)[0] in {"dicom_damaged", "missing_slices", "not_ct"}


def test_numbers_that_are_no_hu_are_refused(tmp_path):
    assert refusal(write_series(tmp_path / "Muster", chest(7) + 1024))[0] == "hu_ambiguous"
    assert refusal(write_series(tmp_path / "Erika", np.full(SHAPE, -1000)))[0] == "constant_image"


def test_a_folder_without_dicom_or_without_anything(tmp_path):
    (tmp_path / "Muster").mkdir()
    assert refusal(tmp_path / "Muster") == ("dicom_damaged", "none of 0 files is DICOM")
    assert refusal(tmp_path / "Erika")[0] == "missing_file"


def test_nothing_that_pydicom_says_reaches_a_log(tmp_path, caplog, recwarn):
    folder = write_series(tmp_path / "Muster", PatientID="x" * 70, PatientBirthDate="1970-01-32", StudyDate=f"of {NAME}")
    torn = files(folder)[3]
    recwarn.clear()
    read(folder)
    torn.write_bytes(torn.read_bytes()[:700])
    refusal(folder)
    assert not [entry for entry in caplog.records if entry.name.startswith("pydicom")]
    assert not list(recwarn)


def test_without_pydicom_the_reader_says_what_to_install(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "Muster")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert refusal(folder) == ("codec_missing", "pydicom is not installed")
