"""How often each use of a trained model waits for the device, counted on a pretend device."""

import pytest
import torch
from pretend_device import DEVICE, PretendDevice, to_device
from small_inference import REPORTS, save
from small_raw import chest

import mg3d
from mg3d.evaluation.encoder import as_sentence

USES = {
    "embed scans": (lambda model, scans: model.embed(scans), 4),
    "embed reports": (lambda model, scans: model.embed_report(REPORTS), 4),
    "classify": (lambda model, scans: model.classify(scans, ["effusion", "nodule"]), 8),
    "ground by contrast": (lambda model, scans: model.ground(scans[0], "A nodule.", against="No nodule."), 9),
    "ground by attention": (lambda model, scans: model.ground(scans[0], "A nodule.", by="attention"), 6),
    "evaluate maps": (lambda model, scans: model.encoder.ground(_volumes(scans), [("A nodule.", "No nodule.")]), 9),
    "evaluate sentences": (lambda model, scans: model.encoder.sentence_vectors([as_sentence("A nodule.")]), 4),
}
"""Use -> function of a model and three scans in batches of two, and its waits: copies of volumes or tokens, and of results."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "model", weight_captioning=1.0)


def load(saved):
    """A model on the pretend device, and three scans."""
    model = mg3d.load(saved, device="cpu", batch=2)
    scans = [model.read(chest(seed)) for seed in range(3)]
    to_device(model.model)
    model.device = DEVICE
    return model, scans


def _volumes(scans):
    return torch.stack([torch.from_numpy(scan.volume)[None] for scan in scans])


@pytest.mark.parametrize("use", USES)
def test_inference_waits_only_for_its_inputs_and_results(saved, use):
    function, waits = USES[use]
    model, scans = load(saved)
    model.encoder  # noqa: B018  reads the logit scale once
    with PretendDevice() as device:
        function(model, scans)
    assert sum(device.waits.values()) == waits, device.waits


def test_a_generated_report_waits_once_per_token(saved):
    model, scans = load(saved)
    with PretendDevice() as device:
        model.generate(scans[0], max_length=10)
    by_kind = {kind: sum(count for (name, _), count in device.waits.items() if name == kind) for kind, _ in device.waits}
    assert 1 <= by_kind["_local_scalar_dense"] <= 10 + 4  # whether every report has ended, and masks that transformers checks
    assert by_kind["copy from the host"] == by_kind["copy to the host"] == 1
