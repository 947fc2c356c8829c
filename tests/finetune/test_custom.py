"""Fine-tuning on a user's own table, from the command line and from Python."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from downstream.folders import script
from PIL import Image
from small_dicom import write_series
from small_raw import chest

import mg3d.finetune
from mg3d.finetune.custom import TASK, CustomSettings, build, read_cases, resolve
from mg3d.finetune.dataset_json import read_dataset_json
from mg3d.finetune.images import read_image
from mg3d.finetune.run import run
from mg3d.finetune.settings import parse_settings, read_arguments

SMALL = {"image_size": (16, 16, 16), "epochs": 2, "batch_size": 3, "num_workers": 0, "n_bootstrap": 10, "accelerator": "cpu",
         "encoder": "tiny", "warmup_epochs": 0}  # fmt: skip
SHAPE = (14, 18, 22)


def arguments(**settings):
    return [f"{name}={list(value) if isinstance(value, tuple) else value}" for name, value in (SMALL | settings).items()]


def write_scan(path, seed, *, shift_hu=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.random.default_rng(seed).integers(-900, 100, SHAPE).astype(np.int16) + shift_hu
    nib.save(nib.Nifti1Image(hu, np.diag([-1.0, -2.0, 3.0, 1.0])), path)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Twenty scans; those of odd numbers are denser."""
    root = tmp_path_factory.mktemp("scans")
    for number in range(20):
        write_scan(root / "ct" / f"s{number}.nii.gz", number, shift_hu=300 * (number % 2))
        mask = np.zeros(SHAPE, np.uint8)
        mask[3:9, 4:12, 5:15] = 1
        nib.save(nib.Nifti1Image(mask, np.diag([-1.0, -2.0, 3.0, 1.0])), root / "ct" / f"m{number}.nii.gz")
    return root


def write_table(scans, folder, *, rows=20, name="labels.csv", **columns):
    """A table in `folder` with absolute paths."""
    table = pd.DataFrame({"path": [str(scans / "ct" / f"s{number}.nii.gz") for number in range(rows)], **columns})
    table.to_csv(folder / name, index=False)
    return folder / name


ODD = [number % 2 for number in range(20)]
TASKS = {
    "binary": {"emphysema": ODD},
    "multilabel": {"emphysema": ODD, "nodule": [1, "", -1, 0] * 5},
    "multiclass": {"grade": ["mild", "severe"] * 10},
    "regression": {"volume": [10.5 * number for number in range(20)]},
    "segmentation": {"mask": [f"ct/m{number}.nii.gz" for number in range(20)]},
    "candidates": {"x": [-8.0] * 20, "y": [-16.0] * 20, "z": [30.0] * 20, "nodule": ODD},
}
"""Task that is read from the columns -> the columns."""


@pytest.mark.parametrize("task", TASKS)
def test_the_task_is_read_from_the_columns_and_runs_to_its_scores(task, scans, tmp_path):
    columns = TASKS[task] | ({"mask": [str(scans / name) for name in TASKS[task]["mask"]]} if task == "segmentation" else {})
    size = {"candidates": (8, 8, 8)}.get(task, (16, 16, 16))
    command = arguments(table=write_table(scans, tmp_path, **columns), log_dir=tmp_path, run_name="r", image_size=size, epochs=1)
    assert run(TASK, command) == 0
    summary = json.loads((tmp_path / "custom" / "r" / "fold0" / "scores.json").read_text())
    assert summary["settings"]["task"] == task
    assert {score["name"] for score in summary["scores"]["val"]} > {summary["metric"]}
    assert list((tmp_path / "custom" / "r" / "fold0" / "figures").glob("val_*.png"))


def test_a_run_from_python_is_evaluated_on_another_table_and_predicts(scans, tmp_path):
    """The other table repeats three scans of the first one, which are excluded by name and size."""
    table = write_table(scans, tmp_path, rows=14, emphysema=ODD[:14])
    finetuned = mg3d.finetune.fit(table, log_dir=str(tmp_path), run_name="r", **SMALL)
    scores = finetuned.scores().set_index("name")
    assert 0 <= scores.loc["auroc", "value"] <= 1
    assert sorted(finetuned.predictions()["case_id"]) == sorted(set(finetuned.predictions()["case_id"]))
    second = write_table(scans, tmp_path, name="other.csv", emphysema=ODD)
    external = finetuned.evaluate(second, accelerator="cpu")
    assert external.folder == finetuned.folder / "external-other"
    assert sorted(external.predictions("test")["case_id"]) == [f"s{number}" for number in range(14, 20)]
    excluded = pd.read_csv(external.folder / "excluded.csv")
    assert len(excluded) == 14
    assert set(excluded["reason"]) == {"the network was trained or selected on this scan"}
    predicted = finetuned.predict(scans / "ct" / "s15.nii.gz", tmp_path / "out", accelerator="cpu")
    same = external.predictions("test").set_index("case_id").loc["s15", "score/emphysema"]
    assert predicted["score/emphysema"].item() == pytest.approx(same, abs=1e-6)


def test_the_probe_needs_no_training(scans, tmp_path):
    finetuned = mg3d.finetune.fit(write_table(scans, tmp_path, emphysema=ODD), method="probe", log_dir=str(tmp_path), **SMALL)
    assert finetuned.folder.parent.name == "labels-emphysema-binary-probe-tiny-scratch"
    assert finetuned.scores().set_index("name").loc["auroc", "value"] == 1  # mean density tells the classes apart


def resolved(table, **settings):
    return resolve(CustomSettings(table=(str(table),), **settings))


def test_a_word_among_0_and_1_makes_classes_which_is_pointed_out(tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("path,effusion\na,0\nb,1\nc,maybe\n")
    assert resolved(tmp_path / "labels.csv").classes == ("0", "1", "maybe")
    assert "effusion is learned as the classes 0, 1, maybe; task=binary excludes all rows but 0 and 1" in capsys.readouterr().out
    assert resolved(tmp_path / "labels.csv", task="binary").classes == ()
    assert "learned as the classes" not in capsys.readouterr().out


def test_a_task_that_is_named_wins_over_the_columns(scans, tmp_path):
    table = write_table(scans, tmp_path, grade=[0, 1, 2, 3] * 5)
    assert (resolved(table).task, resolved(table).classes) == ("multiclass", ("0", "1", "2", "3"))
    settings = resolved(table, task="regression")
    assert settings.task == "regression"
    assert [case.target for case in read_cases(tmp_path, settings)][:3] == [(0.0,), (1.0,), (2.0,)]


def test_unknown_labels_are_masked_and_rows_without_any_are_excluded(scans, tmp_path):
    table = write_table(scans, tmp_path, rows=5, a=[1, 0, "", -1, 1], b=["", 0, "nan", "-1", 1])
    cases = read_cases(tmp_path, resolved(table))
    assert [case.target for case in cases if not case.error] == [(1, -1), (0, 0), (1, 1)]
    assert [case.error for case in cases if case.error] == ["row 4: a, b: unknown", "row 5: a, b: unknown"]


def test_splits_folds_and_patients_come_from_their_columns(scans, tmp_path):
    table = write_table(scans, tmp_path, rows=6, target=[0, 1] * 3, Set=["train", "train", "Validation", "val", "test", "test"],
                        patient_id=list("aabbcc"))  # fmt: skip
    settings = resolved(table)
    cases = read_cases(tmp_path, settings)
    assert [(case.split, case.fold) for case in cases] == [("train", 1)] * 2 + [("train", 0)] * 2 + [("test", -1)] * 2
    assert [case.patient_id for case in cases] == list("aabbcc")
    with pytest.raises(ValueError, match="one validation split; leave out fold"):
        read_cases(tmp_path, settings.model_copy(update={"fold": 1}))
    table = write_table(scans, tmp_path, rows=4, target=[0, 1] * 2, fold=[0, 4, 1, 1])
    assert [case.fold for case in read_cases(tmp_path, resolved(table))] == [0, 4, 1, 1]


BAD_ROWS = {
    "no file": ({"path": "nowhere.nii.gz"}, "row 2: there is no file"),
    "no path": ({"path": ""}, "row 2: path is empty"),
    "text": ({"label": "maybe"}, "row 2: label is 'maybe'; expected 0, 1"),
    "split": ({"split": "holdout"}, "row 2: split is 'holdout'; expected train, val or test"),
    "fold": ({"fold": "7"}, "row 2: fold is '7'; expected 0 to 4"),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_a_bad_row_is_excluded_with_its_number_and_the_others_are_used(fault, scans, tmp_path):
    change, message = BAD_ROWS[fault]
    table = pd.read_csv(write_table(scans, tmp_path, label=ODD, split=["train"] * 20, fold=[""] * 20), dtype=str)
    table.loc[0, list(change)] = list(change.values())
    table.to_csv(tmp_path / "labels.csv", index=False)
    cases = read_cases(tmp_path, resolved(tmp_path / "labels.csv", targets=("label",), task="binary"))
    assert len([case for case in cases if not case.error]) == 19
    (error,) = [case.error for case in cases if case.error]
    assert error.startswith(message)


def test_bad_masks_are_excluded_and_the_others_are_used(scans, tmp_path, capsys):
    masks = [str(scans / "ct" / f"m{number}.nii.gz") for number in range(12)]
    spoiled = {"255": (np.full(SHAPE, 255, np.uint8), 1.0), "size": (np.ones((5, 6, 7), np.uint8), 1.0),
               "0.5": (np.full(SHAPE, 0.5, np.float32), 1.0), "moved": (np.ones(SHAPE, np.uint8), 4.0)}  # fmt: skip
    for number, (name, (mask, spacing)) in enumerate(spoiled.items()):
        masks[number] = str(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.diag([-spacing, -2.0, 3.0, 1.0])), masks[number])
    table = write_table(scans, tmp_path, rows=12, mask=masks)
    assert run(TASK, arguments(table=table, log_dir=tmp_path, run_name="r", epochs=1, save_masks=False)) == 0
    excluded = pd.read_csv(tmp_path / "custom" / "r" / "excluded.csv").set_index("case_id")["reason"]
    assert sorted(excluded.index) == ["s0", "s1", "s2", "s3"]
    assert excluded["s0"] == "the mask has undeclared values, [255]; expected integers from 0 to 1"
    assert excluded["s1"].startswith("the mask is not on the grid of its scan: [5, 6, 7] voxels")
    assert "[0.5]" in excluded["s2"]
    assert "affines differ" in excluded["s3"]
    assert "excluded 4 of 12 cases" in capsys.readouterr().out


def test_scans_that_are_not_in_hounsfield_units_are_noticed(scans, tmp_path, capsys):
    for number in range(10):
        write_scan(tmp_path / "ct" / f"s{number}.nii.gz", number, shift_hu=900 + 100 * (number % 2))
    table = write_table(tmp_path, tmp_path, rows=10, label=ODD[:10])
    command = arguments(table=table, log_dir=tmp_path, run_name="r", method="probe")
    assert run(TASK, command) == 0
    assert "no scan has a negative value, so they may not be in HU" in capsys.readouterr().out


def test_relative_tables_start_at_the_folder_of_the_caller(monkeypatch, tmp_path):
    monkeypatch.setenv("MG3D_CALLER_DIR", str(tmp_path))
    for text in ("labels.csv", "[a.csv,b.csv]"):
        names = text.strip("[]").split(",")
        settings = parse_settings(CustomSettings, read_arguments([f"table={text}"]), {})
        assert settings.table == tuple(str(tmp_path / name) for name in names)


def test_repeated_rows_count_once_and_contradicting_ones_not_at_all(scans, tmp_path):
    table = pd.read_csv(write_table(scans, tmp_path, label=ODD))
    pd.concat([table, table.iloc[[3]], table.iloc[[4]].assign(label=1)]).to_csv(tmp_path / "labels.csv", index=False)
    cases = read_cases(tmp_path, resolved(tmp_path / "labels.csv"))
    assert {case.case_id for case in cases if not case.error} == {f"s{number}" for number in range(20)} - {"s4"}
    assert [case.error for case in cases if case.error] == [
        "row 6: row 6, row 23 of one scan contradict each other", "row 22: repeats row 5",
        "row 23: row 6, row 23 of one scan contradict each other",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "cannot be read as a table"),
        ("s0.nii.gz,1\ns1.nii.gz,0\n", {}, "has no path column .* in its first line, the header"),
        ("path,label\n", {}, "has a header but no row"),
        ("path,label\ns0.nii.gz,1,2\n", {}, "more cells than the header|cannot be read as a table"),
        ("path\ns0.nii.gz\n", {}, "has no target column"),
        ("path,a,age\nx,1,40\ny,0,50.5\n", {}, r"cannot be predicted together: a \(binary\), age \(regression\); choose targets"),
        ("path,a\nx,1\ny,1\n", {}, "a is 1 in every row; at least two values are needed"),
        ("path,a\nx,1\ny,0\n", {"targets": ("b",)}, "the table has no column b; it has a"),
        ("path,a\nx,1\ny,0\n", {"task": "segmentation"}, "has no column mask, which task=segmentation needs"),
        ("path,mask,a\nx,m,1\ny,n,0\n", {}, "has masks and targets"),
        ("path,patient,split,a\ns0,p,train,1\ns1,p,test,0\n", {}, "1 patients are in two splits"),
        ("path,a\nx,1\ny,0\n", {}, "none of the 2 rows .* can be used; the first: row 2: there is no file"),
        ("path,a\nx,1\ny,2.5\n", {"method": "probe"}, "method=probe fits binary and multilabel tasks"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_sentence(content, settings, message, tmp_path):
    from mg3d.finetune.cases import require_cases

    for name in ("s0", "s1"):
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        require_cases(read_cases(tmp_path, resolved(tmp_path / "labels.csv", **settings)), where=tmp_path / "labels.csv")
    assert "\n" not in str(caught.value)


def test_excel_semicolons_and_several_tables_are_read_alike(scans, tmp_path):
    pytest.importorskip("openpyxl")
    table = pd.read_csv(write_table(scans, tmp_path, label=ODD))
    table.iloc[:9].to_excel(tmp_path / "a.xlsx", index=False)
    table.iloc[9:].to_csv(tmp_path / "b.csv", index=False, sep=";")
    paths = (str(tmp_path / "a.xlsx"), str(tmp_path / "b.csv"))
    both = read_cases(tmp_path, resolve(CustomSettings(table=paths)))
    assert both == read_cases(tmp_path, resolved(tmp_path / "labels.csv"))


def test_paths_are_relative_to_the_table_and_may_be_dicom_folders_or_slices(scans, tmp_path):
    hu = np.rint(chest(7)).astype(np.int16)
    write_series(tmp_path / "dicom", hu)
    for number in range(3):
        (tmp_path / "png").mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 5), number, np.uint8)).save(tmp_path / "png" / f"{number}.png")
    shutil.copy(scans / "ct" / "s0.nii.gz", tmp_path / "s0.nii.gz")
    first_slice = next((tmp_path / "dicom").iterdir()).name
    (tmp_path / "labels.csv").write_text(f"File,y\ndicom,1\npng,0\ns0.nii.gz,1\ndicom/{first_slice},0\n")
    cases = read_cases(tmp_path, resolved(tmp_path / "labels.csv"))
    assert not any(case.error for case in cases)
    image = read_image(cases[0].image)
    assert sorted(image.shape[1:]) == sorted(hu.shape)
    assert np.array_equal(np.sort(image.numpy(), axis=None), np.sort(hu, axis=None))
    assert np.array_equal(read_image(cases[3].image), image)
    write_series(tmp_path / "dicom", hu, start="second", SeriesInstanceUID="1.2.3.2")
    with pytest.raises(ValueError, match="holds 2 axial series; name one slice of the right one"):
        read_image(cases[0].image)


def nnunet(folder, scans, *, version, **changes):
    """A data set of nnU-Net with two cases."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(2):
        shutil.copy(scans / "ct" / f"s{number}.nii.gz", folder / "imagesTr" / f"c{number}_0000.nii.gz")
        shutil.copy(scans / "ct" / f"m{number}.nii.gz", folder / "labelsTr" / f"c{number}.nii.gz")
    if version == 2:
        content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
    else:
        entries = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(2)]
        content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "tumour"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content | changes))
    return folder / "dataset.json"


@pytest.mark.parametrize("version", [1, 2])
def test_dataset_json_of_nnunet_is_a_table(version, scans, tmp_path):
    path = nnunet(tmp_path, scans, version=version)
    description = read_dataset_json(path)
    assert (description.structures, description.modalities) == (("tumour",), ("CT",))
    settings = resolved(path)
    assert (settings.task, settings.classes, settings.intensity, settings.window_hu) == (
        "segmentation", ("tumour",), "window", (-1000.0, 1000.0),
    )  # fmt: skip
    assert [case.image.name for case in read_cases(tmp_path, settings)] == ["c0_0000.nii.gz", "c1_0000.nii.gz"]
    assert build(settings).outputs == ("tumour",)


def test_other_modalities_are_z_scored(scans, tmp_path):
    assert resolved(nnunet(tmp_path, scans, version=2, channel_names={"0": "T2"})).intensity == "z_score"


def test_a_table_becomes_an_arrow_file_that_replaces_it(scans, tmp_path):
    table = write_table(scans, tmp_path, emphysema=ODD)
    assert script("make_arrow")["main"]([str(table), f"out={tmp_path / 'all.arrow'}"]) == 0
    settings = {"log_dir": str(tmp_path), "epochs": 1} | {name: value for name, value in SMALL.items() if name != "epochs"}
    runs = [mg3d.finetune.fit(source, run_name=name, **settings) for name, source in
            (("table", table), ("arrow", tmp_path / "all.arrow"))]  # fmt: skip
    pd.testing.assert_frame_equal(*(finetuned.predictions() for finetuned in runs))
