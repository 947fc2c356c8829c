"""The three segmentation folders read their data sets as published, and refuse what is not, in one sentence before training."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from downstream.folders import load

from mg3d.finetune.dataset_json import read_dataset_json
from mg3d.finetune.run import run

NAMES = ("MSD", "Covid19_20", "ACDC")
SMALL = ["epochs=1", "num_workers=0", "n_bootstrap=10", "accelerator=cpu", "max_cases=2", "batch_size=1"]


def options_of(name):
    return {"MSD": {"tasks": ["Task06_Lung", "Task07_Pancreas"]}}.get(name, {})


def read(name, root, **overrides):
    module = load(name)
    settings = module.TASK.settings(**overrides)
    return module.read_cases(root, settings.model_copy(update={"task": "Task06_Lung"}) if name == "MSD" else settings)


def arguments(root, results, *more):
    return [f"data_root={root}", f"log_dir={results}", "run_name=one", *SMALL, *more]


@pytest.fixture(scope="module")
def trained(tiny_set, tmp_path_factory):
    """A run of one epoch on the small COVID-19-20, its data and its arguments."""
    root, results = tiny_set("Covid19_20"), tmp_path_factory.mktemp("results")
    assert run(load("Covid19_20").TASK, arguments(root, results)) == 0
    return root, results / "Covid19_20" / "one" / "fold0", arguments(root, results)


def test_masks_are_on_the_grid_of_their_scans_and_match_the_scores(trained):
    root, folder, _ = trained
    table = pd.read_csv(folder / "predictions_val.csv")
    assert len(table) == 2
    for row in table.to_dict("records"):
        stem = root / "COVID-19-20_v2" / "Train" / row["case_id"]
        truth = nib.load(f"{stem}_seg.nii.gz")
        written = nib.load(folder / "masks" / f"{row['case_id'][-3:]}.nii.gz")
        np.testing.assert_allclose(written.affine, truth.affine, atol=1e-4)
        predicted, true = (np.asarray(image.dataobj) > 0 for image in (written, truth))
        assert row["dice/lesion"] == pytest.approx(2 * (predicted & true).sum() / (predicted.sum() + true.sum()), abs=1e-6)
    assert (folder / "results.html").is_file()


def test_prediction_writes_the_challenges_files_on_the_scans_grid(trained, tmp_path):
    root, _, command = trained
    scans = root / "COVID-19-20_v2" / "Validation"
    out = tmp_path / "out"
    assert run(load("Covid19_20").TASK, [*command, "mode=predict", f"input={scans}", f"output={out}"]) == 0
    for scan in scans.glob("*_ct.nii.gz"):
        written, image = nib.load(out / f"{scan.name[18:21]}.nii.gz"), nib.load(scan)
        assert written.shape == image.shape
        np.testing.assert_allclose(written.affine, image.affine, atol=1e-4)
    assert list(pd.read_csv(out / "predictions.csv")) == ["case_id", "patient_id", "volume_ml/lesion"]


def test_a_prediction_uses_the_settings_of_the_checkpoint_and_refuses_others(trained, tmp_path, capsys):
    root, folder, command = trained
    without = [argument for argument in command if not argument.startswith(("data_root", "epochs", "batch_size"))]
    scans = root / "COVID-19-20_v2" / "Validation"
    options = ["mode=predict", f"input={scans}", f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}"]
    assert run(load("Covid19_20").TASK, [*without, *options, f"output={tmp_path / 'out'}"]) == 0
    assert run(load("Covid19_20").TASK, [*without, *options, "spacing_mm=[5,1,1]", f"output={tmp_path / 'other'}"]) == 2
    assert "fine-tuned with other settings: spacing_mm=[5.0, 1.0, 1.0] (was [8.0, 8.0, 8.0])" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_cases_are_read_with_their_masks_and_no_patient_is_in_two_folds(name, tiny_set):
    from mg3d.finetune.cases import assign_folds

    cases = read(name, tiny_set(name, **options_of(name)))
    assert len(cases) == {"MSD": 9, "Covid19_20": 9, "ACDC": 18}[name]
    assert all(case.image.is_file() and case.mask.is_file() and not case.image.name.startswith(".") for case in cases)
    folds = {}
    for case in assign_folds(cases, 4, seed=0):
        folds.setdefault(case.patient_id, set()).add((case.split, case.fold))
    assert all(len(assigned) == 1 for assigned in folds.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_above_is_found_and_the_one_below_is_refused(name, tiny_set):
    root = tiny_set(name, **options_of(name))
    below = {"MSD": root / "Task06_Lung" / "imagesTr", "Covid19_20": root / "COVID-19-20_v2" / "Train",
             "ACDC": root / "training" / "patient001"}[name]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"too deep in the data set; .* data_root="):
        read(name, below)
    above = root.parent
    inner = [case.case_id for case in read(name, root)]
    if name == "ACDC":
        assert [case.case_id for case in read(name, above)] == inner
    else:
        with pytest.raises(FileNotFoundError, match="use the folder that holds"):
            read(name, above)


def test_a_decathlon_task_has_its_own_structures_preprocessing_and_results(tiny_set):
    root, module = tiny_set("MSD", **options_of("MSD")), load("MSD")
    pancreas = module.resolve(module.TASK.settings(data_root=str(root / "Task07_Pancreas")))
    assert pancreas.structures == ("pancreas", "cancer")
    assert module.TASK.results_folder(pancreas).as_posix() == "result/finetune/MSD/Task07_Pancreas"
    assert len(module.read_cases(root / "Task07_Pancreas", pancreas)) == 9
    assert module.resolve(module.TASK.settings(data_root=str(root), task="Task07_Pancreas")).structures == pancreas.structures
    colon = module.resolve(module.TASK.settings(data_root="phantom", task="Task10_Colon"))
    assert (colon.spacing_mm, colon.window_hu) == ((1.0, 1.0, 1.0), (-57.0, 175.0))
    assert (pancreas.spacing_mm, pancreas.window_hu) == ((1.5, 1.5, 1.5), (-1000.0, 1000.0))  # never the window of the lung
    assert module.build(colon).outputs == ("cancer",)
    with pytest.raises(ValueError, match="holds Task07_Pancreas, not task=Task06_Lung"):
        module.resolve(module.TASK.settings(data_root=str(root / "Task07_Pancreas"), task="Task06_Lung"))


def test_a_task_of_several_channels_is_read_channel_by_channel(tmp_path):
    from mg3d.finetune.images import read_image

    folder = tmp_path / "Task01_BrainTumour"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    voxels = np.stack([np.full((4, 5, 6), value, np.float32) for value in (3, 7)], -1)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 2, 3, 1.0])), folder / "imagesTr" / "BRATS_001.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.diag([1, 2, 3, 1.0])), folder / "labelsTr" / "BRATS_001.nii.gz")
    entry = {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}
    message = {"labels": {"0": "background", "1": "edema", "3": "enhancing", "2": "core"}, "modality": {"0": "FLAIR", "1": "T1w"}}
    (folder / "dataset.json").write_text(json.dumps(message | {"training": [entry]}))
    module = load("MSD")
    settings = module.resolve(module.TASK.settings(data_root=str(folder), channel=1))
    assert settings.structures == ("edema", "core", "enhancing")
    assert module.build(settings).channel == 1
    (case,) = module.read_cases(folder, settings)
    assert read_image(case.image, channel=1).unique().tolist() == [7]
    with pytest.raises(ValueError, match="expected one 3D volume"):
        read_image(case.image, channel=2)


@pytest.mark.parametrize("name", ["MSD", "Covid19_20"])
def test_folds_are_read_from_a_published_file(name, tiny_set, tmp_path):
    root = tiny_set(name, **options_of(name))
    names = [case.image.name for case in read(name, root)]
    file = tmp_path / "folds.json"
    entries = [{"fold": index % 3, "image": f"imagesTr/{image}", "label": image} for index, image in enumerate(names)]
    file.write_text(json.dumps({"training": entries}))
    assert [case.fold for case in read(name, root, folds_file=str(file))] == [index % 3 for index in range(9)]
    file.write_text(json.dumps({"training": [*entries, {"fold": 0, "image": "lung_999.nii.gz"}]}))
    with pytest.raises(ValueError, match=r"lists 1 cases that are not in the data set, such as \['lung_999.nii.gz'\]"):
        read(name, root, folds_file=str(file))
    file.write_text(json.dumps({"training": entries[1:]}))
    with pytest.raises(ValueError, match="lacks 1 cases"):
        read(name, root, folds_file=str(file))
    file.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="is not a list of folds"):
        read(name, root, folds_file=str(file))


def spoil(root, fault):
    """One fault in a copy of the small COVID-19-20."""
    masks = sorted((root / "COVID-19-20_v2" / "Train").glob("*_seg.nii.gz"))
    if fault == "no mask":
        masks[0].unlink()
        return
    for file in masks:
        image = nib.load(file)
        values, affine = np.asarray(image.dataobj), image.affine.copy()
        if fault == "other grid":
            affine[0, 3] += 5
        values = {"value 4": 4 * values, "empty": 0 * values}.get(fault, values)
        file.unlink()
        nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), file)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("no mask", "has no mask"),
        ("other grid", "affines differ"),
        ("value 4", "undeclared"),
        ("empty", "none of the 2 training cases has a voxel of lesion"),
    ],
)
def test_bad_masks_are_refused_before_training(fault, sentence, tiny_set, tmp_path, capsys):
    root = shutil.copytree(tiny_set("Covid19_20"), tmp_path / "copy")
    spoil(root, fault)
    assert run(load("Covid19_20").TASK, arguments(root, tmp_path / "results")) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert sentence in message
    assert not list((tmp_path / "results").rglob("*.ckpt"))


def test_a_channel_that_does_not_exist_is_refused(tiny_set, tmp_path, capsys):
    root = tiny_set("MSD", **options_of("MSD"))
    assert run(load("MSD").TASK, arguments(root, tmp_path, "task=Task06_Lung", "channel=1")) == 2
    assert "Task06_Lung has 1 image(s)" in capsys.readouterr().err


@pytest.mark.parametrize("change", [lambda result: {**result, "training": ["a.nii.gz"]}, lambda result: [1], lambda result: {}])
def test_another_dataset_json_is_refused(change, tiny_set, tmp_path, capsys):
    root = shutil.copytree(tiny_set("MSD", **options_of("MSD")), tmp_path / "copy")
    (file,) = root.rglob("Task06_Lung/dataset.json")
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    assert run(load("MSD").TASK, arguments(root, tmp_path / "results", "task=Task06_Lung")) == 2
    message = capsys.readouterr().err
    assert file.name in message
    assert message.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_learns_something(name, tiny_set, tmp_path):
    root = tiny_set(name, **options_of(name))
    more = ["task=Task06_Lung"] if name == "MSD" else []
    chosen = [f"data_root={root}", f"log_dir={tmp_path}", "run_name=one", "epochs=12", "n_bootstrap=10", "accelerator=cpu", *more]
    assert run(load(name).TASK, chosen) == 0
    (file,) = tmp_path.rglob("scores.json")
    scores = {score["name"]: score["value"] for score in json.loads(file.read_text())["scores"]["val"]}
    assert scores["dice"] > 0.2


def test_label_values_with_a_gap_are_refused(tmp_path):
    labels = {"0": "background", "1": "organ", "3": "tumour"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "modality": {"0": "CT"}, "training": []}))
    with pytest.raises(ValueError, match="label values 0, 1, 3; expected 0, 1, 2"):
        read_dataset_json(tmp_path / "dataset.json")
