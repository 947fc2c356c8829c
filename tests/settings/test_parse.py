import json
import math
from dataclasses import fields
from typing import get_args

import pytest

from mg3d.config import command_line, read_arguments, resolve
from mg3d.settings.encoders import unread
from mg3d.settings.parse import RELEASED_HEADS, defaults, flatten, parse
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import DatasetName, LossSettings, Settings, objective_weights, volume_shape


def test_flat_names_are_unique_over_all_groups():
    names = [entry.name for group in fields(Settings) for entry in fields(getattr(Settings(), group.name))]
    assert len(names) == len(set(names)) == len(defaults())


def test_flatten_and_parse_are_inverse():
    assert parse(flatten(Settings())) == Settings()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_the_schema(preset):
    flat = flatten(resolve([preset], {}))
    for name, value in PRESETS[preset].items():
        assert flat[name] == (list(value) if isinstance(value, tuple) else value)


def test_the_last_preset_wins_and_settings_override_presets():
    assert resolve(["swin_b", "swin_l"], {}).vision.embed_dim == 96
    assert resolve(["swin_l", "swin_b"], {}).vision.embed_dim == 48
    assert resolve(["swin_l"], {"embed_dim": 24}).vision.embed_dim == 24
    assert resolve(["vit3d16"], {}) == resolve(["swin_b"], {})


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"learning_rat": 1.0}, "did you mean learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate='fast': must be a valid number"),
        ({"num_workers": True}, "num_workers=True: must be a valid integer"),
        ({"wiring": "gate"}, "must be 'paper', 'intended' or 'released'"),
        ({"window_hu": [0]}, "more values are required"),
        ({"image_size": 100}, "multiple of 32"),
        ({"volume_size": [64, 96]}, "must be three multiples of 32"),
        ({"volume_size": [64, 96, 100]}, "must be three multiples of 32"),
        ({"augment_crop": [0.9, 0.6]}, "minimum <= maximum"),
        ({"augment_crop": [0.0, 1.0]}, "0 < minimum"),
        ({"augment_crop": [0.5, 1.5]}, "maximum <= 1"),
        ({"augment_width": 1.0}, "must be less than 1"),
        ({"augment_noise": 1.5}, "must be less than or equal to 1"),
        ({"mim_mask_ratio": 1.5}, "must be less than or equal to 1"),
        ({"load_path": "a.ckpt", "load_minimum_coverage": 1.5}, "must be less than or equal to 1"),
        ({"load_entry": "teacher"}, "describe the file of load_path, which is not set"),
        ({"datasets": ["ct_rate", "foo"]}, "must be 'ct_rate', 'ctrg', 'rad_chestct' or 'custom'"),
        ({"datasets": []}, "at least one data set"),
        ({"datasets": ["ctrg", "ctrg"]}, "contains a data set twice"),
        ({"embed_dim": 12, "num_heads": [3, 6, 5, 24]}, r"channels of each stage, \[12, 24, 48, 96\] with embed_dim=12"),
        ({"num_heads": [3, 6, 0, 24]}, "must divide the channels"),
        ({"depths": [], "num_heads": []}, "one to four stages"),
        ({"depths": [2, 0], "num_heads": [3, 6]}, "one to four stages of at least one block"),
        ({"depths": [1] * 5, "num_heads": [3] * 5}, "must be divisible by 64 voxels"),
        (
            {"wiring": "intended", "hidden_size": 20, "fusion_heads": 4},
            "8 heads, which do not divide",
        ),
        ({"hidden_size": 12}, "up from stride 32; use hidden_size=16 or more"),
        ({"text_encoder": "tiny", "freeze_text": False, "tiny_text_heads": 5}, "does not divide tiny_text_width=128"),
        ({"tiny_text_heads": 0}, "must be greater than 0"),
        ({"contrast": "softmax"}, "must be 'infonce' or 'sigmoid'"),
        ({"contrast": "sigmoid", "wiring": "intended"}, "contrast=sigmoid needs wiring=paper"),
        ({"grad_cache_chunk": -1}, "must be greater than or equal to 0"),
        ({"grad_cache_chunk": 4, "vision_encoder": "unet"}, "use norm_statistics=instance or grad_cache_chunk=0"),
        ({"text_cache": "there", "freeze_text": False}, "set freeze_text=True"),
        ({"text_cache": "there", "wiring": "released"}, "use wiring=paper or no text_cache"),
        ({"warmup_steps": 10, "max_steps": 10}, "less than max_steps"),
        ({"dataset_weights": [1.0]}, "one weight for each"),
        ({"text_encoder": "tiny"}, "cannot be frozen"),
        ({f"weight_{name}": 0.0 for name in ("mlm", "sal", "mim", "cml", "dcl", "ssm")}, "every loss weight is 0"),
        ({"weight_captioning": -1.0}, "weight_captioning=-1.0: must be greater than or equal to 0"),
        ({"caption_layers": 0}, "must be greater than 0"),
        ({"caption_label_smoothing": 1.5}, "must be less than or equal to 1"),
        ({"learning_rate": math.inf}, "learning_rate=inf: must be a finite number"),
        ({"betas": [0.9, 1.0]}, "must be less than 1"),
        ({"dataset_weights": [-1.0, 2.0]}, "must be greater than or equal to 0"),
        ({"dataset_weights": [0.0, 0.0]}, "at least one must be greater than 0"),
        ({"presets": ["tiny", "unet"]}, r"volume \(64, 48, 64\) must be divisible by 32 voxels, the stride of this unet encoder"),
        ({"image_size": 64}, "stride of this swin encoder; use a multiple of 128"),
        ({"presets": ["nnunet"], "embed_dim": 15}, "embed_dim=15 must be even"),
        ({"depths": [2]}, "differ in length"),
        ({"volume_size": [64, 96, 32], "patch_size": 4}, r"volume_size=\(64, 96, 32\): .* use multiples of 64"),
        ({"mim_patch_size": 1}, "must be a multiple of patch_size=2"),
        ({"presets": ["vit_b"], "patch_size": [8, 16, 12]}, r"divisible by \(8, 16, 12\) voxels, .* a multiple of 192"),
        ({"presets": ["vit_b"], "patch_size": [8, 16, 32]}, r"a multiple of patch_size=\(8, 16, 32\)"),
        ({"presets": ["unet"], "depths": [2]}, "not read by vision_encoder=unet, which reads embed_dim, norm_statistics"),
        ({"norm_statistics": "instance"}, "norm_statistics is not read by vision_encoder=swin"),
    ],
)
def test_invalid_settings_are_refused_in_one_sentence(update, message):
    settings = dict(update)
    with pytest.raises(ValueError, match=message) as caught:
        resolve(settings.pop("presets", ["swin_b"]), settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [["with", "learning_rat=1"], ["with", "swin_q"], ["trian"], ["learning_rate=1"], ["print_config", "with", "learning_rate=x"]],
)
def test_the_command_line_reports_mistakes_without_a_traceback(arguments, capsys):
    assert command_line(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mg3d: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["2024_01", "1.10", "007", "1e3", "True"])
def test_text_stays_as_it_was_typed(text):
    """Sacred reads 2024_01 as the number 202401, and 1.10 as 1.1."""
    settings = read_arguments(["tiny", f"run_name={text}", f"log_dir={text}"])
    assert (settings.run.run_name, settings.run.log_dir) == (text, text)


def test_a_sacred_experiment_runs_the_command_with_the_resolved_settings_and_stores_them(tmp_path, monkeypatch):
    from mg3d.training import run

    received = []
    monkeypatch.setattr(run, "diagnose", received.append)
    settings = ["tiny", "unet", "image_size=128", "betas=[0.5,0.9]", "data_root=."]
    assert command_line(["diagnose", f"--file_storage={tmp_path}", "with", *settings]) == 0
    assert received == [resolve(["tiny", "unet"], {"image_size": 128, "betas": [0.5, 0.9], "data_root": "."})]
    assert json.loads((tmp_path / "1" / "config.json").read_text()) == flatten(received[0])
    assert json.loads((tmp_path / "1" / "run.json").read_text())["status"] == "COMPLETED"


def test_print_config_shows_every_setting(capsys):
    assert command_line(["print_config", "with", "tiny", "learning_rate=0.25"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} = " in shown for name in defaults())
    assert "learning_rate = 0.25\n      Peak learning rate of encoders and fusion." in shown
    assert "wiring = 'paper'\n      ['paper' | 'intended' | 'released'] " in shown


def test_the_papers_volume_is_128_96_128():
    assert volume_shape(128) == (128, 96, 128)
    assert volume_shape(128, (64, 160, 96)) == (64, 160, 96)


def test_active_objectives_keep_their_order_and_weight():
    assert objective_weights(LossSettings(weight_mim=0.0, weight_ssm=0.25)) == {
        "mlm": 1.0, "sal": 0.1, "cml": 1.0, "dcl": 0.1, "ssm": 0.25,
    }  # fmt: skip


def test_dataset_names_match_the_preparation():
    from mg3d.datasets.schema import DATASETS

    assert get_args(DatasetName) == tuple(DATASETS)


def test_the_rule_uses_the_heads_of_the_released_report_pooling():
    from mg3d.models.released import SentenceAttentionPool

    assert SentenceAttentionPool(16).heads == RELEASED_HEADS


def test_released_wiring_without_contrast_accepts_any_width():
    off = {f"weight_{name}": 0.0 for name in ("cml", "dcl", "ssm")}
    assert resolve(["mg3d_intended"], {"hidden_size": 20, "fusion_heads": 4, **off}).model.hidden_size == 20


@pytest.mark.parametrize("preset", ["mg3d", "mg3d_intended"])
def test_accepted_edge_cases_can_be_built(preset):
    from mg3d.models.build import build_untrained

    edge = {
        "image_size": 64, "patch_size": 4, "depths": [1, 2], "embed_dim": 10, "num_heads": [5, 4], "hidden_size": 8,
        "fusion_heads": 2, "mim_decoder": "conv", "mim_patch_size": 8, "tiny_text_width": 6, "tiny_text_heads": 3,
    }  # fmt: skip
    model = build_untrained(resolve(["tiny", preset], edge), 60)
    assert model.vision.channels == 40


def test_every_objective_has_a_weight_and_a_row():
    from pkgutil import resolve_name

    from mg3d.settings.objectives import OBJECTIVES

    assert list(OBJECTIVES) == list(objective_weights(LossSettings(weight_captioning=1.0)))
    for name, row in OBJECTIVES.items():
        assert resolve_name(row.branch).name in row.branch, name


def test_settings_of_a_preset_that_the_encoder_ignores_are_accepted():
    assert resolve(["swin_b"], {"depths": [2], "num_heads": [3], "image_size": 64}).vision.depths == (2,)
    assert resolve(["tiny", "unet"], {"image_size": 128}).vision.vision_encoder == "unet"
    assert resolve(["unet"], {"norm_statistics": "instance"}).vision.norm_statistics == "instance"


def test_patches_of_one_voxel_fit_convolutional_encoders():
    assert resolve(["unet"], {"mim_patch_size": 1}).model.mim_patch_size == 1


def test_the_last_encoder_preset_wins_over_any_other():
    for last in ("swin_b", "swin_l", "swin_l_unprojected", "unet", "nnunet"):
        for before in ("swin_b", "swin_l", "unet", "nnunet"):
            ours, alone = resolve([before, last], {}).vision, resolve([last], {}).vision
            read = [entry.name for entry in fields(alone) if entry.name not in unread(alone)]
            assert [getattr(ours, name) for name in read] == [getattr(alone, name) for name in read]


def test_print_config_marks_ignored_settings(capsys):
    assert command_line(["print_config", "with", "unet"]) == 0
    shown = capsys.readouterr().out
    assert "  depths = [2, 2, 2, 2]    (not read by unet)\n" in shown
    assert "  norm_statistics = 'batch'\n" in shown
    assert command_line(["print_config", "with", "nnunet"]) == 0
    assert "  norm_statistics = 'batch'    (not read by nnunet)\n" in capsys.readouterr().out
