"""Pre-training with the volume encoder compiled."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from small_model import SHAPE, build
from small_run import checkpoint, words

from mg3d.config import command_line
from mg3d.models.vision.nnunet import NNUNetEncoder
from mg3d.models.vision.unet import UNetEncoder
from mg3d.models.vision.vit import ViTEncoder
from mg3d.training import compiled, run

PRECISE = ("precision=64-true", "max_steps=2", "warmup_steps=1")


@pytest.fixture
def without_machine_code(monkeypatch):
    """The same graphs, computed operator by operator."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


def test_training_passes_are_compiled_and_others_are_not(monkeypatch):
    made, ran = [], []

    def compile_(work, **how):
        made.append(how)
        return lambda *arguments: ran.append(len(arguments)) or work(*arguments)

    monkeypatch.setattr(torch, "compile", compile_)
    model = build(objectives=("mim", "cml"))
    names, volume = list(model.state_dict()), torch.rand(1, 1, *SHAPE, dtype=torch.float64)
    expected = model.encode_volume(volume)
    compiled.compile_encode(model.vision)
    assert torch.equal(model.encode_volume(volume), expected)
    assert ran == [2]
    with torch.no_grad():
        assert torch.equal(model.encode_volume(volume), expected)
    assert ran == [2]
    assert made == [{"fullgraph": True, "dynamic": False, "backend": "inductor"}]
    assert list(model.state_dict()) == names


def test_the_setting_reaches_the_encoder_after_the_compiler_was_tried(arrows, tmp_path, monkeypatch, capsys):
    calls = []

    def stop(vision):
        calls.append(vision.patch_size)
        raise ValueError("reached")

    monkeypatch.setattr(run, "require_compiler", calls.append)
    monkeypatch.setattr(run, "compile_encode", stop)
    assert command_line(words(arrows, tmp_path, "compile=True")) == 2
    assert "reached" in capsys.readouterr().err
    assert calls == ["cpu", (4, 4, 4)]


def test_without_a_compiler_the_run_is_refused_in_one_sentence(monkeypatch):
    def compile_(work, **how):
        raise RuntimeError("No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler.*No working C\+\+ compiler found; install it") as refused:
        compiled.require_compiler("cpu")
    assert "\n" not in str(refused.value)


def run_of(arrows, folder, *more):
    assert command_line(words(arrows, folder, *PRECISE, *more)) == 0
    return folder / "run"


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "kinds"),
    [((), 2), (("grad_cache_chunk=3", "gradient_checkpointing=True", "precision=bf16-mixed"), 4)],
)
def test_a_compiled_run_is_the_eager_one(arrows, tmp_path, without_machine_code, more, kinds):
    """One graph per kind of forward pass (masked or not, chunks of three or one), and one of the compiler's trial."""
    eager, before = run_of(arrows, tmp_path / "eager", *more), graphs()
    ours = run_of(arrows, tmp_path / "compiled", *more, "compile=True")
    assert graphs() - before == kinds + 1
    assert_near(ours, eager)


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_a_run_goes_on_with_or_without(arrows, tmp_path, without_machine_code, first):
    run_of(arrows, tmp_path / "cut", f"compile={first}", "max_minutes=1e-9")
    assert checkpoint(tmp_path / "cut" / "run")["global_step"] == 1
    ours = run_of(arrows, tmp_path / "cut", f"compile={not first}", "resume_from=last", "evidence=True")
    assert (ours / "evidence.json").is_file()
    assert_near(ours, run_of(arrows, tmp_path / "eager"))


@pytest.mark.slow
def test_two_compiled_processes_train_as_an_eager_one(arrows, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\nfrom mg3d.config import command_line\nfrom mg3d.training import compiled\n"
        "compiled.BACKEND = 'aot_eager'\nsys.exit(command_line(sys.argv[1:]))\n"
    )
    arguments = words(arrows, tmp_path / "two", *PRECISE, "compile=True", "per_gpu_batchsize=2", "devices=2")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_near(tmp_path / "two" / "run", run_of(arrows, tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        partial(UNetEncoder, embed_dim=4),
        partial(NNUNetEncoder, embed_dim=4),
        partial(ViTEncoder, embed_dim=16, patch_size=8, depths=(2,), num_heads=(2,), mask_ratio=0.5),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_other_encoders_compile_too(without_machine_code, kind, checkpointing):
    torch.manual_seed(0)
    encoder = kind(mask_token=True, gradient_checkpointing=checkpointing).double()
    volume, found = torch.rand(2, 1, 32, 32, 64).double(), []
    mask = torch.arange(8).expand(2, 4, 4, 8) < 4
    for compiles in (False, True):
        if compiles:
            compiled.compile_encode(encoder)
        result = encoder.encode(volume, mask)
        found.append([result, *torch.autograd.grad(result.square().sum(), list(encoder.parameters()))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def assert_near(ours, theirs):
    """Names and numbers of two runs' checkpoints."""
    ours, theirs = (checkpoint(folder)["state_dict"] for folder in (ours, theirs))
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, msg=lambda difference, name=name: f"{name}: {difference}")
