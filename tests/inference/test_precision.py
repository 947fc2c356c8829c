"""Evaluation and inference compute in the precision of the training."""

import pytest
import torch
from small_arrow import small_tokenizer
from small_inference import REPORTS, save
from small_model import build, random_batch
from small_raw import chest
from torch import nn

import mg3d
from mg3d.evaluation.encoder import MG3DEncoder, as_sentence
from mg3d.evaluation.reconstruction import reconstruction_error
from mg3d.models.text.encoder import tiny_text_encoder
from mg3d.precision import find_device, full_precision, inference, inference_precision, resolve_precision


def record_precision(module):
    """The data types in which the module's linear layers compute, filled with every call."""
    kinds = set()
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda layer, inputs, output: kinds.add(output.dtype))
    return kinds


@pytest.mark.parametrize(
    ("precision", "device", "trained", "expected"),
    [
        ("auto", "cpu", "bf16-mixed", "32-true"),
        ("auto", "cuda", "bf16-mixed", "bf16-mixed"),
        ("auto", "cuda", "auto", "auto"),
        ("bf16-mixed", "cpu", "32-true", "bf16-mixed"),
        ("32-true", "cuda", "bf16-mixed", "32-true"),
    ],
)
def test_inference_has_the_precision_of_the_training_except_on_a_cpu(precision, device, trained, expected):
    assert inference_precision(precision, torch.device(device), trained=trained) == expected


def test_auto_is_float32_on_a_cpu_and_never_emulated_bf16(monkeypatch):
    assert resolve_precision("auto", "cpu") == "32-true"
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"
    for is_native in (False, True):
        is_supported = lambda including_emulation=True, is_native=is_native: is_native or including_emulation  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
        assert resolve_precision("auto", "cuda:1") == ("bf16-mixed" if is_native else "16-mixed")


def test_a_device_that_does_not_exist_is_refused():
    assert find_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device 'cuda:99' is not available"):
        find_device("cuda:99")


def test_only_half_precision_is_raised():
    kinds = [full_precision(torch.zeros(1, dtype=kind)).dtype for kind in (torch.bfloat16, torch.float16, torch.float64)]
    assert kinds == [torch.float32, torch.float32, torch.float64]
    with inference("bf16-mixed", "cpu"):
        assert (nn.Linear(2, 3)(torch.rand(1, 2)).dtype, torch.is_grad_enabled()) == (torch.bfloat16, False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "model", weight_captioning=1.0)


USES = {
    "embed": lambda model, scans: model.embed(scans),
    "embed_report": lambda model, scans: model.embed_report(REPORTS),
    "classify": lambda model, scans: model.classify(scans, ["effusion"]),
    "generate": lambda model, scans: model.generate(scans),
    "ground by contrast": lambda model, scans: model.ground(scans[0], "A nodule.", against="No nodule."),
    "ground by attention": lambda model, scans: model.ground(scans[0], "A nodule.", by="attention"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("precision", "kind"), [("auto", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_every_inference_computes_in_the_chosen_precision(saved, use, precision, kind):
    model = mg3d.load(saved, device="cpu", precision=precision, batch=2)
    of_encoders = record_precision(nn.ModuleList([model.model.vision, model.model.text]))
    USES[use](model, [model.read(chest(seed)) for seed in range(2)])
    assert of_encoders == {kind}


def test_embeddings_and_maps_in_bf16_are_close_to_float32_and_of_unit_length(saved):
    exact, mixed = (mg3d.load(saved, device="cpu", precision=precision) for precision in ("32-true", "bf16-mixed"))
    assert "bf16-mixed" in repr(mixed)
    scan = exact.read(chest(0))
    for first, second in ((exact.embed(scan), mixed.embed(scan)), (exact.embed_report(REPORTS), mixed.embed_report(REPORTS))):
        assert (first != second).any()
        torch.testing.assert_close(first, second, atol=0.02, rtol=0)
        torch.testing.assert_close((second**2).sum(-1) ** 0.5, (first**2).sum(-1) ** 0.5, atol=1e-6, rtol=0)
    maps = [model.ground(scan, "A nodule.").cells for model in (exact, mixed)]
    torch.testing.assert_close(*maps, atol=0.2, rtol=0)


def test_an_image_encoder_alone_computes_in_the_chosen_precision(tmp_path):
    folder = save(tmp_path / "model", wiring="intended")
    model = mg3d.load(folder, device="cpu", precision="bf16-mixed")
    kinds = record_precision(model.vision)
    vector = model.embed(model.read(chest(0)))
    assert kinds == {torch.bfloat16}
    assert float((vector**2).sum()) == pytest.approx(1, abs=1e-5)


def test_evaluation_computes_in_the_precision_of_the_run(tmp_path):
    tokenizer, batch = small_tokenizer(tmp_path), random_batch()
    batch = batch._replace(volume=batch.volume.float())
    uses = {
        "volumes": lambda encoder: encoder.embed_volumes(batch.volume),
        "texts": lambda encoder: encoder.embed_texts([as_sentence("No lesion.")]),
        "maps": lambda encoder: encoder.ground(batch.volume, [("A lesion.", "No lesion.")]),
        "masked": lambda encoder: reconstruction_error(
            encoder.model, [batch], torch.zeros(1, *batch.volume.shape[2:]), precision=encoder.precision
        ),
    }
    for use in uses.values():
        model = build().float()
        model.text = tiny_text_encoder(vocab_size=len(tokenizer), width=16, layers=1, heads=2, max_positions=32)
        kinds = record_precision(nn.ModuleList([model.vision, model.text]))
        use(MG3DEncoder(model, tokenizer, max_text_len=32, precision="bf16-mixed"))
        assert kinds == {torch.bfloat16}
