import importlib.util
from pathlib import Path

import pytest

from mg3d.settings.presets import PRESETS

SPEC = importlib.util.spec_from_file_location("choose_preset", Path(__file__).parents[2] / "tools/choose_preset.py")
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)


@pytest.mark.parametrize(
    ("words", "has_data", "has_gpu", "first"),
    [
        ([], False, False, ["tiny"]),
        ([], False, True, ["tiny"]),
        (["preset=full"], False, True, ["full"]),
        (["tiny"], True, False, ["tiny"]),
        ([], True, True, ["task_pretrain_mg3d", "swin_b", "text_radbert", "data_root=D"]),
    ],
)
def test_the_choice_follows_what_is_found(words, has_data, has_gpu, first):
    chosen, why = TOOL.choose(words, has_data=has_data, has_gpu=has_gpu, data_root="D")
    assert chosen[: len(first)] == first
    assert "resume_from=auto" in chosen
    assert why


def test_words_of_the_user_come_last():
    chosen, _ = TOOL.choose(["swin_l", "learning_rate=2e-5"], has_data=True, has_gpu=True, data_root="D")
    assert chosen[-2:] == ["swin_l", "learning_rate=2e-5"]


def test_real_data_without_a_gpu_is_refused_in_one_sentence_that_names_tiny():
    with pytest.raises(ValueError, match="tiny"):
        TOOL.choose([], has_data=True, has_gpu=False, data_root="D")


def test_the_presets_it_names_exist():
    assert set(TOOL.SMALL_OR_FULL) | {"task_pretrain_mg3d", "swin_b", "text_radbert"} <= set(PRESETS)
