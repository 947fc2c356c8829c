"""How often a batch of pre-training waits for the device from its transfer to its losses, counted on a pretend device."""

import pytest
import torch
from pretend_device import PretendDevice, on_device, to_device
from small_model import OBJECTIVES, SHAPE, WIRINGS, build, random_batch

from mg3d.settings.schema import OptimSettings
from mg3d.training.module import PretrainModule
from mg3d.types import StoredVolumes


@pytest.mark.filterwarnings("ignore:You are trying to")
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_neither_training_nor_validation_waits_from_stored_voxels_to_losses(wiring, chunk, step):
    stored = StoredVolumes(torch.randint(-1000, 1000, (3, 1, *SHAPE)).short(), torch.tensor([[-1000.0, 1000.0]] * 3),
                           torch.eye(3, 4).expand(3, 3, 4) * 0.9, torch.full((3, 1), 0.02), [1, 2, 3])  # fmt: skip
    batch = random_batch()._replace(volume=stored)
    module = PretrainModule(
        to_device(build(wiring)), weights=dict.fromkeys(OBJECTIVES, 1.0), optim=OptimSettings(), seed=0, identity={}, chunk=chunk
    )
    batch = on_device(batch)
    with PretendDevice() as device, torch.set_grad_enabled(step == "training_step"):
        getattr(module, step)(module.on_after_batch_transfer(batch, 0), 0)
    assert not device.waits
