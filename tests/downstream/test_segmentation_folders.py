"""The three segmentation folders read their data sets as published, and refuse what is not, in one sentence before training."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from downstream.folders import load

from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings

NAMES = ("MSD", "Covid19_20", "ACDC")
SMALL = ["epochs=1", "num_workers=0", "n_bootstrap=10", "accelerator=cpu", "max_cases=2", "batch_size=1"]


def options_of(name):
    return {"MSD": {"tasks": ["Task06_Lung", "Task07_Pancreas"]}, "ACDC": {"nnunet": True}}.get(name, {})


def words(root, results, *more):
    return [f"data_root={root}", f"log_dir={results}", "run_name=one", *SMALL, *more]


@pytest.fixture(scope="module")
def trained(tiny_set, tmp_path_factory):
    """A run of one epoch on the small COVID-19-20, its data and its words."""
    root, results = tiny_set("Covid19_20"), tmp_path_factory.mktemp("results")
    assert run(load("Covid19_20").TASK, words(root, results)) == 0
    return root, results / "Covid19_20" / "one" / "fold0", words(root, results)


def test_masks_of_a_run_lie_on_the_grid_of_their_scans_and_carry_the_scores(trained):
    root, folder, _ = trained
    table = pd.read_csv(folder / "predictions_val.csv")
    assert len(table) == 2
    for row in table.to_dict("records"):
        stem = root / "COVID-19-20_v2" / "Train" / row["case_id"]
        truth = nib.load(f"{stem}_seg.nii.gz")
        written = nib.load(folder / "masks" / f"{row['case_id'][-3:]}.nii.gz")
        np.testing.assert_allclose(written.affine, truth.affine, atol=1e-4)
        said, true = (np.asarray(image.dataobj) > 0 for image in (written, truth))
        assert row["dice/lesion"] == pytest.approx(2 * (said & true).sum() / (said.sum() + true.sum()), abs=1e-6)
    assert (folder / "results.html").is_file()


def test_prediction_writes_the_challenges_files_on_the_scans_grid(trained, tmp_path):
    root, _, asked = trained
    scans = root / "COVID-19-20_v2" / "Validation"
    out = tmp_path / "out"
    assert run(load("Covid19_20").TASK, [*asked, "mode=predict", f"input={scans}", f"output={out}"]) == 0
    for scan in scans.glob("*_ct.nii.gz"):
        written, image = nib.load(out / f"{scan.name[18:21]}.nii.gz"), nib.load(scan)
        assert written.shape == image.shape
        np.testing.assert_allclose(written.affine, image.affine, atol=1e-4)
    assert list(pd.read_csv(out / "predictions.csv")) == ["case_id", "patient_id", "volume_ml/lesion"]


def test_a_network_refuses_scans_that_are_prepared_otherwise(trained, tmp_path, capsys):
    root, folder, asked = trained
    without = [word for word in asked if not word.startswith("data_root")]
    named = ["mode=predict", f"input={root}", f"output={tmp_path / 'out'}", f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}"]
    assert run(load("Covid19_20").TASK, [*without, *named]) == 2
    assert "prepared otherwise: spacing_mm=(8.0, 8.0, 8.0) (now (5.0, 1.25, 1.25))" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_cases_are_read_with_their_masks_and_no_patient_is_in_two_folds(name, tiny_set):
    from mg3d.finetune.cases import assign_folds

    module = load(name)
    cases = module.read_cases(tiny_set(name, **options_of(name)), FinetuneSettings())
    assert len(cases) == {"MSD": 9, "Covid19_20": 9, "ACDC": 18}[name]
    assert all(case.image.is_file() and case.mask.is_file() and not case.image.name.startswith(".") for case in cases)
    folds = {}
    for case in assign_folds(cases, 4, seed=0):
        folds.setdefault(case.patient_id, set()).add((case.part, case.fold))
    assert all(len(held) == 1 for held in folds.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_above_is_found_and_the_one_below_is_refused(name, tiny_set):
    module, root = load(name), tiny_set(name, **options_of(name))
    below = {"MSD": root / "Task06_Lung" / "imagesTr", "Covid19_20": root / "COVID-19-20_v2" / "Train",
             "ACDC": root / "training" / "patient001"}[name]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"too deep in the data set; .* data_root="):
        module.read_cases(below, FinetuneSettings())
    above = root.parent
    inner = [case.case_id for case in module.read_cases(root, FinetuneSettings())]
    if name == "ACDC":
        assert [case.case_id for case in module.read_cases(above, FinetuneSettings())] == inner
    else:
        with pytest.raises(FileNotFoundError, match="name the folder that does"):
            module.read_cases(above, FinetuneSettings())


def test_a_decathlon_task_brings_its_own_structures_steps_and_results(tiny_set):
    root, module = tiny_set("MSD", **options_of("MSD")), load("MSD")
    options = {"task": "", "folds_file": "", "channel": 0}
    pancreas = module.adapt(module.TASK, options | {"data_root": str(root / "Task07_Pancreas")})
    assert pancreas.outputs == ("pancreas", "cancer")
    assert pancreas.name == "MSD/Task07_Pancreas"
    assert pancreas.preprocess.by_structure
    assert len(pancreas.read_cases(root / "Task07_Pancreas", FinetuneSettings())) == 9
    named = module.adapt(module.TASK, options | {"data_root": str(root), "task": "Task07_Pancreas"})
    assert named.outputs == pancreas.outputs
    colon = module.adapt(module.TASK, options | {"data_root": "phantom", "task": "Task10_Colon"})
    assert (colon.loss, colon.preprocess.window, colon.preprocess.spacing_mm) == ("dice_ce_squared", (-57, 175), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="holds Task07_Pancreas, not task=Task06_Lung"):
        module.adapt(module.TASK, options | {"data_root": str(root / "Task07_Pancreas"), "task": "Task06_Lung"})


def test_a_task_of_several_channels_is_read_channel_by_channel(tmp_path):
    from mg3d.finetune.images import read_image

    folder = tmp_path / "Task01_BrainTumour"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    voxels = np.stack([np.full((4, 5, 6), value, np.float32) for value in (3, 7)], -1)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 2, 3, 1.0])), folder / "imagesTr" / "BRATS_001.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.diag([1, 2, 3, 1.0])), folder / "labelsTr" / "BRATS_001.nii.gz")
    entry = {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}
    told = {"labels": {"0": "background", "1": "edema", "3": "enhancing", "2": "core"}, "modality": {"0": "FLAIR", "1": "T1w"}}
    (folder / "dataset.json").write_text(json.dumps(told | {"training": [entry]}))
    module = load("MSD")
    task = module.adapt(module.TASK, {"task": "", "folds_file": "", "channel": 1, "data_root": str(folder)})
    assert task.outputs == ("edema", "core", "enhancing")
    assert (task.preprocess.window, task.preprocess.channel) == (None, 1)
    (case,) = task.read_cases(folder, FinetuneSettings())
    assert read_image(case.image, channel=1).unique().tolist() == [7]
    with pytest.raises(ValueError, match="one volume of three axes"):
        read_image(case.image, channel=2)


@pytest.mark.parametrize("name", ["MSD", "Covid19_20"])
def test_folds_come_from_a_file_of_the_originals_shape(name, tiny_set, tmp_path):
    module, root = load(name), tiny_set(name, **options_of(name))
    names = [case.image.name for case in module.read_cases(root, FinetuneSettings())]
    file = tmp_path / "folds.json"
    entries = [{"fold": place % 3, "image": f"imagesTr/{image}", "label": image} for place, image in enumerate(names)]
    file.write_text(json.dumps({"training": entries}))
    task = module.adapt(module.TASK, {"task": "", "channel": 0, "folds_file": str(file), "data_root": ""})
    assert [case.fold for case in task.read_cases(root, FinetuneSettings())] == [place % 3 for place in range(9)]
    file.write_text(json.dumps({"training": [*entries, {"fold": 0, "image": "lung_999.nii.gz"}]}))
    with pytest.raises(ValueError, match=r"names 1 cases that are not in the data set, such as \['lung_999.nii.gz'\]"):
        task.read_cases(root, FinetuneSettings())
    file.write_text(json.dumps({"training": entries[1:]}))
    with pytest.raises(ValueError, match="leaves out 1 cases"):
        task.read_cases(root, FinetuneSettings())
    file.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="is no list of folds"):
        task.read_cases(root, FinetuneSettings())


def test_the_originals_division_of_acdc_parts_frames(tiny_set):
    module, root = load("ACDC"), tiny_set("ACDC", nnunet=True)
    cases = module.read_cases(root, FinetuneSettings(split="original", fold=1))
    held = [case for case in cases if case.fold == 1]
    assert 0 < len(held) < len(cases) == 12
    shared = {case.patient_id for case in held} & {case.patient_id for case in cases if case.fold != 1}
    assert shared
    assert cases[0].image.name.endswith("_0000.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"ACDC_fold0\.json, ACDC_fold1\.json, ACDC_fold2\.json"):
        module.read_cases(root, FinetuneSettings(split="original", fold=4))
    with pytest.raises(ValueError, match="one by one"):
        module.read_cases(root, FinetuneSettings(split="original", folds="all"))


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
        ("other grid", "lie elsewhere in space"),
        ("value 4", "not declared"),
        ("empty", "none of the 2 training cases has a voxel of lesion"),
    ],
)
def test_faults_are_told_before_training(fault, sentence, tiny_set, tmp_path, capsys):
    root = shutil.copytree(tiny_set("Covid19_20"), tmp_path / "copy")
    spoil(root, fault)
    assert run(load("Covid19_20").TASK, words(root, tmp_path / "results")) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert sentence in told
    assert not list((tmp_path / "results").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("fold=7", "there are 5 folds, 0 to 4"),
        ("data_root=nowhere", "there is no such folder"),
        ("folds_file=x", "there is no file or folder of this name"),
        ("channel=1", "Task06_Lung has 1 image(s)"),
        ("channel=x", "channel='x'"),
    ],
)
def test_wrong_words_are_told_before_training(word, sentence, tiny_set, tmp_path, capsys):
    assert run(load("MSD").TASK, words(tiny_set("MSD", **options_of("MSD")), tmp_path, "task=Task06_Lung", word)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert sentence in told


@pytest.mark.parametrize("name", ["MSD", "ACDC"])
@pytest.mark.parametrize("change", [lambda found: {**found, "training": ["a.nii.gz"]}, lambda found: [1], lambda found: {}])
def test_lists_of_another_shape_are_one_sentence(name, change, tiny_set, tmp_path, capsys):
    root = shutil.copytree(tiny_set(name, **options_of(name)), tmp_path / "copy")
    (file,) = root.rglob("Task06_Lung/dataset.json" if name == "MSD" else "ACDC_fold0.json")
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    word = {"MSD": "task=Task06_Lung", "ACDC": "split=original"}[name]
    assert run(load(name).TASK, words(root, tmp_path / "results", word)) == 2
    told = capsys.readouterr().err
    assert file.name in told
    assert told.count("\n") == 1


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


def test_label_values_with_a_gap_are_one_sentence(tmp_path):
    labels = {"0": "background", "1": "organ", "3": "tumour"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "modality": {"0": "CT"}, "training": []}))
    with pytest.raises(ValueError, match="labels of the values 0, 1, 3; they must be 0, 1, 2"):
        load("MSD").description(tmp_path)
