import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mg3d.config import resolve
from mg3d.settings.presets import PRESETS

SPEC = importlib.util.spec_from_file_location("choose_preset", Path(__file__).parents[2] / "tools/choose_preset.py")
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)
BOTH = ["ct_rate", "ctrg"]


@pytest.mark.parametrize(
    ("words", "found", "has_gpu", "first"),
    [
        ([], [], False, ["tiny"]),
        ([], [], True, ["tiny"]),
        (["preset=full"], [], True, ["full"]),
        (["swin_l"], [], True, ["full"]),
        (["tiny"], BOTH, False, ["tiny"]),
        ([], BOTH, True, ["task_pretrain_mg3d", "swin_b", "text_radbert", "data_root=D", "datasets=['ct_rate', 'ctrg']"]),
        ([], ["ctrg"], True, ["task_pretrain_mg3d", "swin_b", "text_radbert", "data_root=D", "datasets=['ctrg']"]),
    ],
)
def test_the_choice_follows_what_is_found(words, found, has_gpu, first):
    chosen, why = TOOL.choose(words, found=found, has_gpu=has_gpu, data_root="D")
    assert chosen[: len(first)] == first
    assert "resume_from=auto" in chosen
    assert why


def test_the_users_arguments_come_last():
    chosen, _ = TOOL.choose(["swin_l", "learning_rate=2e-5"], found=BOTH, has_gpu=True, data_root="D")
    assert chosen[-2:] == ["swin_l", "learning_rate=2e-5"]
    assert chosen.index("swin_b") < chosen.index("swin_l")


@pytest.mark.parametrize(
    ("words", "found", "sentence"),
    [([], BOTH, "or the preset tiny"), (["swin_l"], [], "swin_l needs a GPU"), (["full"], [], "use the preset tiny")],
)
def test_large_models_are_refused_without_a_gpu(words, found, sentence):
    with pytest.raises(ValueError, match=sentence):
        TOOL.choose(words, found=found, has_gpu=False, data_root="D")


def test_the_reason_names_the_data():
    _, why = TOOL.choose(["tiny", "data_root=mine"], found=["ct_rate"], has_gpu=False, data_root="mine")
    assert "data_root=mine" in why
    assert "synthetic" not in why


def test_an_encoder_preset_without_data_gives_valid_settings():
    chosen, _ = TOOL.choose(["swin_l"], found=[], has_gpu=True, data_root="D")
    assert resolve([word for word in chosen if "=" not in word], {}).vision.embed_dim == 96


def test_the_presets_it_names_exist():
    assert {"task_pretrain_mg3d", "swin_b", "text_radbert", *TOOL.SYNTHETIC, *TOOL.ENCODERS} <= set(PRESETS)
    assert {"swin_b", "swin_l"} <= set(TOOL.ENCODERS)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["learning_rat=1"], "unknown setting 'learning_rat'; did you mean learning_rate"),
        (["swin_bb"], "unknown preset 'swin_bb'; did you mean swin_b"),
        (["max_steps=many"], "max_steps='many': must be a valid integer"),
        (["load_path=nowhere.ckpt"], "there is no file nowhere.ckpt"),
    ],
)
def test_mistakes_are_refused_before_data_are_generated(words, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert TOOL.main(words) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert sentence in told.err


@pytest.mark.parametrize("script", ["pretrain", "pretrain_multi_gpus", "test"])
def test_help_of_a_script_is_its_head(script, tmp_path):
    scripts = shutil.copytree(Path(__file__).parents[2] / "run_scripts", tmp_path / "run_scripts")
    command = ["bash", scripts / f"{script}.sh", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
    lines = (scripts / f"{script}.sh").read_text().splitlines()
    assert ran.stdout.splitlines()[0] == lines[1].removeprefix("# ")
    assert "set -" not in ran.stdout
    assert len(ran.stdout.splitlines()) == lines.index("set -euo pipefail")
    assert [path.name for path in tmp_path.iterdir()] == ["run_scripts"]


def test_help_of_the_slurm_script_omits_sbatch_lines():
    script = Path(__file__).parents[2] / "run_scripts" / "pretrain_slurm.sh"
    ran = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("Pre-train on the nodes of a SLURM job")
    assert "#SBATCH" in script.read_text()
    assert "SBATCH" not in ran.stdout


def test_accelerator_cpu_hides_the_gpu(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "clm_ct_rate_train.arrow").touch()
    assert TOOL.main([f"data_root={tmp_path}", "accelerator=cpu"]) == 2
    assert "but no GPU" in capsys.readouterr().err
    assert TOOL.main([f"data_root={tmp_path}"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--help"], 0, "Settings of a folder:"),
        ([], 2, "no folder: expected a folder of downstream/"),
        (["Nope", "fold=1"], 2, "Nope: expected a folder of downstream/"),
    ],
)
def test_fine_tuning_without_a_folder_lists_them_and_makes_nothing(words, code, told):
    script = Path(__file__).parents[2] / "run_scripts" / "finetune.sh"
    ran = subprocess.run(["bash", script, *words], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert ran.returncode == code
    out = ran.stdout if code == 0 else ran.stderr
    assert told in out
    assert "ACDC CT-RATE CTRG Covid19_20 Luna16 MSD cc-ccii custom stoic2021" in out


def test_help_of_a_folder_lists_its_settings_without_installing_packages(tmp_path):
    repository = Path(__file__).parents[2]
    for name in ("run_scripts/finetune.sh", "run_scripts/setup.sh", "downstream/ACDC/finetune.py", "mg3d/finetune/settings.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    command = ["bash", tmp_path / "run_scripts" / "finetune.sh", "ACDC", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert ran.returncode == 0
    assert "packages are not installed" in ran.stdout
    for setting in ("patch_size: Size = (32, 192, 192)", "learning_rate: NonNegativeFloat", '"""Training epochs."""'):
        assert setting in ran.stdout
    assert not {"model_config", "def "} & set(ran.stdout.split())
    assert not (tmp_path / ".venv").exists()


def test_help(capsys):
    assert TOOL.main(["--help"]) == 0
    assert "usage: python tools/choose_preset.py" in capsys.readouterr().out
