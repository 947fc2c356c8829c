import csv
import gzip
import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image
from small_arrow import report_of, write_split

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import index_path
from mg3d.glossary import LABELS

SPEC = importlib.util.spec_from_file_location("visualize_datasets", Path(__file__).parents[2] / "tools/visualize_datasets.py")
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)

SHAPE, SPACING = (7, 5, 6), (4.0, 2.0, 3.0)
"""z y x."""
NAME = "train_3_b_2"


def chest():
    """HU [z, y, x]: half air; inside, every voxel has a value of its own."""
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    volume[: len(volume) // 2] = -1000
    return volume.astype(np.int16)


def write_nifti(path, axes="LPS", *, values=None):
    """`chest()` with its array axes stored as `axes` says, and a header that tells so."""
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
    others = {"VolumeName": "train_1_a_1.nii.gz"}
    report = {"Findings_EN": "Heart is large.", "Impressions_EN": "Cardiomegaly"}
    write_csv(
        dataset / "radiology_text_reports" / "train_reports.csv",
        [others | dict.fromkeys(report, "Wrong."), {"VolumeName": f"{NAME}.nii.gz", **report}],
    )
    row = {
        "XYSpacing": "[2.0, 3.0]",
        "ZSpacing": "4.0",
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
    }
    write_csv(dataset / "metadata" / "train_metadata.csv", [{"VolumeName": f"{NAME}.nii.gz", **row}])
    labels = dict.fromkeys(LABELS, "0") | {"Cardiomegaly": "1", "Hiatal hernia": "1.0"}
    write_csv(dataset / "multi_abnormality_labels" / "train_predicted_labels.csv", [{"VolumeName": f"{NAME}.nii.gz", **labels}])
    return tmp_path / "ct_rate"


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SLP", "AIR", "PSR"])
def test_a_nifti_is_turned_upright_whatever_the_order_of_its_axes(tmp_path, axes):
    case = TOOL.read_case(write_nifti(tmp_path / "scan.nii.gz", axes), None)
    np.testing.assert_array_equal(case.volume, chest())
    assert case.spacing_mm == pytest.approx(SPACING)
    assert (case.name, case.report, case.title, case.window) == ("scan", "", "scan", (-1000.0, 400.0))


def test_a_volume_of_the_first_release_gets_geometry_hu_report_and_labels_from_the_tables(ct_rate):
    for folder, name in ((ct_rate.parent, NAME), (ct_rate, NAME), (ct_rate / "dataset", None)):
        case = TOOL.read_case(folder, name)
        np.testing.assert_array_equal(case.volume, chest())
        assert case.spacing_mm == pytest.approx(SPACING)
        assert case.report == "Heart is large.\nCardiomegaly"
        assert case.title == f"{NAME}: Cardiomegaly, Hiatal hernia"


def test_the_tables_are_read_as_the_preparation_reads_them(ct_rate):
    table = ct_rate / "dataset" / "metadata" / "train_metadata.csv"
    table.write_text(table.read_text().replace("[1, 0, 0, 0, 1, 0]", ""))  # the preparation takes such a volume as upright
    case = TOOL.read_case(ct_rate, NAME)
    np.testing.assert_array_equal(case.volume, chest())
    assert case.spacing_mm == pytest.approx(SPACING)


def test_the_corrected_tree_is_preferred(ct_rate):
    values = chest()
    values[-1] += 50
    write_nifti(ct_rate / "dataset" / "train_fixed" / "train_3" / "train_3_b" / f"{NAME}.nii.gz", "LPS", values=values)
    np.testing.assert_array_equal(TOOL.read_case(ct_rate, NAME).volume, values)


def test_what_is_in_no_hounsfield_units_is_shown_by_its_own_range(tmp_path):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    case = TOOL.read_case(write_nifti(tmp_path / "labels.nii", values=values), None)
    assert case.window == pytest.approx((0.01 * 209, 0.99 * 209))


def test_a_row_of_an_index_is_found_by_volume_or_study_with_or_without_the_data_sets_name(tmp_path):
    path = write_split(tmp_path, "ct_rate", "train", patients=3, reconstructions=2)
    for name, value in (("ct_rate/train_1_0_1", -997), ("train_2_0_0", -996), ("train_1_0", -998), (None, -1000)):
        case = TOOL.read_case(path, name)
        assert (case.volume == value).all()
    case = TOOL.read_case(path, "train_1_0_1")
    assert case.report == "\n".join(report_of(1))
    assert case.spacing_mm == [1.0, 2.0, 3.0]
    assert case.title.startswith("train_1_0_1: Medical material, Cardiomegaly")


def test_grey_volumes_are_shown_from_black_to_white(tmp_path):
    path = write_split(tmp_path, "ctrg", "val", patients=1, unit="uint8_unknown_window")
    assert TOOL.read_case(path, None).window == (0.0, 255.0)


@pytest.fixture
def ctrg_case(tmp_path):
    """A folder of ten slices whose grey tells their place from the top, and the JSON above it."""
    folder = tmp_path / "Chest_New" / "SOMEBODYS NAME"
    folder.mkdir(parents=True)
    for place in range(1, 11):
        Image.fromarray(np.full((8, 9), 20 * place, np.uint8)).save(folder / f"x_{place}.jpg", quality=95)
    items = [
        {"id": 1, "image_path": ["./Chest_New/OTHER/x_1.jpg"], "report": "Wrong.", "result": "Wrong."},
        {"id": 2, "image_path": [f"./Chest_New/{folder.name}/x_1.jpg"], "report": "Lungs are clear.", "result": "not given."},
    ]
    (tmp_path / "chest_ctrg_jpg.json").write_text(json.dumps({"train": items[:1], "test": items[1:]}))
    return folder


def test_slices_run_from_the_top_down_by_number(ctrg_case):
    case = TOOL.read_case(ctrg_case, None)
    assert case.volume.shape == (10, 8, 9)
    np.testing.assert_allclose(case.volume[:, 4, 4], np.arange(200, 0, -20), atol=2)
    assert case.report == "Lungs are clear."


def test_a_case_of_a_ctrg_root_is_chosen_by_its_place_and_the_first_that_is_there_without_one(ctrg_case, tmp_path):
    for given in (None, "ctrg_1", "1"):
        case = TOOL.read_case(tmp_path, given)
        assert (case.name, case.report, case.volume.shape) == ("ctrg_1", "Lungs are clear.", (10, 8, 9))
    for wrong in ("ctrg_0", "2", "SOMEBODYS NAME"):
        with pytest.raises(ValueError, match=r"give its place in chest_ctrg_jpg\.json, such as ctrg_1"):
            TOOL.read_case(tmp_path, wrong)


def test_a_folder_of_arrow_files_gives_the_volume_of_whichever_split_has_it(tmp_path):
    write_split(tmp_path, "ct_rate", "test", patients=0)
    write_split(tmp_path, "ct_rate", "train", patients=2)
    write_split(tmp_path, "ct_rate", "val", patients=2, first=5)
    for given, row in ((None, ("train", 0)), ("val_6_0", ("val", 1)), ("ct_rate/train_1_0_0", ("train", 1))):
        expected = VolumeIndex(index_path(tmp_path, "ct_rate", row[0])).volume(row[1])
        assert (TOOL.read_case(tmp_path, given).volume == expected).all()


def test_the_name_of_a_ctrg_folder_is_shown_nowhere(ctrg_case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert TOOL.main([str(ctrg_case)]) == 0
    (picture,) = (tmp_path / "result" / "pictures").iterdir()
    said = capsys.readouterr()
    assert "SOMEBODY" not in picture.name + said.out + said.err
    assert "SOMEBODY" not in TOOL.read_case(ctrg_case, None).title
    other = ctrg_case.rename(ctrg_case.with_name("ANOTHER"))
    (tmp_path / "chest_ctrg_jpg.json").write_text(json.dumps([{"image_path": ["a/b/c.jpg"]}, {"image_path": "./ANOTHER"}]))
    renamed = TOOL.read_case(other, None)
    assert renamed.name == picture.stem  # the name decides nothing of what is said, not even a number that gives it away
    (tmp_path / "chest_ctrg_jpg.json").unlink()
    assert TOOL.read_case(other, None).name == "ctrg_case"


def test_a_ctrg_folder_that_may_not_be_read_is_not_named(ctrg_case, monkeypatch, capsys):
    def iterdir(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert TOOL.main([str(ctrg_case)]) == 2
    assert "SOMEBODY" not in capsys.readouterr().err


def test_the_picture_is_written_where_it_is_asked_for(ct_rate, tmp_path, capsys):
    out = tmp_path / "picture.png"
    assert TOOL.main([str(ct_rate), "--case", NAME, "--out", str(out)]) == 0
    assert Image.open(out).size[0] > 1000
    assert str(out) in capsys.readouterr().out


def broken_nifti(folder):
    whole = gzip.compress(np.random.default_rng(0).bytes(4000))
    (folder / "cut.nii.gz").write_bytes(whole[:2000])


def binary_table(folder):
    next(folder.rglob("train_reports.csv")).write_bytes(b"VolumeName,\xff\xfe\x00")


def endless_cell(folder):
    csv.field_size_limit(1 << 17)  # the module's own, whatever ran before in this process
    next(folder.rglob("train_reports.csv")).write_text("VolumeName,Findings_EN\n" + "x" * 200_000)


def without_volumes(folder):
    next(folder.rglob(f"{NAME}.nii.gz")).unlink()


def flat_nifti(folder):
    nib.save(nib.Nifti1Image(np.zeros((4, 5), np.int16), np.eye(4)), folder / "flat.nii.gz")


def empty_ctrg(folder):
    (folder / "ctrg").mkdir()
    (folder / "ctrg" / "annotation.json").write_text(json.dumps([{"image_path": "./SOMEBODY"}]))


@pytest.mark.parametrize(
    ("make", "words", "said"),
    [
        (None, ["nowhere"], "there is no"),
        (None, ["empty"], "neither JPEG slices nor"),
        (None, ["./a.txt"], "no .arrow index"),
        (None, ["empty", "--case", "train_1_a_1"], "leave it out"),
        (broken_nifti, ["cut.nii.gz"], "cannot be read as NIfTI"),
        (flat_nifti, ["flat.nii.gz"], "2 axes, 4x5"),
        (None, ["a.arrow"], "not a complete Arrow file"),
        (None, ["ct_rate", "--case", "heart"], f"heart is no name of a CT-RATE volume; one that is there is {NAME}"),
        (None, ["ct_rate", "--case", "valid_1_a_1"], "has no volume valid_1_a_1"),
        (binary_table, ["ct_rate"], "train_reports.csv cannot be read as a CSV table (UnicodeDecodeError)"),
        (endless_cell, ["ct_rate"], "train_reports.csv cannot be read as a CSV table (Error)"),
        (without_volumes, ["ct_rate"], "holds no volume yet"),
        (None, ["clm_ctrg_train.arrow"], "an index without a volume"),
        (None, ["clm_ct_rate_val.arrow", "--case", "who"], "no volume or study who; the first of its 2 volumes is ct_rate/"),
        (None, [".", "--case", "who"], "has no volume or study who; looked for in clm_ct_rate_val.arrow, clm_ctrg_train.arrow"),
        (empty_ctrg, ["ctrg"], "none of the 1 cases of annotation.json is there"),
        (None, ["ct_rate", "--out", "a.jpg"], "should end in .png"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_sentence(ct_rate, monkeypatch, capsys, make, words, said):
    folder = ct_rate.parent / "other"
    folder.mkdir()
    if words[0] == "ct_rate":
        ct_rate.rename(folder / "ct_rate")
    monkeypatch.chdir(folder)
    Path("a.txt").write_text("")
    Path("empty").mkdir()
    Path("a.arrow").write_text("half")
    write_split(folder, "ct_rate", "val", patients=2)
    write_split(folder, "ctrg", "train", patients=0).rename("clm_ctrg_train.arrow")
    if make:
        make(folder)
    assert TOOL.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("visualize_datasets: ")
    assert said in error
    assert error.count("\n") == 1
