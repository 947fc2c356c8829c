import csv
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image
from small_arrow import report_of, write_split
from small_dicom import write_series

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import index_path
from mg3d.glossary import LABELS
from tools import visualize_datasets

SHAPE, SPACING = (22, 15, 16), (4.0, 2.0, 3.0)
"""z y x."""
NAME = "train_3_b_2"


def chest():
    """HU [z, y, x]: half air; every other voxel has a different value."""
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE) // 2
    volume[: len(volume) // 2] = -1000
    return volume.astype(np.int16)


def write_nifti(path, axes="LPS", *, values=None):
    """`chest()` stored with the axes `axes` and a matching header."""
    image = nib.Nifti1Image((chest() if values is None else values).transpose(2, 1, 0), np.diag([-3.0, -2.0, 4.0, 1.0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axes))), path)
    return path


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def ct_rate(tmp_path):
    """A CT-RATE folder with one volume of the first release: raw values, blank header."""
    dataset = tmp_path / "ct_rate" / "dataset"
    path = dataset / "train" / "train_3" / "train_3_b" / f"{NAME}.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image((chest() + 1024).astype(np.float64).transpose(2, 1, 0), np.eye(4)), path)
    report = {"Findings_EN": "Heart is large.", "Impressions_EN": "Cardiomegaly"}
    write_csv(
        dataset / "radiology_text_reports" / "train_reports.csv",
        [{"VolumeName": "train_1_a_1.nii.gz", **dict.fromkeys(report, "Wrong.")}, {"VolumeName": f"{NAME}.nii.gz", **report}],
    )
    z, y, x = SHAPE
    row = {
        "VolumeName": f"{NAME}.nii.gz", "XYSpacing": "[2.0, 3.0]", "ZSpacing": "4.0", "RescaleSlope": "1",
        "RescaleIntercept": "-1024", "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
        "Rows": str(y), "Columns": str(x), "NumberofSlices": str(z),
    }  # fmt: skip
    write_csv(dataset / "metadata" / "train_metadata.csv", [row])
    labels = dict.fromkeys(LABELS, "0") | {"Cardiomegaly": "1", "Hiatal hernia": "1"}
    write_csv(dataset / "multi_abnormality_labels" / "train_predicted_labels.csv", [{"VolumeName": f"{NAME}.nii.gz", **labels}])
    return tmp_path / "ct_rate"


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SLP", "AIR", "PSR"])
def test_a_nifti_is_displayed_upright_for_any_order_of_its_axes(tmp_path, axes):
    case = visualize_datasets.read_case(write_nifti(tmp_path / "scan.nii.gz", axes), None)
    np.testing.assert_array_equal(case.volume, chest())
    assert case.spacing_mm == pytest.approx(SPACING)
    assert (case.name, case.report, case.title, case.window) == ("scan", "", "scan", (-1000.0, 400.0))


def test_a_volume_of_ct_rate_is_read_with_its_tables(ct_rate):
    for folder, name in ((ct_rate.parent, NAME), (ct_rate, NAME), (ct_rate / "dataset", None)):
        case = visualize_datasets.read_case(folder, name)
        np.testing.assert_array_equal(case.volume, chest())
        assert case.spacing_mm == pytest.approx(SPACING)
        assert case.report == "Heart is large.\nCardiomegaly"
        assert case.title == f"{NAME}: Cardiomegaly, Hiatal hernia"


def test_a_label_map_is_displayed_with_its_own_range(tmp_path):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    case = visualize_datasets.read_case(write_nifti(tmp_path / "labels.nii", values=values), None)
    last = np.prod(SHAPE) - 1
    assert case.window == pytest.approx((0.01 * last, 0.99 * last))
    np.testing.assert_array_equal(case.volume, values)


def test_a_dicom_series_is_displayed(tmp_path):
    folder = write_series(tmp_path / "MUSTER")
    case = visualize_datasets.read_case(folder, None)
    assert case.spacing_mm == pytest.approx((5.0, 3.0, 2.5))
    assert (case.name, case.window) == ("series", (-1000.0, 400.0))
    assert case.volume.min() < -900


def test_a_row_of_an_index_is_found_by_volume_or_study_with_or_without_the_data_sets_name(tmp_path):
    path = write_split(tmp_path, "ct_rate", "train", patients=3, reconstructions=2)
    for name, value in (("ct_rate/train_1_0_1", -997), ("train_2_0_0", -996), ("train_1_0", -998), (None, -1000)):
        assert (visualize_datasets.read_case(path, name).volume == value).all()
    case = visualize_datasets.read_case(path, "train_1_0_1")
    assert case.report == "\n".join(report_of(1))
    assert case.spacing_mm == [1.0, 2.0, 3.0]
    assert case.title.startswith("train_1_0_1: Medical material, Cardiomegaly")


def test_8_bit_volumes_are_displayed_with_their_full_range(tmp_path):
    path = write_split(tmp_path, "ctrg", "val", patients=1, unit="uint8_unknown_window")
    assert visualize_datasets.read_case(path, None).window == (0.0, 255.0)


def test_a_folder_of_arrow_files_is_searched_in_all_splits(tmp_path):
    write_split(tmp_path, "ct_rate", "test", patients=0)
    write_split(tmp_path, "ct_rate", "train", patients=2)
    write_split(tmp_path, "ct_rate", "val", patients=2, first=5)
    for given, row in ((None, ("train", 0)), ("val_6_0", ("val", 1)), ("ct_rate/train_1_0_0", ("train", 1))):
        expected = VolumeIndex(index_path(tmp_path, "ct_rate", row[0])).volume(row[1])
        assert (visualize_datasets.read_case(tmp_path, given).volume == expected).all()


@pytest.fixture
def ctrg_case(tmp_path):
    """A folder of 22 slices whose grey value is their number from the top, and the JSON above it."""
    folder = tmp_path / "Chest_New" / "SOMEBODYS NAME"
    folder.mkdir(parents=True)
    for number in range(1, 23):
        Image.fromarray(np.full((8, 9), 10 * number, np.uint8)).save(folder / f"x_{number}.jpg", quality=95)
    items = [
        {"id": 1, "image_path": ["./Chest_New/OTHER/x_1.jpg"], "report": "Wrong.", "result": "Wrong."},
        {"id": 2, "image_path": [f"./Chest_New/{folder.name}/x_1.jpg"], "report": "Lungs are clear.", "result": "not given."},
    ]
    (tmp_path / "chest_ctrg_jpg.json").write_text(json.dumps({"train": items[:1], "test": items[1:]}))
    return folder


def test_slices_are_stacked_from_superior_to_inferior_by_number(ctrg_case):
    case = visualize_datasets.read_case(ctrg_case, None)
    assert case.volume.shape == (22, 8, 9)
    np.testing.assert_allclose(case.volume[:, 4, 4], np.arange(220, 0, -10), atol=2)


def test_a_case_of_ctrg_is_selected_by_its_position(ctrg_case, tmp_path):
    for given in (None, "ctrg_1", "1"):
        case = visualize_datasets.read_case(tmp_path, given)
        assert (case.name, case.report, case.volume.shape) == ("ctrg_1", "Lungs are clear.", (22, 8, 9))
    for wrong in ("ctrg_0", "2", "SOMEBODYS NAME"):
        with pytest.raises(ValueError, match="an available one is --case ctrg_1"):
            visualize_datasets.read_case(tmp_path, wrong)


def test_folder_names_of_cases_are_never_shown(ctrg_case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, ctrg_case):
        assert visualize_datasets.main([str(path)]) == 0
        assert "SOMEBODY" not in visualize_datasets.read_case(path, None).title
    names = {path.name for path in (tmp_path / "result" / "figures").iterdir()}
    assert names == {"ctrg_1.png", "slices.png"}
    monkeypatch.setattr(Path, "iterdir", lambda self: (_ for _ in ()).throw(PermissionError(13, "denied", str(self))))
    assert visualize_datasets.main([str(ctrg_case)]) == 2
    output = capsys.readouterr()
    assert "SOMEBODY" not in output.out + output.err


def test_the_figure_is_written_to_out(ct_rate, tmp_path, capsys):
    out = tmp_path / "case.png"
    assert visualize_datasets.main([str(ct_rate), "--case", NAME, "--out", str(out)]) == 0
    assert Image.open(out).size[0] > 1000
    assert str(out) in capsys.readouterr().out


def truncated_nifti(folder):
    (folder / "cut.nii.gz").write_bytes(gzip.compress(np.random.default_rng(0).bytes(4000))[:2000])


def flat_nifti(folder):
    nib.save(nib.Nifti1Image(np.zeros((4, 5), np.int16), np.eye(4)), folder / "flat.nii.gz")


def binary_table(folder):
    next(folder.rglob("train_reports.csv")).write_bytes(b"VolumeName,\xff\xfe\x00")


def without_volumes(folder):
    next(folder.rglob(f"{NAME}.nii.gz")).unlink()


def empty_ctrg(folder):
    (folder / "ctrg").mkdir()
    (folder / "ctrg" / "annotation.json").write_text(json.dumps([{"image_path": "./SOMEBODY"}]))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (None, ["nowhere"], "nowhere does not exist"),
        (None, ["empty"], "cannot be read"),
        (None, ["./a.txt"], "is not a .arrow, .nii, .nii.gz, .hdr, .mha, .mhd"),
        (None, ["empty", "--case", "train_1_a_1"], "Omit it"),
        (truncated_nifti, ["cut.nii.gz"], "cut cannot be read"),
        (flat_nifti, ["flat.nii.gz"], "flat cannot be read"),
        (None, ["a.arrow"], "not a complete Arrow file"),
        (None, ["ct_rate", "--case", "heart"], f"has no scan heart; an available one is --case {NAME}"),
        (binary_table, ["ct_rate"], "train_reports.csv"),
        (without_volumes, ["ct_rate"], "none of them has been downloaded"),
        (None, ["clm_ctrg_train.arrow"], "no volume in . (clm_ctrg_train.arrow)"),
        (None, [".", "--case", "who"], "no volume or study who in . (clm_ct_rate_val.arrow, clm_ctrg_train.arrow)"),
        (empty_ctrg, ["ctrg"], "none of them has been downloaded"),
        (None, ["ct_rate", "--out", "a.jpg"], "must end in .png"),
    ],
)
def test_errors_are_reported_in_one_line(ct_rate, monkeypatch, capsys, make, arguments, message):
    folder = ct_rate.parent / "other"
    folder.mkdir()
    ct_rate.rename(folder / "ct_rate")
    if arguments[0] != "ct_rate":
        (folder / "ct_rate").rename(folder / "hidden")
    monkeypatch.chdir(folder)
    Path("a.txt").write_text("")
    Path("empty").mkdir()
    Path("a.arrow").write_text("half")
    write_split(folder, "ct_rate", "val", patients=2)
    write_split(folder, "ctrg", "train", patients=0).rename("clm_ctrg_train.arrow")
    if make:
        make(folder)
    assert visualize_datasets.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("visualize_datasets: ")
    assert message in error
    assert error.count("\n") == 1
