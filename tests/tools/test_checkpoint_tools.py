"""The checkpoint tools report errors in one line with an exit code; --help is fast."""

import errno
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer

from mg3d.cli import run_and_print

ROOT = Path(__file__).parents[2]
METER = {"cross_modal_image_transform.weight": torch.ones(3, 2), "token_type_embeddings.weight": torch.ones(2, 3)}


def tool(name, *arguments):
    return runpy.run_path(str(ROOT / "tools" / f"{name}.py"))["main"](list(map(str, arguments)))


@pytest.fixture
def weights(tmp_path):
    torch.save({"state_dict": METER, "loss": float("nan"), "mg3d": {"provenance": {"best": float("-inf")}}}, tmp_path / "in.pt")
    return tmp_path / "in.pt"


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("mg3d: ")
    assert error.count("\n") == 1
    return error


def test_json_has_no_nan(weights, capsys):
    def refuse(word):
        raise AssertionError(word)

    assert tool("inspect_checkpoint", weights, "--json") == 1  # nothing of it is known, and the description is printed
    told = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert told["provenance"]["provenance"] == {"best": "-Infinity"}


def test_errors_of_the_system_are_one_line(weights, tmp_path, capsys):
    (tmp_path / "out.pt").mkdir()
    assert tool("convert_meter_weights", weights, tmp_path / "out.pt", "--to", "mg3d") == 2
    assert one_line(capsys) == f"mg3d: {tmp_path / 'out.pt'}: is a directory\n"
    (tmp_path / "file").touch()
    assert tool("convert_meter_weights", weights, tmp_path / "file" / "out.pt", "--to", "mg3d") == 2
    assert str(tmp_path / "file") in one_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in.pt", "out.pt"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "a.ckpt"), "a.ckpt: permission denied"),
        (FileNotFoundError("there is no file b"), "there is no file b"),
        (ValueError("two\nlines"), "two lines"),
    ],
)
def test_value_and_os_errors_become_a_line_and_exit_code_2(error, sentence, capsys):
    def work():
        raise error

    assert run_and_print(work) == 2
    assert sentence in one_line(capsys)


def test_a_closed_pipe_is_not_an_error(tmp_path, monkeypatch):
    weights = tmp_path / "in.pt"
    shapes = {"embeddings.word_embeddings.weight": (50, 8), "embeddings.position_embeddings.weight": (16, 8),
              "encoder.layer.0.output.LayerNorm.gamma": (8,)}  # fmt: skip
    bert = {f"bert.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    torch.save(bert | {"cls.predictions.bias": torch.zeros(50)}, weights)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert tool("inspect_checkpoint", weights) == 0


def test_a_result_that_cannot_be_printed_is_an_error(weights, monkeypatch, capsys):
    with Path("/dev/full").open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert tool("inspect_checkpoint", weights) == 2
    assert "cannot print the result: the disk is full" in one_line(capsys)


@pytest.mark.parametrize("out", ["in.pt", "link.pt", "model/out.pt"])
def test_the_input_is_not_overwritten(weights, out, tmp_path, capsys):
    source = tmp_path / "model" if out.startswith("model") else weights
    (tmp_path / "link.pt").symlink_to(weights)
    before = weights.read_bytes()
    assert tool("convert_meter_weights", source, tmp_path / out, "--to", "mg3d") == 2
    assert "would overwrite IN; choose another file" in one_line(capsys)
    assert weights.read_bytes() == before
    assert tool("export_checkpoint", weights, tmp_path) == 2
    assert "which would be replaced; choose another folder" in one_line(capsys)


def test_a_conversion_without_counterparts_writes_nothing(tmp_path, capsys):
    torch.save({"vision_encoder.patch_embed.proj.weight": torch.ones(4, 1, 2, 2, 2),
                "vision_encoder.layers1.0.blocks.0.attn.qkv.weight": torch.ones(12, 4)}, tmp_path / "in.pt")  # fmt: skip
    assert tool("convert_meter_weights", tmp_path / "in.pt", tmp_path / "out.pt", "--to", "meter") == 2
    assert "none of its 2 released tensors has a counterpart in meter" in one_line(capsys)
    assert not (tmp_path / "out.pt").exists()


def test_an_unknown_file_exits_with_1(tmp_path, capsys):
    torch.save({"swinViT.patch_embed.proj.weight": torch.ones(48, 1, 2, 2, 2)}, tmp_path / "in.pt")
    assert tool("inspect_checkpoint", tmp_path / "in.pt") == 1
    assert "contains nothing that mg3d recognises" in one_line(capsys)


def test_an_incomplete_encoder_exits_with_1(tmp_path, capsys):
    blocks = SwinTransformer(1, 12, (2, 2, 2), (2, 2, 2), (1, 1, 1, 1), (1, 2, 4, 8), spatial_dims=3).state_dict()
    torch.save({name: tensor for name, tensor in blocks.items() if ".mlp." not in name}, tmp_path / "in.pt")
    assert tool("inspect_checkpoint", tmp_path / "in.pt") == 1
    assert "of its image encoder (" in one_line(capsys)


TOOLS = (
    "inspect_checkpoint", "export_checkpoint", "convert_meter_weights", "plan", "choose_preset", "evaluate_card", "embed",
    "search", "zero_shot", "generate", "ground", "export_encoder", "viewer",
)  # fmt: skip


@pytest.mark.parametrize("program", [*(f"tools/{name}.py" for name in TOOLS), "main.py"])
def test_help_imports_nothing_heavy(program):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert not {'torch', 'monai', 'transformers', 'sacred', 'pandas'} & set(sys.modules), 'heavy import'"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", code, program], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout


@pytest.mark.parametrize(("program", "missing"), [("main.py", "sacred"), ("tools/inspect_checkpoint.py", "torch")])
def test_a_missing_dependency_is_one_sentence(program, missing):
    code = (
        "import runpy, sys; program, missing = sys.argv[1:]; sys.modules[missing] = None; sys.argv = [program, 'with', 'tiny']\n"
        "if 'tools' in program: sys.argv = [program, 'x.ckpt']\n"
        "runpy.run_path(program, run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, program, missing]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert printed.returncode == 1
    assert printed.stderr.startswith(f"mg3d: no module named {missing}. Activate the environment (source .venv/bin/activate)")
    assert printed.stderr.count("\n") == 1


def test_choices_of_the_converter_are_those_of_the_package():
    from mg3d.checkpoints.convert import Program

    assert runpy.run_path(str(ROOT / "tools" / "convert_meter_weights.py"))["PROGRAMS"] == get_args(Program)
