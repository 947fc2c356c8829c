from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mg3d.finetune import module
from mg3d.finetune.encoder import StandardizedInput, build_encoder
from mg3d.finetune.module import FinetuneModule
from mg3d.finetune.optim import factor_at, parameter_groups, stage_names
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.classification import Classification, Classifier

SWIN = {"vision_encoder": "swin", "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 4), "window_size": 2, "patch_size": 2}


def rates(network, **settings):
    """Parameter name -> (learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameter_groups(network, FinetuneSettings(learning_rate=1.0, **settings))
    result = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(result) == len(dict(result))
    return dict(result)


def test_layer_decay_lowers_the_rate_of_early_stages_and_every_parameter_is_in_one_group():
    network = Classifier(build_encoder(SWIN), 3)
    result = rates(network, layer_decay=0.5, encoder_lr_multiplier=0.4)
    assert set(result) == {name for name, _ in network.named_parameters()}
    by_stage = [next(rate for name, (rate, _) in result.items() if name.startswith(f"encoder.{stage}."))
                for stage in stage_names(network.encoder)]  # fmt: skip
    assert by_stage == pytest.approx([0.05, 0.1, 0.2])
    assert {rate for name, (rate, _) in result.items() if name.startswith("head.")} == {1.0}


@pytest.mark.parametrize("kind", ["unet", "nnunet"])
def test_convolutional_encoders_have_stages_in_order(kind):
    encoder = build_encoder({"vision_encoder": kind, "embed_dim": 8})
    names = stage_names(encoder)
    assert len(names) >= 4
    assert stage_names(StandardizedInput(encoder)) == [f"encoder.{name}" for name in names]


def test_the_stages_of_a_vision_transformer_are_its_blocks():
    encoder = build_encoder({"vision_encoder": "vit", "embed_dim": 24, "patch_size": 4, "depths": (2,), "num_heads": (2,)})
    assert stage_names(encoder) == ["patch_embed", "blocks.0", "blocks.1", "final_norm", "pyramid"]


def test_biases_norms_and_position_tables_are_not_decayed():
    network = Classifier(build_encoder(SWIN), 3)
    result = rates(network, weight_decay=0.1)
    for name, parameter in network.named_parameters():
        assert (result[name][1] > 0) == (parameter.ndim >= 2 and "bias_table" not in name), name


def test_a_frozen_encoder_is_excluded():
    network = Classifier(build_encoder(SWIN), 3)
    network.encoder.requires_grad_(False)
    assert all(name.startswith("head.") and rate == 1.0 for name, (rate, _) in rates(network, layer_decay=0.5).items())


def test_the_warm_up_starts_above_zero_and_the_cosine_ends_at_zero():
    settings = FinetuneSettings(epochs=10, warmup_epochs=2, schedule="cosine")
    factors = [factor_at(step, settings, steps_per_epoch=5) for step in range(51)]
    assert factors[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[30] == pytest.approx(0.5)
    assert factors[50] == pytest.approx(0.0)


def test_step_and_constant_schedules():
    assert factor_at(9, FinetuneSettings(schedule="step", gamma=0.8), steps_per_epoch=5) == pytest.approx(0.8)
    assert factor_at(999, FinetuneSettings(schedule="constant"), steps_per_epoch=5) == 1.0


def test_standardized_input_is_the_standard_score_of_the_voxels():
    class Sum(nn.Module):
        patch_size, pyramid_channels, pyramid_strides, channels, stride = (1,), (1,), ((1, 1, 1),), 1, (1, 1, 1)

        def encode(self, volume, mask=None):
            return volume * 1

    scaled = StandardizedInput(Sum(), mean=0.25, std=0.5)
    assert torch.equal(scaled.encode(torch.full((1, 1, 2, 3, 4), 0.75)), torch.ones(1, 1, 2, 3, 4))
    assert scaled.channels == 1


@pytest.mark.parametrize(("device", "precision", "fused"), [("cuda", "bf16-mixed", True), ("cuda", "16-mixed", False)])
def test_the_optimizer_is_fused_on_a_gpu_unless_gradients_are_scaled(device, precision, fused, monkeypatch):
    chosen = []
    trainer = SimpleNamespace(precision=precision, estimated_stepping_batches=8, max_epochs=2)
    monkeypatch.setattr(FinetuneModule, "device", torch.device(device))
    monkeypatch.setattr(FinetuneModule, "trainer", trainer)
    monkeypatch.setattr(module, "build_optimizer", lambda *arguments, fused, **options: chosen.append(fused) or (None, None))
    task_type = Classification(FinetuneSettings(), outputs=("a",), metric="auroc")
    FinetuneModule(Classifier(build_encoder(SWIN), 1), task_type).configure_optimizers()
    assert chosen == [fused]
