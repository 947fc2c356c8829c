"""Synthetic data are written on demand, and missing files are refused before data are prepared."""

import json
from functools import partial

import pytest
import pytorch_lightning as pl
from downstream.folders import load

from mg3d.finetune import data_root, distributed, experiment
from mg3d.finetune.run import run
from mg3d.phantom.downstream import registry

MADE = data_root.SYNTHETIC_ROOT / "MSD"


@pytest.fixture
def read(monkeypatch, tmp_path):
    """What a task is message of its synthetic set, which is one small file here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(distributed, "POLL_S", 0.01)
    write = lambda order, *, tasks: (order.root / "tasks").write_text(" ".join(tasks))  # noqa: E731
    monkeypatch.setitem(registry.SETS, "MSD", registry.SyntheticSet(write, registry.TINY))
    module, messages = load("MSD"), []
    monkeypatch.setattr(data_root, "info", messages.append)

    def read_root(name):
        settings = module.TASK.resolve(module.TASK.settings(data_root="phantom", task=name))
        data_root.find_root(module.TASK, settings, synthetic=True)
        return (MADE / "tasks").read_text(), " ".join(messages)

    return read_root


def test_synthetic_data_of_another_task_or_version_are_rebuilt(read):
    assert "rebuilding" not in read("Task06_Lung")[1]
    before = (MADE / "tasks").stat().st_mtime_ns
    assert "rebuilding" not in read("Task06_Lung")[1]
    assert (MADE / "tasks").stat().st_mtime_ns == before
    result, message = read("Task10_Colon")
    assert result == "Task10_Colon"
    assert "made by another version or with other settings; rebuilding it" in message
    mark = json.loads((MADE / registry.MARK).read_text())
    mark["settings"]["version"] = -1
    (MADE / registry.MARK).write_text(json.dumps(mark))
    (MADE / "tasks").write_text("old")
    assert read("Task10_Colon")[0] == "Task10_Colon"


def test_a_folder_of_the_user_is_never_overwritten(read):
    MADE.mkdir(parents=True)
    (MADE / "tasks").write_text("of a user")
    with pytest.raises(ValueError, match="holds no synthetic set"):
        read("Task06_Lung")
    assert (MADE / "tasks").read_text() == "of a user"


def test_other_processes_wait_for_the_new_set(read, monkeypatch):
    read("Task06_Lung")
    monkeypatch.setattr(pl.utilities.rank_zero_only, "rank", 1)
    assert read("Task06_Lung")[0] == "Task06_Lung"
    with pytest.raises(ValueError, match="MSD does not exist after"):
        read("Task10_Colon")


@pytest.mark.parametrize(
    ("folder", "arguments", "message"),
    [
        ("stoic2021", ["pretrained=/nowhere.ckpt"], "pretrained=/nowhere.ckpt: no such file"),
        ("stoic2021", ["mode=evaluate", "checkpoint=/nowhere.ckpt"], "checkpoint=/nowhere.ckpt: no such file"),
        ("MSD", ["folds_file=/nowhere.json"], "folds_file=/nowhere.json: no such file"),
        ("Covid19_20", ["folds_file=/nowhere.json"], "folds_file=/nowhere.json: no such file"),
        ("CTRG", ["labeller=/nowhere"], "labeller='/nowhere': expected one of"),
        ("CTRG", ["labeller={}"], "holds no labeller"),
        ("CTRG", ["labeller=chexbert"], "labeller=chexbert needs a package"),
    ],
)
def test_a_missing_path_is_refused_before_data_are_prepared(monkeypatch, tmp_path, capsys, folder, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "find_root", partial(pytest.fail, "data were read"))
    assert run(load(folder).TASK, [argument.format(tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_volumes_of_ct_rate_have_the_size_of_the_data_or_the_default():
    module = load("CT-RATE")
    assert module.resolve(module.TASK.settings(data_root="phantom")).volume_size == (64, 48, 64)
    assert module.resolve(module.TASK.settings(mode="predict", input="x")).volume_size == (128, 96, 128)
    assert module.resolve(module.TASK.settings(data_root="phantom", image_size=32)).volume_size == (32, 24, 32)
