from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mg3d.settings.schema import OptimSettings
from mg3d.training import module
from mg3d.training.module import PretrainModule
from mg3d.training.optim import build_optimizer, parameter_groups, schedule_factor


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        self.text = nn.Linear(3, 2).requires_grad_(False)
        self.cml_head = nn.Linear(3, 4)


def test_groups_hold_every_trained_parameter_once_with_its_rate_and_decay():
    model = Small()
    settings = OptimSettings(learning_rate=0.01, head_lr_multiplier=5.0, weight_decay=0.1)
    groups = {group["name"]: group for group in parameter_groups(model, settings)}
    expected = {
        "encoders": ([model.vision[0].weight], 0.01, 0.1),
        "encoders_no_decay": ([model.vision[0].bias, model.vision[1].weight, model.vision[1].bias], 0.01, 0.0),
        "heads": ([model.cml_head.weight], 0.05, 0.1),
        "heads_no_decay": ([model.cml_head.bias], 0.05, 0.0),
    }
    assert groups.keys() == expected.keys()
    for name, (parameters, rate, decay) in expected.items():
        assert [id(p) for p in groups[name]["params"]] == [id(p) for p in parameters]
        assert groups[name]["lr"] == pytest.approx(rate)
        assert groups[name]["weight_decay"] == decay


def test_the_schedule_rises_to_one_and_falls_to_zero():
    factors = [schedule_factor(step, warmup_steps=4, max_steps=12) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert factors[12] == 0


def test_the_schedule_scales_every_group():
    settings = OptimSettings(learning_rate=0.01, head_lr_multiplier=5.0, warmup_steps=2, max_steps=10)
    optimizer, schedule = build_optimizer(parameter_groups(Small(), settings), settings)
    rates = [[group["lr"] for group in optimizer.param_groups]]
    optimizer.step()
    schedule.step()
    rates.append([group["lr"] for group in optimizer.param_groups])
    torch.testing.assert_close(torch.tensor(rates[0]) * 2, torch.tensor(rates[1]))


@pytest.mark.parametrize(
    ("device", "precision", "fused"), [("cpu", "32-true", False), ("cuda", "bf16-mixed", True), ("cuda", "16-mixed", False)]
)
def test_the_optimizer_is_fused_on_a_gpu_unless_gradients_are_scaled(device, precision, fused, monkeypatch):
    settings, chosen = OptimSettings(), []
    monkeypatch.setattr(PretrainModule, "device", torch.device(device))
    monkeypatch.setattr(PretrainModule, "trainer", SimpleNamespace(precision=precision))
    monkeypatch.setattr(module, "build_optimizer", lambda *arguments, fused: chosen.append(fused) or (None, None))
    PretrainModule(Small(), weights={}, optim=settings, seed=0, identity={}).configure_optimizers()
    assert chosen == [fused]
