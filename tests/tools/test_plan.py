"""The planner on a configuration of a few numbers."""

import importlib.util
from pathlib import Path

import pytest

from mg3d.benchmarks.planner import describe_fit, predict, random_weights
from mg3d.benchmarks.step import StepCost
from mg3d.config import read_arguments

SPEC = importlib.util.spec_from_file_location("plan_tool", Path(__file__).parents[2] / "tools/plan.py")
plan_tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plan_tool)
WORDS = ["tiny", "max_text_len=20", "per_gpu_batchsize=2", "batch_size=8", "max_steps=100"]


def test_step_time_from_flops_or_measurement():
    settings = read_arguments(WORDS)
    plan = predict(settings, devices=2, peak_flops=1e12, utilisation=0.5, measured=None)
    assert plan.step_s == pytest.approx(plan.step_flops / 1e12)
    assert plan.run_h == pytest.approx(plan.step_s / 36)
    measured = predict(settings, devices=2, peak_flops=None, utilisation=None, measured=StepCost(3.0, 0.1, 1e9, 0.0))
    assert measured.step_s == pytest.approx(6.0)  # two passes of two volumes on each of two devices
    assert predict(settings, devices=1, peak_flops=None, utilisation=None, measured=None).step_s is None


def test_memory_is_per_device():
    def memory(*words, devices=1):
        settings = read_arguments([*WORDS, *words])
        return predict(settings, devices=devices, peak_flops=None, utilisation=None, measured=None).memory_gb

    assert memory("per_gpu_batchsize=8", "grad_cache_chunk=2") == memory() == memory("per_gpu_batchsize=8", devices=4)
    assert memory("per_gpu_batchsize=8") > memory()


def test_parameters_and_disk_are_exact():
    settings = read_arguments(WORDS)
    plan = predict(settings, devices=1, peak_flops=None, utilisation=None, measured=None)
    model = random_weights(settings)
    assert plan.trained + plan.frozen == sum(parameter.numel() for parameter in model.parameters())
    assert plan.volume_mb == pytest.approx(64 * 48 * 64 * 2 / 1e6)


def test_memory_use_is_described_in_three_levels():
    assert describe_fit(1, 10).startswith("fits")
    assert describe_fit(9, 10).startswith("close")
    assert describe_fit(11, 10).startswith("does not fit")


def test_the_tool_prints_cost_and_refuses_a_typo(capsys):
    given = ["--device", "h100", "--devices", "8", "--price", "2", "--studies", "100"]
    assert plan_tool.main([*given, "with", *WORDS]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("parameters", "epoch", "device-hours", "cost", "fits into 80 GB"))
    assert plan_tool.main([*given, "with", "tinny"]) == 2
    assert plan_tool.main([*given, "--calibrate", "with", *WORDS]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--devices", "0", "with", *WORDS], "--devices 0: must be at least 1"),
        (["--price", "-2.5", "with", *WORDS], "--price -2.5: must be at least 0"),
        (["--utilisation", "40", "with", *WORDS], "--utilisation 40: must be a fraction above 0"),
        (["--devices", "3", "with", *WORDS], "batch_size=8 is not divisible by 3 processes. Use batch_size=12"),
        (WORDS, "'tiny' is not an option; presets and settings come after `with`"),
    ],
)
def test_impossible_plans_are_refused(arguments, sentence, capsys):
    assert plan_tool.main(arguments) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert sentence in told.err


@pytest.mark.slow
def test_calibration_measures_steps(capsys):
    assert plan_tool.main(["--calibrate", "--threads", "1", "with", *WORDS, "grad_cache_chunk=1"]) == 0
    assert "measured on this" in capsys.readouterr().out
