"""Both sides of a benchmark compute the same; no time is asserted."""

import json
import re

import pytest
import torch

from mg3d.benchmarks.isolated import PeakMemory, run_isolated
from mg3d.benchmarks.monai_baseline import MonaiSwin
from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow
from mg3d.models.vision.swin import SwinEncoder
from tools import benchmark


@pytest.mark.parametrize("fused", [False, True])
def test_monais_code_on_our_weights_computes_our_maps(fused):
    torch.manual_seed(0)
    encoder = SwinEncoder(embed_dim=12, depths=(2, 1), num_heads=(2, 3), window_size=3, mask_token=True).double()
    baseline = MonaiSwin(encoder, fused=fused)
    volume, mask = torch.rand(2, 1, 16, 8, 24).double(), torch.rand(2, 4, 2, 6) < 0.5
    with torch.no_grad():
        for ours, theirs in zip(encoder(volume, mask), baseline(volume, mask), strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(encoder.encode(volume, mask), baseline.encode(volume, mask))


def peak_after_a_larger_one(side, options):
    """Peak of 5 million float32 numbers, after a reset that follows 50 million."""
    memory = PeakMemory(options)
    big = torch.ones(50_000_000)
    del big
    memory.reset()
    small = torch.ones(5_000_000)
    return memory.bytes() if len(small) else 0


def test_peak_memory_is_counted_from_its_reset():
    peaks = run_isolated(peak_after_a_larger_one, ["small"], BenchmarkOptions(repeats=1))
    assert 15e6 < peaks["small"][0] < 100e6


def test_a_missed_target_sets_the_exit_code(monkeypatch, tmp_path):
    row = BenchmarkRow("x", "a", "b", 2.0, 3.0, target=1.4)
    calls = []
    module = type("M", (), {"run": lambda options: calls.append(options) or [row]})
    monkeypatch.setattr(benchmark.importlib, "import_module", lambda name: module)
    out = tmp_path / "rows.json"
    assert benchmark.main(["encoder", "--size", "32", "24", "16", "--batch", "3", "--json", str(out)]) == 0
    assert (calls[0].size, calls[0].batch) == ((32, 24, 16), 3)
    assert json.loads(out.read_text())["rows"][0]["ratio"] == 1.5
    row = row._replace(baseline_cost=2.0)
    assert benchmark.main(["step"]) == 1
    assert calls[1].batch == 2


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["encoder", "architectures", "step", "text", "loader", "planner"])
def test_every_topic_runs_and_both_sides_agree(topic, tmp_path):
    out = tmp_path / "rows.json"
    assert benchmark.main([topic, "--quick", "--threads", "1", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows
    assert all(row["candidate_cost"] >= 0 and row["baseline_cost"] >= 0 for row in rows)
    values = [re.search(r"losses ([\d.]+) and ([\d.]+)", row["note"]) for row in rows]
    assert topic != "step" or any(values)
    for found in filter(None, values):
        assert float(found[1]) == pytest.approx(float(found[2]), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--batch", "0"], "--batch"),
        (["loader", "--workers", "2", "0"], "--workers"),
        (["encoder", "--threads", "two"], "--threads"),
        (["data", "writing"], "its parts are preparation, reading"),
        (["text", "--device", "cuda"], "no GPU is available"),
        (["text", "--json", __file__ + "/rows.json"], "--json"),
    ],
)
def test_invalid_options_are_refused_before_measuring(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err
