"""How often the host waits for the device, counted on a pretend device: never within a training step or an inference."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from pretend_device import DEVICE, PretendDevice, on_device, to_device
from small_model import WIRINGS, build, random_batch
from small_vision import SMALL, small_encoder, volumes_and_mask

from mg3d.datasets.windowing import move_to_device, to_intensities
from mg3d.training.chunks import features_in_chunks
from mg3d.training.non_finite import NonFiniteGuard
from mg3d.types import StoredVolumes


def test_the_device_counts_every_kind_of_wait():
    """Otherwise the other tests could not fail."""
    plain = torch.rand(4, 3)
    kinds = {
        "_local_scalar_dense": lambda x: int(x.sum()),
        "nonzero": lambda x: x.nonzero(),
        "boolean index": lambda x: x[x > 0.5],
        "copy to the host": lambda x: x.cpu(),
        "copy from the host": lambda x: x.copy_(plain, non_blocking=True),
        "values of the host": lambda x: x * torch.tensor([2.0], device=x.device),
    }
    for kind, wait in kinds.items():
        with PretendDevice() as device:
            wait(to_device(plain))
        assert [(name, count) for (name, _), count in device.waits.items()] == [(kind, 1)]
    with PretendDevice() as device:
        torch.full((2,), 3.0, device=DEVICE) + to_device(plain)[:2, 0].masked_fill(to_device(plain)[:2, 0] > 0.5, 0)
        to_device(plain).index_select(0, torch.arange(2, device=DEVICE))
        torch.empty(3, pin_memory=True).copy_(to_device(plain)[0], non_blocking=True)
    assert not device.waits


def test_mixing_device_and_host_is_refused():
    with PretendDevice(), pytest.raises(RuntimeError, match="mixes"):
        to_device(torch.rand(3)) + torch.rand(3)


def count_waits(model, batch, *, chunk=0):
    """Waits of a training step (forward, losses, backward, optimizer, EMA)."""
    to_device(model)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], foreach=False)
    batch = on_device(batch)
    with PretendDevice() as device:
        for _ in range(2):
            sum(model.losses(features_in_chunks(model, batch, chunk)).values()).backward()
            optimizer.step()
            model.update_ema()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    return device.waits


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_the_check_for_nan_reads_a_step_after_the_next_one_is_issued(monkeypatch, tmp_path, value):
    issued = []
    event = SimpleNamespace(synchronize=lambda: issued.append("read"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=lambda: event))
    guard, parameter = NonFiniteGuard(tmp_path), torch.nn.Parameter(to_device(torch.ones(2)))
    trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=1, precision_plugin=None)
    optimizer, batch = torch.optim.SGD([parameter]), SimpleNamespace(study_id=["a study"])
    stops = pytest.raises(ValueError, match="the loss of step 1 is NaN") if math.isnan(value) else contextlib.nullcontext()
    with PretendDevice() as device, stops:
        for step in range(3):
            loss = parameter.sum() * (value if step == 1 else 1.0)
            module, trainer.global_step = SimpleNamespace(latest_terms={}), step
            guard.on_train_batch_start(trainer, module, batch, step)
            guard.on_before_backward(trainer, module, loss)
            loss.backward()
            issued.append(step)
            guard.on_before_optimizer_step(trainer, module, optimizer)
    assert not device.waits
    assert issued == [0, 1, "read", 2, "read"]


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_training_step_never_waits(wiring, frozen):
    assert not count_waits(build(wiring, frozen=frozen), random_batch())


@pytest.mark.parametrize("settings", [{"contrast": "sigmoid"}, {"objectives": ("mlm", "cml", "captioning")}, {"pool_queries": 2}])
def test_no_objective_waits(settings):
    assert not count_waits(build(**settings), random_batch())


def test_chunks_never_wait():
    assert not count_waits(build(), random_batch(5), chunk=2)


@pytest.mark.parametrize("name", SMALL)
def test_no_image_encoder_waits(name):
    (volume, mask), known = volumes_and_mask(), {"mask_ratio": 0.5} if name == "vit" else {}
    encoder = to_device(small_encoder(name, **known))
    mask[:] = False
    mask[:, ::2] = True
    with PretendDevice() as device:
        maps = (*encoder(to_device(volume)), encoder.encode(to_device(volume), to_device(mask)))
        sum(level.sum() for level in maps).backward()
    assert not device.waits


def test_inference_waits_only_for_the_length_of_the_report():
    model, batch = to_device(build().eval()), on_device(random_batch())
    with PretendDevice() as device, torch.no_grad():
        model.embed_volume(batch.volume)
    assert not device.waits
    with PretendDevice() as device, torch.no_grad():
        model.embed_report(batch.report_ids, batch.attention_mask, batch.sentence_index)
    assert list(device.waits.values()) == [1]


@pytest.mark.parametrize("noise", [[], [0.02]])
def test_stored_voxels_are_converted_and_augmented_without_waits(noise):
    affine = torch.eye(3, 4).expand(2, 3, 4) * 0.9
    window = torch.tensor([[-1000.0, 1000.0], [-900.0, 1000.0]])
    voxels = torch.randint(-1000, 1000, (2, 1, 8, 6, 10)).short()
    stored = StoredVolumes(voxels, window, affine, torch.tensor([noise] * 2), [3, 4])
    with PretendDevice() as device:
        converted = to_intensities(on_device(stored))
    assert not device.waits
    torch.testing.assert_close(converted.inner, to_intensities(stored))
    assert move_to_device(stored, "cpu").voxels.equal(stored.voxels)
