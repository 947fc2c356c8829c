"""That the benchmarks measure two ways of doing the same; nothing here asserts a time."""

import json
import re

import pytest
import torch

from mg3d.benchmarks.fresh import Memory
from mg3d.benchmarks.monai_baseline import MonaiSwin
from mg3d.benchmarks.timing import Comparison, Options
from mg3d.models.vision.swin import SwinEncoder
from tools import benchmark


@pytest.mark.parametrize("fused", [False, True])
def test_monais_code_over_our_weights_gives_our_maps(fused):
    torch.manual_seed(0)
    encoder = SwinEncoder(embed_width=12, depths=(2, 1), heads=(2, 3), window_size=3, mask_token=True).double()
    stock = MonaiSwin(encoder, fused=fused)
    volume, hidden = torch.rand(2, 1, 16, 8, 24).double(), torch.rand(2, 4, 2, 6) < 0.5
    with torch.no_grad():
        for ours, theirs in zip(encoder(volume, hidden), stock(volume, hidden), strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(encoder.encode(volume, hidden), stock.encode(volume, hidden))


def test_the_peak_of_memory_counts_from_its_restart():
    memory = Memory(Options())
    big = torch.ones(50_000_000)
    del big
    memory.restart()
    small = torch.ones(5_000_000)
    assert 15e6 < memory.peak() < 100e6
    assert len(small) == 5_000_000


def test_a_missed_goal_is_told_by_the_exit_code(monkeypatch, tmp_path, capsys):
    row = Comparison("x", "a", "b", 2.0, 3.0, goal=1.4)
    asked = []
    monkeypatch.setattr(
        benchmark.importlib, "import_module", lambda name: type("M", (), {"run": lambda options: asked.append(options) or [row]})
    )
    assert benchmark.main(["encoder", "--size", "32", "24", "16", "--batch", "3", "--json", str(tmp_path / "n.json")]) == 0
    assert asked[0].size == (32, 24, 16)
    assert asked[0].batch == 3
    assert json.loads((tmp_path / "n.json").read_text())["rows"][0]["ratio"] == 1.5
    row = row._replace(their_cost=2.0)
    assert benchmark.main(["encoder"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["encoder", "step", "losses", "text", "loader"])
def test_every_topic_runs_and_both_sides_agree(topic, tmp_path):
    assert benchmark.main([topic, "--quick", "--threads", "1", "--json", str(tmp_path / "n.json")]) == 0
    rows = json.loads((tmp_path / "n.json").read_text())["rows"]
    assert rows
    assert all(row["our_cost"] >= 0 and row["their_cost"] >= 0 for row in rows)
    values = [re.search(r"(?:values|losses) ([\d.]+) and ([\d.]+)", row["note"]) for row in rows]
    assert topic not in ("step", "losses") or any(values)
    for found in filter(None, values):
        assert float(found[1]) == pytest.approx(float(found[2]), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["losses", "--batch", "0"], "'0' is no count"),
        (["loader", "--workers", "2", "0"], "'0' is no count"),
        (["encoder", "--threads", "two"], "'two' is no count"),
        (["text", "--device", "cuda"], "torch sees no GPU here"),
        (["text", "--json", __file__ + "/numbers.json"], "there is no folder"),
    ],
)
def test_what_could_not_be_measured_or_kept_is_refused_before(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)
    assert sentence in capsys.readouterr().err
