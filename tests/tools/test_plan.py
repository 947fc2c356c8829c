"""The planner on a small configuration."""

import importlib.util
from pathlib import Path

import pytest

from mg3d.benchmarks.planner import describe_fit, predict, random_weights
from mg3d.benchmarks.roofline import CHIPS, Chip, predict_part
from mg3d.benchmarks.step import StepCost
from mg3d.config import read_arguments
from mg3d.models.flops import Operation, Part

SPEC = importlib.util.spec_from_file_location("plan_tool", Path(__file__).parents[2] / "tools/plan.py")
plan_tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plan_tool)
PRESETS = ["tiny", "max_text_len=20", "per_gpu_batchsize=2", "batch_size=8", "max_steps=100"]


def test_step_time_from_measured_steps():
    settings = read_arguments(PRESETS)
    plan = predict(settings, devices=2, measured=StepCost(3.0, 0.1, 1e9, 0.0, 1.0, 0))
    assert plan.step_s == pytest.approx(6.0)  # two micro-batches of two volumes on each of two devices
    assert plan.run_h == pytest.approx(plan.step_s / 36)
    assert predict(settings, devices=1).step_s is None


def test_an_operator_takes_what_the_slower_of_compute_and_traffic_takes():
    chip = Chip("", 4e12, 1e12, 2e9, 1, product_efficiency=0.5, attention_efficiency=0.25, traffic_efficiency=0.5, launch_s=1e-3)
    product, attention, addition = (
        Operation("mm", 10**12, 10**8),
        Operation("sdpa attention", 10**12, 1),
        Operation("add", 0, 10**9),
    )
    part = Part("part", 3, (product, addition), (attention,), 0)
    time = predict_part(part, chip, is_half=False, volumes=2, launches=2)
    assert time.seconds == pytest.approx(3 * 2 * (1 / 0.5 + 1 + 1 / 0.25))
    assert (time.bound, time.bytes) == ("attention", 3 * 2 * (10**8 + 10**9 + 1))
    half = predict_part(part, chip, is_half=True, volumes=2, launches=2)
    assert half.seconds == pytest.approx(3 * 2 * (1 / (0.5 * 4) + 0.5 + 1 / (0.25 * 4)))
    slow = predict_part(part, chip._replace(launch_s=10.0), is_half=False, volumes=2, launches=2)
    assert (slow.seconds, slow.bound) == (pytest.approx(3 * 2 * 3 * 10.0), "launches")  # three operators


def test_more_devices_share_the_volumes_and_each_runs_the_optimizer():
    settings = read_arguments(PRESETS)
    one, four = (predict(settings, devices=devices, chip=CHIPS["h100"]._replace(launch_s=0.0)) for devices in (1, 4))
    assert one.step_s - one.times[-1].seconds == pytest.approx(4 * (four.step_s - four.times[-1].seconds))
    assert one.times[-1] == four.times[-1]
    assert one.mfu == pytest.approx(one.step_flops / one.step_s / 494e12)


def test_memory_is_per_device():
    def memory(*arguments, devices=1):
        return predict(read_arguments([*PRESETS, *arguments]), devices=devices).memory_gb

    assert memory("per_gpu_batchsize=8", "grad_cache_chunk=2") == memory() == memory("per_gpu_batchsize=8", devices=4)
    assert memory("per_gpu_batchsize=8") > memory()


def test_parameters_and_disk_are_exact():
    settings = read_arguments(PRESETS)
    plan = predict(settings, devices=1)
    model = random_weights(settings)
    assert plan.trained + plan.frozen == sum(parameter.numel() for parameter in model.parameters())
    assert plan.volume_mb == pytest.approx(64 * 48 * 64 * 2 / 1e6)


def test_memory_use_is_described_in_three_levels():
    assert describe_fit(1, 10).startswith("fits")
    assert describe_fit(9, 10).startswith("close")
    assert describe_fit(11, 10).startswith("does not fit")


def test_the_tool_prints_cost_and_refuses_a_typo(capsys):
    options = ["--device", "h100", "--devices", "8", "--price", "2", "--studies", "100"]
    assert plan_tool.main([*options, "with", *PRESETS]) == 0
    shown = capsys.readouterr().out
    assert all(
        word in shown for word in ("volume encoder", "MFU", "epoch", "device-hours", "cost", "fits into 80 GB", "bf16-mixed")
    )
    assert plan_tool.main([*options, "with", "tinny"]) == 2
    assert plan_tool.main([*options, "--calibrate", "with", *PRESETS]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--devices", "0", "with", *PRESETS], "--devices 0: must be at least 1"),
        (["--price", "-2.5", "with", *PRESETS], "--price -2.5: must be at least 0"),
        (["--device", "h300", "with", *PRESETS], "h100"),
        (["--devices", "3", "with", *PRESETS], "batch_size=8 is not divisible by 3 processes. Use batch_size=12"),
        (PRESETS, "'tiny' is not an option; presets and settings come after `with`"),
    ],
)
def test_impossible_plans_are_refused(arguments, sentence, capsys):
    assert plan_tool.main(arguments) == 2
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert sentence in output.err


@pytest.mark.slow
def test_calibration_measures_steps(capsys):
    assert plan_tool.main(["--calibrate", "--threads", "1", "with", *PRESETS, "grad_cache_chunk=1"]) == 0
    assert "measured on this" in capsys.readouterr().out
