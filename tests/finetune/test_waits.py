"""How often a fine-tuning step waits for the device, counted on a pretend device."""

import pytest
import torch
from pretend_device import PretendDevice, to_device
from small_arrow import small_tokenizer
from small_model import build, random_batch
from small_vision import small_encoder, volumes_and_mask

from mg3d.finetune.cases import UNKNOWN, FinetuneCase, Split
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.classification import Classification
from mg3d.finetune.tasks.prompts import PromptNetwork, pair_loss
from mg3d.finetune.tasks.report import ReportGeneration
from mg3d.finetune.tasks.segmentation import LOSSES, Segmentation


def classification(**named):
    return Classification(FinetuneSettings(), outputs=("a", "b", "c"), metric="macro_auroc", preprocess=[], **named)


def report():
    small = {"decoder_width": 8, "decoder_heads": 2, "decoder_layers": 1, "max_tokens": 8}
    task_type = ReportGeneration(FinetuneSettings(), preprocess=[], **small)
    text = "No effusion. Clear lung."
    cases = [FinetuneCase(case_id=name, patient_id=name, image=None, report=text) for name in "1234"]
    task_type.setup(Split(cases, [], []), {})
    return task_type


def segmentation(loss):
    return Segmentation(FinetuneSettings(), outputs=("a", "b"), patch_size=(32, 64, 96), loss=loss, preprocess=[])


MASK = torch.arange(2 * 32 * 64 * 96).view(2, 1, 32, 64, 96) % 3
CASES = {
    "labels": (classification, {"target": torch.tensor([[1, 0, UNKNOWN], [0, UNKNOWN, 1]])}, 0),
    "classes": (lambda: classification(exclusive=True), {"target": torch.tensor([[2], [0]])}, 0),
    "reports": (report, {"ids": torch.arange(16).view(2, 8) % 4 + 1, "count": torch.tensor([6, 3])}, 1),
    **{f"masks, {loss}": (lambda loss=loss: segmentation(loss), {"mask": MASK}, 0) for loss in LOSSES},
}  # fmt: skip
"""Task -> its type, the rest of the batch, and waits of a step: generated reports are cut to the longest of the batch."""


@pytest.mark.parametrize("task", CASES)
def test_a_fine_tuning_step_waits_at_most_for_the_length_of_the_reports(task):
    create, targets, waits = CASES[task]
    task_type, (volume, _) = create(), volumes_and_mask()
    network = to_device(task_type.network(small_encoder("unet instance", mask_token=False)).train())
    batch = {name: to_device(value) for name, value in {"image": volume, **targets}.items()}
    optimizer = torch.optim.AdamW(network.parameters(), foreach=False)
    with PretendDevice() as device:
        task_type.loss(network, batch).backward()
        optimizer.step()
    assert sum(device.waits.values()) == waits, device.waits


@pytest.mark.parametrize("form", ["bce", "softmax_mse"])
def test_a_step_of_prompt_tuning_never_waits(form, tmp_path):
    pairs = [("Effusion.", "No effusion."), ("There is a nodule.", "There is no nodule."), ("Edema.", "No edema.")]
    model, tokenizer = build().float(), small_tokenizer(tmp_path)
    model.text.bert.resize_token_embeddings(len(tokenizer))
    network = to_device(PromptNetwork(model, tokenizer, pairs).train())
    target = to_device(torch.tensor([[1, 0, UNKNOWN], [0, UNKNOWN, 1]]))
    volume = to_device(random_batch(2).volume.float())
    with PretendDevice() as device:
        volumes, embedded, scale = network(volume)
        pair_loss(scale * torch.einsum("be,lpe->blp", volumes, embedded), target, form=form).backward()
    assert not device.waits
