"""Data-parallel fine-tuning: every trained parameter has a gradient, and two processes train as one."""

import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
from small_vision import SMALL, small_encoder

from mg3d.finetune import loop
from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.encoder import StandardizedInput
from mg3d.finetune.module import FinetuneModule
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.classification import Classification, Classifier
from mg3d.finetune.tasks.report import ReportGeneration, ReportWriter
from mg3d.finetune.tasks.segmentation import Segmentation
from mg3d.models.segmentation import PyramidSegmenter

DECODER = {"width": 8, "layers": 1, "heads": 2, "max_length": 6}
VOLUME = torch.rand(2, 1, 32, 64, 96, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "classification": (Classification, lambda encoder: Classifier(encoder, 3), ()),
    "segmentation": (Segmentation, lambda encoder: PyramidSegmenter(encoder, 3), ()),
    "reports": (ReportGeneration, lambda encoder: ReportWriter(encoder, 20, DECODER),
                (torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.bool))),
}  # fmt: skip
ENCODERS = [*((name, False) for name in SMALL), ("swin projected", True), ("vit", True)]
"""Name in `SMALL`, and whether voxels are standardised."""


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("name", "is_standardized"), ENCODERS)
def test_every_trained_parameter_has_a_gradient(network, name, is_standardized):
    encoder = small_encoder(name, mask_token=False)
    kind, build, inputs = NETWORKS[network]
    task_type = kind.__new__(kind)
    task_type.settings = FinetuneSettings()
    module = FinetuneModule(build(StandardizedInput(encoder) if is_standardized else encoder), task_type)
    outputs = module.network(VOLUME, *inputs)
    sum(output.float().square().sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    without = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def task_of(name, folder, devices):
    """(task type, cases) of a small task whose batch of four volumes is split over the processes."""
    settings = FinetuneSettings(
        epochs=2, batch_size=4 // devices, num_workers=0, devices=devices, accelerator="cpu", weight_decay=0.0,
        learning_rate=1e-3, schedule="constant", precision="64-true",
    )  # fmt: skip
    cases = []
    for number in range(8):
        files = {part: folder / f"{part}_{number}.npy" for part in ("image", "mask")}
        cases.append(FinetuneCase(case_id=f"{number}", patient_id=f"{number}", image=files["image"], mask=files["mask"],
                                  target=(number % 2, number // 4)))  # fmt: skip
    if name == "segmentation":
        return Segmentation(settings, outputs=("a", "b"), patch_size=(16, 16, 16)), cases
    return Classification(settings, outputs=("a", "b"), metric="auroc"), cases


def trained(name, folder, devices):
    """The weights after two epochs."""
    task_type, cases = task_of(name, folder, devices)
    encoder = small_encoder("swin", mask_token=False, embed_dim=12, depths=(1,), num_heads=(2,))
    torch.manual_seed(0)
    network = task_type.network(encoder)
    out = folder / f"{name}_{devices}"
    loop.train(task_type, network, Split(cases, cases, []), out, {"settings": {"resume": True}})
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def one_process(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1"}  # fmt: skip
    for name in ("classification", "segmentation"):
        trained(name, folder, 2)


@pytest.mark.slow
def test_two_processes_fine_tune_as_one(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(8):
        np.save(tmp_path / f"image_{number}.npy", generator.random((16, 16, 16), np.float32))
        np.save(tmp_path / f"mask_{number}.npy", generator.integers(0, 3, (16, 16, 16)).astype(np.uint8))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_process, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    for name in ("classification", "segmentation"):
        together = torch.load(tmp_path / f"{name}_2" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for key, alone in trained(name, tmp_path, 1).items():
            torch.testing.assert_close(together[key], alone, rtol=1e-6, atol=1e-9, msg=key)
