import pytest
import torch
from torch import nn

from mg3d.finetune.encoder import ScaledInput, build_encoder
from mg3d.finetune.kinds.classification import Classifier
from mg3d.finetune.optim import factor_at, parameter_groups, stage_names
from mg3d.finetune.settings import FinetuneSettings

SWIN = {"vision_encoder": "swin", "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 4), "window_size": 2, "patch_size": 2}


def rates(network, **settings):
    groups = parameter_groups(network, FinetuneSettings(learning_rate=1.0, **settings))
    return {group["name"]: group["lr"] for group in groups}


def test_every_parameter_is_in_one_group():
    network = Classifier(build_encoder(SWIN), 3)
    grouped = [p for group in parameter_groups(network, FinetuneSettings()) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(network.parameters()))


def test_stages_further_from_the_head_learn_slower():
    found = rates(Classifier(build_encoder(SWIN), 3), layer_decay=0.5, encoder_rate=0.4)
    assert found["head"] == 1.0
    assert [found[f"encoder{stage}"] for stage in range(3)] == pytest.approx([0.05, 0.1, 0.2])


@pytest.mark.parametrize("kind", ["unet", "nnunet"])
def test_convolutional_encoders_have_stages_in_order_too(kind):
    encoder = build_encoder({"vision_encoder": kind, "embed_dim": 8})
    names = stage_names(encoder)
    assert len(names) >= 4
    assert stage_names(ScaledInput(encoder)) == [f"encoder.{name}" for name in names]


def test_biases_norms_and_tables_do_not_decay():
    network = Classifier(build_encoder(SWIN), 3)
    groups = parameter_groups(network, FinetuneSettings(weight_decay=0.1))
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    for name, parameter in network.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim >= 2 and "bias_table" not in name), name


def test_a_frozen_encoder_is_left_out():
    network = Classifier(build_encoder(SWIN), 3)
    network.encoder.requires_grad_(False)
    assert set(rates(network)) == {"head", "head_no_decay"}


def test_the_warm_up_begins_above_zero_and_the_cosine_ends_at_zero():
    settings = FinetuneSettings(epochs=10, warmup_epochs=2, schedule="cosine")
    factors = [factor_at(step, settings, steps_per_epoch=5) for step in range(51)]
    assert factors[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[30] == pytest.approx(0.5)
    assert factors[50] == pytest.approx(0.0)


def test_step_and_constant_schedules():
    step = FinetuneSettings(schedule="step", step_factor=0.8)
    assert factor_at(9, step, steps_per_epoch=5) == pytest.approx(0.8)
    assert factor_at(999, FinetuneSettings(schedule="constant"), steps_per_epoch=5) == 1.0


def test_scaled_input_shifts_and_divides_what_the_encoder_sees():
    class Sum(nn.Module):
        patch_size, pyramid_channels, pyramid_strides, channels, stride = (1,), (1,), ((1, 1, 1),), 1, (1, 1, 1)

        def encode(self, volume, hidden=None):
            return volume * 1

    scaled = ScaledInput(Sum(), mean=0.25, deviation=0.5)
    assert torch.equal(scaled.encode(torch.full((1, 1, 2, 3, 4), 0.75)), torch.ones(1, 1, 2, 3, 4))
