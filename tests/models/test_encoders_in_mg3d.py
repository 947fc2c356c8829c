"""The whole model around every image encoder."""

import pytest
import torch
from small_model import OBJECTIVES, build, losses_of, random_batch
from small_vision import SHAPE, small_encoder

from mg3d.config import resolve
from mg3d.training.optim import build_optimizer, parameter_groups


def small_batch():
    batch = random_batch(2, shape=SHAPE, patch=16)
    return batch._replace(volume=batch.volume.float())


@pytest.mark.parametrize("name", ["swin projected", "unet", "nnunet"])
def test_a_step_trains_every_parameter_and_lowers_the_total_loss(name):
    model, batch = build(vision=small_encoder(name), shape=SHAPE).float(), small_batch()
    settings = resolve([], {"learning_rate": 1e-3, "warmup_steps": 0, "max_steps": 100}).optim
    optimizer, _ = build_optimizer(parameter_groups(model, settings), settings)
    before = losses_of(model, batch)
    assert before.keys() == set(OBJECTIVES)
    sum(before.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    optimizer.step()
    with torch.no_grad():
        assert sum(losses_of(model, batch).values()) < sum(before.values())


def test_the_released_wiring_accepts_projected_tokens_and_refuses_another_width():
    vision = small_encoder("swin projected", mask_token=False, projection_width=24)
    model = build("released", vision=vision, shape=SHAPE).float()
    with torch.no_grad():
        assert all(value.isfinite() for value in losses_of(model, small_batch()).values())
    with pytest.raises(ValueError, match="needs hidden_size=64"):
        build("released", vision=small_encoder("swin", mask_token=False), shape=SHAPE)
