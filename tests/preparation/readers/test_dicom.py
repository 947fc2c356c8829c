"""DICOM series written by hand are read as the volume they were made from, or refused without any name."""

import gzip
import itertools

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless
from small_dicom import CORNER_MM, NAME, SPACING, read, refusal, sorted_files, write_series, write_slice
from small_raw import SHAPE, chest

from mg3d.preparation import geometry

OTHER_UID = "1.2.3.2"
CHEST = chest(7)
MULTI_FRAME = ("not_ct", "multi-frame CT without positions of its frames; convert it to one file per slice, or to NIfTI")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "Muster"


def test_slices_are_sorted_by_position_not_by_name_or_number(folder):
    write_series(folder, each=lambda index: {"InstanceNumber": (index * 7) % 26})
    assert [path.name for path in sorted_files(folder)] != sorted(path.name for path in folder.iterdir())
    raw = read(folder)
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert raw.voxels.dtype == np.int16
    assert raw.spacing_mm == pytest.approx(SPACING)
    assert (raw.hu_source, raw.scale, raw.changes) == ("dicom_header", (1.0, 0.0), ())


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2, -1024), (0.5, -1010)])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_slope_and_intercept_of_the_header_make_hu(folder, slope, intercept, dtype):
    hu = CHEST // 2 * 2
    np.testing.assert_array_equal(read(write_series(folder, hu, slope=slope, intercept=intercept, kind=dtype)).voxels, hu)


def test_every_slice_has_its_own_intercept(folder):
    def each(index):
        stored = (CHEST[index] - (index - 1000)).astype(np.int16)
        return {"RescaleIntercept": index - 1000, "PixelData": stored.tobytes()}

    np.testing.assert_array_equal(read(write_series(folder, CHEST, each=each)).voxels, CHEST)


AXES = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)]


@pytest.mark.parametrize(("row", "column"), [pair for pair in itertools.product(AXES, AXES) if np.dot(*pair) == 0])
def test_any_direction_of_rows_and_columns_gives_the_same_volume(folder, row, column):
    rows_along_x = any(row[:1])
    planes = CHEST if rows_along_x else CHEST.transpose(0, 2, 1)
    planes = planes[:, :: 1 if sum(column) > 0 else -1, :: 1 if sum(row) > 0 else -1]
    ends = [(length - 1) * mm for length, mm in zip(CHEST.shape, SPACING)]
    corner = np.array(CORNER_MM[:2]) + [
        ends[2] * (min(*row[:1], *column[:1]) < 0), ends[1] * (min(row[1], column[1]) < 0),
    ]  # fmt: skip

    def each(index):
        return {"position": (*corner, CORNER_MM[2] + index * SPACING[0])}

    spacing = (SPACING[1], SPACING[2]) if rows_along_x else (SPACING[2], SPACING[1])
    raw = read(write_series(folder, planes, orientation=(*row, *column), spacing=spacing, each=each))
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert raw.spacing_mm == pytest.approx(SPACING)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("intercept", [0, -1024])
def test_compressed_slices_are_decoded_exactly(folder, syntax, intercept):
    np.testing.assert_array_equal(read(write_series(folder, syntax=syntax, intercept=intercept)).voxels, CHEST)


def test_a_missing_decoder_is_named(folder, monkeypatch):
    write_series(folder, syntax=RLELossless)
    monkeypatch.setattr("pydicom.pixels.decoders.RLELosslessDecoder._available", {})
    assert refusal(folder) == ("codec_missing", "RLE Lossless")


@pytest.mark.parametrize(("vr", "padding"), [("SS", -2000), ("US", 63536)])  # the second written as if unsigned
def test_padding_is_not_air(folder, vr, padding):
    hu = CHEST.copy()
    hu[:, :3] = -2000
    write_series(folder, hu)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", vr, padding)
        dataset.save_as(path)
    voxels = read(folder).voxels
    np.testing.assert_array_equal(voxels[:, 3:], hu[:, 3:])
    assert set(np.unique(voxels[:, :3])) == {-3000}


def test_header_that_declares_water_as_padding_is_ignored(folder):
    write_series(folder, PixelPaddingValue=0, intercept=int(CHEST[11, 11, 11]))
    np.testing.assert_array_equal(read(folder).voxels, CHEST)


# Choice of the series


@pytest.mark.parametrize(("first", "second", "chosen"), [(24, 26, 9), (26, 24, 7), (26, 26, 9)])
def test_series_with_most_slices_is_chosen_then_the_first_uid(folder, first, second, chosen):
    write_series(folder / "one", chest(7)[:first], SeriesInstanceUID=OTHER_UID)
    write_series(folder / "two", chest(9)[:second])
    raw = read(folder)
    np.testing.assert_array_equal(raw.voxels, chest(chosen)[: max(first, second)])
    assert [change.code for change in raw.changes] == ["other_series"]


@pytest.mark.parametrize("unit", ["MGML", "Z_EFF", "ED"])
def test_a_map_of_another_unit_than_hu_is_never_read(folder, unit):
    write_series(folder, np.abs(CHEST) // 50, start="A", SeriesInstanceUID="1.1", RescaleType=unit)
    assert refusal(folder)[0] == "no_axial_series"
    write_series(folder, SeriesInstanceUID="1.2", RescaleType="HU")
    np.testing.assert_array_equal(read(folder).voxels, CHEST)


def test_of_series_with_equally_many_slices_the_thinner_is_chosen(folder):
    def each(index):
        return {"position": (*CORNER_MM[:2], CORNER_MM[2] + 4 * index), "SeriesInstanceUID": "1.2.3.9"}

    write_series(folder / "one", chest(7), SeriesInstanceUID=OTHER_UID)
    write_series(folder / "two", chest(9), each=each)
    raw = read(folder)
    np.testing.assert_array_equal(raw.voxels, chest(9))
    assert raw.spacing_mm == pytest.approx((4, *SPACING[1:]))


def test_series_in_one_folder_are_separated_by_their_uid(folder):
    write_series(folder, chest(7)[:22])
    write_series(folder, chest(9), SeriesInstanceUID=OTHER_UID, start="B")
    np.testing.assert_array_equal(read(folder).voxels, chest(9))


@pytest.mark.parametrize("same_series", [True, False])
def test_scouts_captures_dose_reports_and_other_files_are_skipped(folder, same_series):
    write_series(folder)
    series = {} if same_series else {"SeriesInstanceUID": OTHER_UID}
    scout, localizer = np.zeros((40, 30), np.int16), ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    sagittal, flat = {"position": (0, 0, 0), "orientation": (0, 1, 0, 0, 0, -1)}, {"position": (0, 0, 9)}
    dose_report = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR", "SeriesInstanceUID": "1.2.3.3"}
    capture = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImageType": ["DERIVED", "SECONDARY"]}
    write_slice(folder / "A1.dcm", scout, **sagittal, ImageType=localizer, **series)
    write_slice(folder / "A2.dcm", scout, **flat, ImageType=localizer, Rows=20_000, **series)
    write_slice(folder / "A3.dcm", scout, **flat, **capture, **series)
    write_slice(folder / "A4.dcm", scout, **flat, **dose_report, PixelData=None)
    write_slice(folder / "A5.dcm", scout, **flat, ImagePositionPatient=None, **series)
    write_slice(folder / "A6.dcm", scout, **flat, NumberOfFrames=3, **series)
    (folder / "DICOMDIR").write_bytes(b"x" * 200)
    (folder / "notes.txt").write_text("a viewer's notes")
    (folder / "empty").write_bytes(b"")
    raw = read(folder)
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert [change.code for change in raw.changes] == ["other_series"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"ImageType": "LOCALIZER"}, ("no_axial_series", "1 CT series")),
        ({"NumberOfFrames": 4}, MULTI_FRAME),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1", "NumberOfFrames": 4}, MULTI_FRAME),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, ("not_ct", "color images")),
        ({"Modality": "MR"}, ("not_ct", "1 series of MR")),
    ],
)
def test_folder_without_axial_ct_slices_is_refused(folder, tags, expected):
    assert refusal(write_series(folder, **tags)) == expected


def test_folder_without_dicom_and_missing_folder_are_refused(folder, tmp_path):
    folder.mkdir()
    assert refusal(folder) == ("dicom_damaged", "none of 0 files is DICOM")
    assert refusal(tmp_path / "Erika")[0] == "missing_file"


# Geometry


def ramp(world_lps):
    """HU at positions [..., 3] in mm: 9 HU per mm to posterior and 4 per mm to superior, with air on the right."""
    return np.where(world_lps[..., 0] < -10, -1000, 9 * world_lps[..., 1] + 4 * world_lps[..., 2] + 900)


def write_ramp(folder, column, step):
    """`ramp` in slices whose columns run along `column` and that are `step` apart (LPS unit vectors, and mm)."""
    rows, columns = np.indices(SHAPE[1:])

    def each(index):
        corner = np.array(CORNER_MM) + index * np.array(step)
        pixels = corner + rows[..., None] * SPACING[1] * np.array(column) + columns[..., None] * SPACING[2] * np.array([1, 0, 0])
        return {"position": tuple(corner), "PixelData": np.rint(ramp(pixels)).astype(np.int16).tobytes()}

    return write_series(folder, orientation=(1, 0, 0, *map(float, column)), each=each)


@pytest.mark.parametrize(("degrees", "kind"), [(0.5, None), (-0.5, None), (8.0, "tilted"), (-12.0, "tilted"), (25.0, "rotated")])
def test_a_tilted_gantry_or_turned_slices_give_the_hu_at_every_position_of_the_patient(folder, degrees, kind):
    column = np.array([0.0, np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    normal = np.cross([1, 0, 0], column)
    raw = read(write_ramp(folder, column, SPACING[0] * (normal if kind == "rotated" else np.array([0, 0, 1]))))
    z, y, x = np.indices(raw.voxels.shape)
    to_lps = np.diag([-1, -1, 1, 1]) @ geometry.lps_affine(raw.affine, raw.voxels.shape)
    world = np.stack([x, y, z], -1) @ to_lps[:3, :3].T + to_lps[:3, 3]
    is_known = (raw.voxels > -1000) & (world[..., 0] > -7)
    assert is_known.mean() > 0.4
    assert np.abs(raw.voxels - ramp(world))[is_known].max() <= 1
    code = {"tilted": "gantry_tilt", "rotated": "oblique", None: None}[kind]
    assert raw.changes == (((code, f"{abs(degrees):.1f} degrees"),) if code else ())
    assert raw.spacing_mm == pytest.approx(SPACING, rel=0.03)


def test_identical_copies_of_a_slice_count_once_and_different_ones_are_refused(folder):
    copied = sorted_files(write_series(folder))[11]
    (folder / "IM9999.dcm").write_bytes(copied.read_bytes())
    np.testing.assert_array_equal(read(folder).voxels, CHEST)
    dataset = pydicom.dcmread(copied)
    dataset.PixelData = (CHEST[11] + np.int16(1)).tobytes()
    dataset.save_as(folder / "IM9999.dcm")
    assert refusal(folder) == ("duplicate_slices", "at slice 12 of 26")


def test_too_large_slices_are_refused_before_any_pixel_is_read(folder, monkeypatch):
    write_series(folder, Rows=20_000)
    monkeypatch.setattr("mg3d.preparation.readers.dicom._read_plane", None)
    assert refusal(folder) == ("too_large", "26 slices of up to 20000 pixels a side; at most 2048 are allowed")


@pytest.mark.parametrize(("count", "code"), [(19, "too_few_slices"), (20, None)])
def test_20_slices_are_required(folder, count, code):
    write_series(folder, CHEST[:count])
    if code:
        assert refusal(folder)[0] == code
    else:
        np.testing.assert_array_equal(read(folder).voxels, CHEST[:count])


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"position": (-28.0, -43.0, -207.0 + 11 * 5)}, "slices_disagree"),
        ({"RescaleSlope": 0}, "dicom_damaged"),
        ({"PixelData": bytes(100)}, "dicom_damaged"),
        ({"PixelData": None}, "dicom_damaged"),
        ({"BitsAllocated": 12}, "dicom_damaged"),
    ],
)
def test_one_inconsistent_slice_refuses_the_series_and_is_named(folder, tags, code):
    found, detail = refusal(write_series(folder, each=lambda index: tags if index == 11 else {}))
    assert found == code
    assert code == "slices_disagree" or "slice 12 from below" in detail


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_truncated_file_is_refused_and_pydicom_logs_nothing(folder, caplog, recwarn, fraction):
    write_series(folder, PatientID="x" * 70, PatientBirthDate="1970-01-32", StudyDate=f"of {NAME}")
    path = sorted_files(folder)[11]
    recwarn.clear()
    read(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    assert refusal(folder)[0] in {"dicom_damaged", "missing_slices", "not_ct"}
    assert not [entry for entry in caplog.records if entry.name.startswith("pydicom")]
    assert not list(recwarn)


@pytest.mark.parametrize(
    ("hu", "code"), [(CHEST - 1024, "hu_ambiguous"), (CHEST + 1024, "hu_ambiguous"), (np.full(SHAPE, -1000), "constant_image")]
)
def test_values_that_are_not_hu_of_a_chest_are_refused(folder, hu, code):
    assert refusal(write_series(folder, hu))[0] == code


def test_hu_of_the_header_are_trusted_without_air_and_noted(folder):
    """A cardiac scan, whose field of view lies within the body."""
    raw = read(write_series(folder, np.maximum(CHEST, -600)))
    np.testing.assert_array_equal(raw.voxels, np.maximum(CHEST, -600))
    assert raw.changes == (("no_air", "lowest values near -600 HU"),)


@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
def test_a_slice_without_rescale_is_not_trusted_without_air(folder, tag):
    write_series(folder, np.maximum(CHEST, -600), each=lambda index: {tag: None} if index == 5 else {})
    assert refusal(folder)[0] == "hu_ambiguous"


# Files as hospitals store them


def test_slices_compressed_with_gzip_and_slices_without_preamble_are_read(folder):
    write_series(folder)
    for number, path in enumerate(sorted(folder.iterdir())):
        content = path.read_bytes()
        if number % 3 == 0:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            path.unlink()
        elif number % 3 == 1:
            dataset = pydicom.dcmread(path)
            path.unlink()
            with path.with_suffix("").open("wb") as stream:
                pydicom.filewriter.write_dataset(dicom_stream(stream, number % 2), dataset)
    np.testing.assert_array_equal(read(folder).voxels, CHEST)


def dicom_stream(stream, is_implicit):
    wrapped = pydicom.filebase.DicomIO(stream)
    wrapped.is_little_endian, wrapped.is_implicit_VR = True, bool(is_implicit)
    return wrapped
