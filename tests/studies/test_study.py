"""Study files, and how a study is executed: what is skipped, refused and continued."""

import json

import pytest
import yaml

from mg3d.studies import execute as execution
from mg3d.studies.execute import Folders
from mg3d.studies.measure import METRICS
from mg3d.studies.study import read_study
from tools import study as tool

RUNS = {"all": {}, "long": {"max_steps": 70, "seeds": [0]}, "vit": {"presets": ["vit_tiny"]}}


def write(folder, **changes):
    path = folder / "small.yaml"
    content = {"title": "Small", "presets": ["tiny"], "settings": {"max_steps": 60}, "seeds": [0, 1], "runs": RUNS}
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def test_runs_inherit_presets_and_settings_and_the_first_seed_of_all_comes_first(tmp_path):
    study = read_study(write(tmp_path))
    assert [(run.name, seed) for run, seed in study.jobs] == [("all", 0), ("long", 0), ("vit", 0), ("all", 1), ("vit", 1)]
    assert study.baseline == "all"
    assert [study.runs[name].resolved().optim.max_steps for name in RUNS] == [60, 70, 60]
    assert study.runs["vit"].resolved().vision.vision_encoder == "vit"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"runs": {}}, "needs `runs:`"),
        ({"sedes": [0]}, "unknown key 'sedes'; did you mean seeds"),
        ({"baseline": "al"}, "unknown baseline 'al'; did you mean all"),
        ({"runs": {"a/b": {}}}, "run 'a/b': the name is used for files"),
        ({"runs": {"a": {"max_step": 3}}}, "run a: unknown setting 'max_step'; did you mean max_steps"),
        ({"runs": {"a": {"max_steps": 5}}}, "run a: warmup_steps=50 must be less"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"presets": ["tiney"]}, "unknown preset 'tiney'"),
    ],
)
def test_mistakes_in_a_study_file_are_refused_by_name(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=r"small\.yaml") as error:
        read_study(write(tmp_path, **changes))
    assert sentence in str(error.value)


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("runs: [")
    with pytest.raises(ValueError, match="is not YAML"):
        read_study(path)


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that were trained; training and measuring are replaced, `vit` fails."""
    names = []

    def measure(settings):
        name, seed = settings.run.run_name.split("/")[0], settings.run.seed
        values = {"auroc_18": 0.6 + 0.1 * (name == "long") + 0.01 * seed, "recall_1": 0.5}
        metrics = {metric: {"value": value, "draws": [value - 0.02, value, value + 0.03]} for metric, value in values.items()}
        return {"data": {"studies": 9, "ids_sha256": "a"}, "metrics": metrics}

    def train(run, seed, settings, folders):
        if run.name == "vit":
            raise execution.Failed(f"vit, seed {seed}: training ended with exit code 3")
        names.append((run.name, seed))
        return 1.5

    monkeypatch.setattr(execution, "_train", train)
    monkeypatch.setattr("mg3d.studies.measure.measure_run", measure)
    return names


def test_finished_runs_are_skipped_failed_ones_reported_and_all_are_in_the_table(tmp_path, trained, capsys):
    path = write(tmp_path)
    command = [str(path), "--work", str(tmp_path / "work")]
    assert tool.main([*command, "--runs", "all"]) == 0
    assert trained == [("all", 0), ("all", 1)]
    assert tool.main(command) == 1
    assert trained == [("all", 0), ("all", 1), ("long", 0)]
    output = capsys.readouterr()
    assert "vit, seed 1: training ended with exit code 3" in output.err
    assert METRICS["auroc_18"].short in output.out
    assert METRICS["auroc_5"].short not in output.out
    rows = (tmp_path / "results" / "small.csv").read_text().splitlines()
    assert "auroc_18,long,1,0.70000" in rows[2]
    assert rows[2].split(",")[6] == "0.09500"
    page = (tmp_path / "results" / "small.html").read_text()
    assert "Not finished: vit (seed 0), vit (seed 1)" in page
    assert page.count("<img") == 2


def test_a_result_of_other_settings_or_other_data_is_refused(tmp_path, trained, capsys):
    path = write(tmp_path, runs={"all": {}})
    command = [str(path), "--work", str(tmp_path / "work")]
    assert tool.main(command) == 0
    write(tmp_path, runs={"all": {}}, settings={"max_steps": 61})
    assert tool.main(command) == 2
    assert "all.seed0.json was measured with other settings: max_steps=60 (now 61)" in capsys.readouterr().err
    write(tmp_path, runs={"all": {}})
    folders = Folders(tmp_path / "results" / "small", tmp_path)
    changed = folders.result(read_study(path).runs["all"], 1)
    changed.write_text(changed.read_text().replace('"ids_sha256": "a"', '"ids_sha256": "b"'))
    assert tool.main([*command, "--table"]) == 2
    assert "different held-out studies" in capsys.readouterr().err
    changed.write_text(json.dumps({"format": 0}))
    assert tool.main([*command, "--table"]) == 2
    assert "is not a result of this version" in capsys.readouterr().err
    assert trained == [("all", 0), ("all", 1)]
