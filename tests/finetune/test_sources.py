"""Synthetic sets are made where they are asked for, and anew where those that lie there are of another kind."""

import json
from functools import partial

import pytest
import pytorch_lightning as pl
from downstream.folders import load

from mg3d.finetune import arrows, ranks, sources
from mg3d.finetune.run import declaration
from mg3d.finetune.settings import FinetuneSettings
from mg3d.phantom.downstream import registry

MADE = sources.SYNTHETIC_ROOT / "MSD"


@pytest.fixture
def read(monkeypatch, tmp_path):
    """What a task is told of its synthetic set, which is one small file here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ranks, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(ranks, "LOOK_S", 0.01)
    write = lambda order, *, tasks: (order.root / "tasks").write_text(" ".join(tasks))  # noqa: E731
    monkeypatch.setitem(registry.SETS, "MSD", registry.SyntheticSet(write, registry.TINY))
    module, told = load("MSD"), []

    def read_root(name):
        options = {**module.TASK.options, "task": name, "data_root": "phantom"}
        task = module.TASK.adapt(module.TASK, options)
        sources.read_root(task, FinetuneSettings(data_root="phantom"), synthetic=True, say=told.append)
        return (MADE / "tasks").read_text(), " ".join(told)

    return read_root


def test_a_synthetic_set_of_another_task_or_version_is_made_anew(read):
    assert "anew" not in read("Task06_Lung")[1]
    before = (MADE / "tasks").stat().st_mtime_ns
    assert "anew" not in read("Task06_Lung")[1]
    assert (MADE / "tasks").stat().st_mtime_ns == before  # kept
    found, told = read("Task10_Colon")
    assert found == "Task10_Colon"
    assert "of an earlier version or of other settings; it is made anew" in told
    mark = json.loads((MADE / registry.MARK).read_text())
    mark["settings"]["version"] = -1
    (MADE / registry.MARK).write_text(json.dumps(mark))
    (MADE / "tasks").write_text("old")
    assert read("Task10_Colon")[0] == "Task10_Colon"


def test_what_is_not_synthetic_is_never_removed(read):
    MADE.mkdir(parents=True)
    (MADE / "tasks").write_text("of a user")
    with pytest.raises(ValueError, match="holds no synthetic set"):
        read("Task06_Lung")
    assert (MADE / "tasks").read_text() == "of a user"


def test_other_processes_wait_for_the_new_set(read, monkeypatch):
    read("Task06_Lung")
    monkeypatch.setattr(pl.utilities.rank_zero_only, "rank", 1)
    assert read("Task06_Lung")[0] == "Task06_Lung"
    with pytest.raises(ValueError, match="MSD is not there after"):
        read("Task10_Colon")


@pytest.mark.parametrize(
    ("folder", "words", "told"),
    [
        ("stoic2021", ["pretrained=/nowhere.ckpt"], "pretrained=/nowhere.ckpt: there is no file"),
        ("stoic2021", ["mode=evaluate", "checkpoint=/nowhere.ckpt"], "checkpoint=/nowhere.ckpt: there is no file"),
        ("MSD", ["folds_file=/nowhere.json"], "folds_file=/nowhere.json: there is no file"),
        ("Covid19_20", ["folds_file=/nowhere.json"], "folds_file=/nowhere.json: there is no file"),
        ("CTRG", ["labeller=/nowhere"], "there is no labeller '/nowhere'"),
        ("CTRG", ["labeller={}"], "holds no labeller"),
        ("CTRG", ["labeller=chexbert"], "needs the package f1chexbert"),
        ("CT-RATE", ["task=prompts", "text_encoder=/nowhere"], "'/nowhere' is no local folder"),
    ],
)
def test_a_path_that_is_not_there_is_refused_before_data_are_made(monkeypatch, tmp_path, capsys, folder, words, told):
    from mg3d.finetune import run as command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "read_root", partial(pytest.fail, "data were read"))
    assert command.run(load(folder).TASK, [word.format(tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_reports_for_the_labeller_are_written_by_the_first_process_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ranks, "LONGEST_WAIT_S", 0.05)
    module = load("CT-RATE")
    monkeypatch.setattr(module, "write_language", partial(pytest.fail, "the second wrote"))
    monkeypatch.setattr(pl.utilities.rank_zero_only, "rank", 1)
    with pytest.raises(ValueError, match="finetune_language_arrows is not there after"):
        module.read_reports(tmp_path, 5)


def test_only_a_synthetic_set_has_the_small_decoder_whatever_file_it_comes_from(monkeypatch, tmp_path):
    for synthetic, width in ((False, 512), (True, 96)):
        monkeypatch.setattr(arrows, "read_facts", lambda *_, made=synthetic: {"synthetic": made, "split": "ours", "options": {},
                                                                             "declared": {}})  # fmt: skip
        (tmp_path / "own.arrow").touch()
        found = declaration(load("CTRG").TASK, {"data_root": str(tmp_path / "own.arrow")})
        assert found.task.options["width"] == width
    real = declaration(load("CT-RATE").TASK, {"mode": "predict", "input": "x"}).task  # a network of real volumes, no data_root
    assert real.preprocess.size == (128, 96, 128)
