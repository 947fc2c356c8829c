import re

import pytest

from mg3d.finetune.settings import (
    FinetuneSettings,
    Location,
    Size,
    changed,
    describe_settings,
    parse_settings,
    read_arguments,
)


class FolderSettings(FinetuneSettings):
    """Settings of a folder."""

    patch_size: Size = (2, 3, 4)
    """Patches in voxels."""
    folds_file: Location = ""
    """A file."""


def parsed(**overrides):
    return parse_settings(FolderSettings, overrides, {"epochs": 7})


def test_arguments_become_typed_settings():
    overrides = read_arguments(
        ["fold=2", "data_root=/a=b", "tta=true", "learning_rate=1e-3", "pretrained=None", "patch_size=(8, 9,10)"]
    )
    settings = parse_settings(FolderSettings, overrides | {"run_name": "7"}, {})
    assert (settings.fold, settings.data_root, settings.tta, settings.learning_rate) == (2, "/a=b", True, 1e-3)
    assert (settings.pretrained, settings.patch_size, settings.run_name) == ("none", (8, 9, 10), "7")


@pytest.mark.parametrize("text", ["2024_01", "1.10", "1e3", "007", "0x10", "true", "[a", "1,2"])
def test_text_stays_as_it_was_typed(text):
    settings = parse_settings(FinetuneSettings, read_arguments([f"run_name={text}", f"output={text}"]), {})
    assert (settings.run_name, settings.output) == (text, text)


def test_the_user_overrides_the_folder_which_overrides_the_general_default():
    assert parsed().epochs == 7
    assert parsed(epochs=3).epochs == 3
    assert parsed().batch_size == FinetuneSettings().batch_size


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pretraned": "x"}, "unknown setting 'pretraned'; did you mean pretrained"),
        ({"epochs": "many"}, "epochs='many' should be a valid integer"),
        ({"epochs": 0}, "epochs=0 should be greater than 0"),
        ({"overlap": 1.5}, "overlap=1.5 should be less than or equal to 0.95"),
        ({"learning_rate": "nan"}, "learning_rate='nan' should be a finite number"),
        ({"encoder": "resnet"}, "encoder='resnet': expected one of auto"),
        ({"mode": "predict"}, "mode=predict needs input="),
        ({"mode": "compare"}, "mode=compare needs other="),
        ({"warmup_epochs": 9}, "warmup_epochs=9 is longer than epochs=7"),
    ],
)
def test_a_mistake_is_one_sentence(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        parsed(**overrides)
    assert "\n" not in str(caught.value)


def test_an_argument_without_a_value_is_refused():
    with pytest.raises(ValueError, match="'fold': expected name=value"):
        read_arguments(["fold"])


def test_relative_paths_start_at_the_folder_of_the_caller(monkeypatch, tmp_path):
    monkeypatch.setenv("MG3D_CALLER_DIR", str(tmp_path))
    (tmp_path / "last.ckpt").touch()
    settings = parsed(data_root="set", folds_file="/a.json", pretrained="none", encoder="last.ckpt", output="out")
    assert (settings.data_root, settings.folds_file) == (f"{tmp_path}/set", "/a.json")
    assert (settings.encoder, settings.output) == (f"{tmp_path}/last.ckpt", f"{tmp_path}/out")
    assert (settings.pretrained, settings.log_dir) == ("none", "result/finetune")  # not paths of the user
    assert parsed(data_root="phantom", encoder="swin_b").data_root == "phantom"


def test_changed_settings_are_named_with_both_values():
    assert changed({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "c": 5}, ignore={"c"}) == ["b=4 (was 2)"]


def test_the_help_describes_every_setting():
    text = describe_settings(FolderSettings, {"val_epochs": 5}, {"val_epochs": 2, "epochs": 100})
    assert re.search(r"^  val_epochs = 5  \(data_root=phantom: 2\)$", text, re.MULTILINE)
    assert text.startswith("  patch_size = (2, 3, 4)\n      Patches in voxels.")
    assert "[cosine | constant | step]" in text
    assert all(field.description for field in FolderSettings.model_fields.values())
