import re

import pytest

from mg3d.finetune.settings import FinetuneSettings, parse_settings, read_words, usage


def parsed(**given):
    return parse_settings(given, defaults={"epochs": 7}, options={"task": "probe"})


def test_words_become_typed_values():
    assert read_words(["fold=2", "data_root=/a=b", "flips=true", "learning_rate=1e-3", "pretrained=None"]) == {
        "fold": 2, "data_root": "/a=b", "flips": True, "learning_rate": 1e-3, "pretrained": "none",
    }  # fmt: skip


def test_the_users_words_win_over_the_folders_and_these_over_the_general():
    assert parsed().epochs == 7
    assert parsed(epochs=3).epochs == 3
    assert parsed().batch_size == FinetuneSettings().batch_size


def test_names_that_look_like_numbers_stay_names():
    assert parsed(run_name=7).run_name == "7"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pretraned": "x"}, "unknown setting 'pretraned'; did you mean pretrained"),
        ({"epochs": "many"}, "epochs='many': expected int"),
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"overlap": 1.5}, "overlap=1.5: expected a share"),
        ({"encoder": "resnet"}, "encoder='resnet': expected one of"),
        ({"mode": "predict"}, "mode=predict needs input="),
        ({"mode": "compare"}, "mode=compare needs other="),
    ],
)
def test_a_mistake_is_told_in_one_sentence(given, told):
    with pytest.raises(ValueError, match=told):
        parsed(**given)


def test_a_word_without_a_value_is_named():
    with pytest.raises(ValueError, match="'fold'"):
        read_words(["fold"])


def test_options_of_a_folder_are_known_and_listed():
    assert parsed(task="probe").epochs == 7
    told = usage({"val_epochs": 5}, {"task": "probe"}, {"val_epochs": 2, "preprocess.size": (8, 8, 8), "epochs": 100})
    assert re.search(r"^  task +=", told, re.MULTILINE)
    assert re.search(r"^  val_epochs += 5  \(data_root=phantom: 2\)$", told, re.MULTILINE)
    assert told.count("phantom:") == 1
