import runpy

import pandas as pd
import pytest
import SimpleITK as sitk
from downstream.folders import ROOT, load

from mg3d.finetune.cases import assign_folds
from mg3d.finetune.data_check import inspect_files
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings

SMALL = ["epochs=1", "batch_size=3", "num_workers=0", "n_bootstrap=0", "accelerator=cpu"]


@pytest.fixture(scope="module")
def trained(tiny_set, tmp_path_factory):
    """(data root, run of one fold)."""
    root, results = tiny_set("stoic2021"), tmp_path_factory.mktemp("results")
    assert run(load("stoic2021").TASK, [f"data_root={root}", f"log_dir={results}", "run_name=r", *SMALL]) == 0
    return root, results / "stoic2021" / "r" / "fold0"


@pytest.fixture(scope="module")
def predict():
    """The script's main."""
    return runpy.run_path(str(ROOT / "downstream" / "stoic2021" / "predict.py"))["main"]


def test_the_challenges_table_holds_the_scores_of_the_run(trained, predict, tmp_path, capsys):
    root, folder = trained
    scans = tmp_path / "scans"
    scans.mkdir()
    wanted = pd.read_csv(folder / "predictions_val.csv", dtype={"case_id": str}).set_index("case_id")
    for name in wanted.index:
        (scans / f"{name}.mha").symlink_to(root / "data" / "mha" / f"{name}.mha")
    (scans / "broken.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")
    out = tmp_path / "result.csv"
    arguments = [f"data_root={root}", f"input={scans}", f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}", f"output={out}"]
    assert predict([*arguments, "accelerator=cpu"]) == 3
    assert "excluded broken" in capsys.readouterr().out
    table = pd.read_csv(out, dtype={"PatientID": str})
    assert list(table) == ["PatientID", "probCOVID", "probSevere"]
    assert sorted(table["PatientID"]) == sorted(wanted.index)
    result = table.set_index("PatientID").loc[wanted.index]
    for name in ("probCOVID", "probSevere"):
        assert result[name].to_numpy() == pytest.approx(wanted[f"score/{name}"].to_numpy(), abs=1e-6)


def test_a_missing_argument_is_one_sentence(predict, capsys):
    assert predict(["input=x"]) == 2
    error = capsys.readouterr().err
    assert "missing checkpoint=..., output=..." in error
    assert error.count("\n") == 1


def test_folds_have_equally_many_severe_and_positive_patients(tiny_set):
    cases = load("stoic2021").read_cases(tiny_set("stoic2021"), FinetuneSettings())
    counts = pd.crosstab(*zip(*((case.fold, str(case.target)) for case in assign_folds(cases, 2, seed=0)), strict=True))
    assert (counts.max() - counts.min() <= 1).all()
    assert len(counts.columns) == 3


def test_a_target_that_is_neither_0_nor_1_is_named(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "reference.csv").write_text("PatientID,probCOVID,probSevere\n1,1,0\n2,1,\n")
    with pytest.raises(ValueError, match="line 3: probCOVID and probSevere must be 0 or 1"):
        load("stoic2021").read_cases(tmp_path, FinetuneSettings())


def test_missing_scans_are_reported_by_name(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "reference.csv").write_text("PatientID,probCOVID,probSevere\n3,1,0\n12,1,1\n40,0,0\n")
    (tmp_path / "data" / "mha").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="none of the 3 scans"):
        load("stoic2021").read_cases(tmp_path, FinetuneSettings())
    sitk.WriteImage(sitk.Image(3, 4, 5, sitk.sitkInt16), str(tmp_path / "data" / "mha" / "12.mha"))
    summary = inspect_files(load("stoic2021").read_cases(tmp_path, FinetuneSettings()), tmp_path / "files.json")
    assert [name for name in summary if "error" in summary[name]] == ["3", "40"]
    assert summary["3"]["error"] == f"there is no file {tmp_path / 'data' / 'mha' / '3.mha'}"
