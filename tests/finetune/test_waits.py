"""How often fine-tuning and its evaluation wait for the device, counted on a pretend device for every task type."""

import numpy as np
import pytest
import torch
from downstream.folders import load
from finetune.small_rate import save_model, task_and_cases, write_rate
from pretend_device import PretendDevice, to_device
from small_vision import small_encoder

from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.module import FinetuneModule
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.report import ReportGeneration
from mg3d.finetune.tasks.segmentation import LOSSES, Segmentation

PUBLIC = {"stoic2021": 2, "cc-ccii": 2, "Luna16": 4}
"""Folder -> waits of an evaluation batch: scores and targets; of candidates their numbers and positions."""
RATE = {"full": 2, "probe": 2, "prompts": 4, "zero_shot": 4, "retrieval": 7}
"""Task of CT-RATE -> waits of an evaluation batch: embeddings, prompts, scale and targets; of retrieval the tokens of reports."""


def waits_of(task_type, network, samples, *, trains):
    """Waits of a training step, or of the predictions of a batch."""
    batch = {name: to_device(value) if isinstance(value, torch.Tensor) else value
             for name, value in task_type.collate(samples).items()}  # fmt: skip
    module = FinetuneModule(to_device(network.train(trains)), task_type)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], foreach=False) if trains else None
    with PretendDevice() as device:
        if trains:
            module.training_step(batch, 0).backward()
            optimizer.step()
        else:
            module.predict_step(batch, 0)
    return device.waits


def samples_of(task_type, cases, *, trains):
    data = task_type.training_data(cases)[0] if trains else task_type.evaluation_data(cases)
    return [data[index] for index in range(min(2, len(data)))]


@pytest.mark.parametrize("folder", PUBLIC)
def test_classification_waits_only_for_its_predictions(folder, tiny_set):
    module = load(folder)
    settings = module.TASK.settings(**({"cube_size": (32, 64, 96)} if folder == "Luna16" else {}))
    task_type, cases = module.build(settings), module.read_cases(tiny_set(folder), settings)
    for trains in (True, False):
        samples = samples_of(task_type, cases, trains=trains)
        for sample in samples:
            sample["image"] = torch.rand(1, 32, 64, 96)
        network = task_type.network(small_encoder("unet instance", mask_token=False))
        waits = waits_of(task_type, network, samples, trains=trains)
        assert sum(waits.values()) == (0 if trains else PUBLIC[folder]), waits


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_segmentation_never_waits_and_a_scan_only_for_its_window_weights(loss):
    """Not counted: the resampling of predictions to the grid of the file."""
    task_type = Segmentation(FinetuneSettings(), outputs=("a", "b"), patch_size=(32, 64, 96), loss=loss)
    mask = torch.arange(32 * 64 * 96).view(1, 32, 64, 96) % 3
    samples = [{"image": torch.rand(1, 32, 64, 96), "mask": mask} for _ in range(2)]
    network = task_type.network(small_encoder("unet instance", mask_token=False))
    assert not waits_of(task_type, network, samples, trains=True)
    with PretendDevice() as device, torch.no_grad():
        task_type._sliding_windows(network.eval(), to_device(torch.rand(1, 1, 40, 70, 96)))
    assert sum(device.waits.values()) == 1


def test_report_generation_waits_once_per_generated_token(tmp_path):
    decoder = {"decoder_width": 8, "decoder_heads": 2, "decoder_layers": 1, "max_tokens": 8}
    task_type = ReportGeneration(FinetuneSettings(), **decoder, num_beams=1, no_repeat_ngram_size=0)
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).random((32, 64, 96)))
    cases = [FinetuneCase(case_id=name, patient_id=name, image=tmp_path / "scan.npy", report=report)
             for name, report in (("1", "No effusion."), ("2", "Clear lung. No effusion."))]  # fmt: skip
    task_type.setup(Split(cases, [], []), {})
    network = task_type.network(small_encoder("unet instance", mask_token=False))
    assert task_type.collate([task_type.read(with_masks=False)(cases[0])])["ids"].shape[1] == 5
    assert not waits_of(task_type, network, samples_of(task_type, cases, trains=True), trains=True)
    waits = waits_of(task_type, network, samples_of(task_type, cases, trains=False), trains=False)
    by_kind = {kind: sum(count for (name, _), count in waits.items() if name == kind) for kind, _ in waits}
    assert by_kind["_local_scalar_dense"] <= decoder["max_tokens"]  # whether every report has ended
    assert by_kind["copy to the host"] == 1


@pytest.fixture(scope="module")
def rate(tmp_path_factory):
    root = tmp_path_factory.mktemp("rate")
    return write_rate(root / "arrows"), save_model(root / "model")


@pytest.mark.parametrize("task", RATE)
def test_tasks_of_a_pre_trained_model_wait_only_for_their_predictions(task, rate):
    task_type, cases = task_and_cases(rate[0], task=task, pretrained=rate[1])
    encoder = small_encoder("unet instance", mask_token=False) if task in ("full", "probe") else None
    for trains in (True, False) if task_type.uses_sgd else (False,):
        samples = samples_of(task_type, cases, trains=trains)
        if encoder is not None:
            for sample in samples:
                sample["image"] = torch.rand(1, 32, 64, 96)
        waits = waits_of(task_type, task_type.network(encoder), samples, trains=trains)
        assert sum(waits.values()) == (0 if trains else RATE[task]), waits
