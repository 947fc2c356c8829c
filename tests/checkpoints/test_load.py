"""Loading weights of every kind of file into the pre-training model and into an encoder alone."""

import pytest
import torch
from released_files import key_list, pretraining_model, small_bert, small_key_list, synthetic
from safetensors.torch import save_file
from weight_files import small_swin

from mg3d.checkpoints.load import load_weights
from mg3d.checkpoints.released_names import UNUSED, to_ours
from mg3d.config import resolve
from mg3d.models.build import build_model
from mg3d.models.vision.swin import SwinEncoder

TARGET, SPACE = "branches.report.target_text.", "branches.disentangled.sentence_space."


def assert_holds(model, wanted, *, inside=""):
    """Every tensor of the model is the file's tensor of that name, whatever its precision."""
    state = model.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(state[name.removeprefix(inside)], tensor.to(state[name.removeprefix(inside)]), rtol=0, atol=0)
    assert {inside + name for name in state} == set(wanted)


def doubled(state):
    return {name: tensor if name.endswith("_index") else 2 * tensor for name, tensor in state.items()}


def small_state(model):
    return synthetic({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "swin_b.ckpt"
    state = synthetic(small_key_list(), torch.bfloat16)
    torch.save({"state_dict": state, "epoch": 4}, path)
    return path, {to_ours(name): tensor for name, tensor in state.items()}


def test_a_whole_released_file_fills_the_pretraining_model(whole_file, released_model):
    path, state = whole_file
    report = load_weights(released_model, path)
    assert (report.encoder_coverage, report.coverage, report.merging) == (1.0, 1.0, "legacy")
    assert not report.missing
    assert not report.unexpected
    assert not report.wrong_shape
    assert len(report.unused) == 197
    assert_holds(released_model, {name: tensor for name, tensor in state.items() if not name.startswith(UNUSED)})


def test_a_whole_released_file_fills_an_encoder_alone(whole_file):
    path, state = whole_file
    encoder = SwinEncoder()
    report = load_weights(encoder, path)
    assert report.encoder_coverage == report.coverage == 1.0
    assert not report.unexpected
    assert any(name.startswith("text.") for name in report.ignored)
    assert_holds(encoder, {name: tensor for name, tensor in state.items() if name.startswith("vision.")}, inside="vision.")


@pytest.mark.parametrize(
    ("keys", "arguments", "layout"),
    [
        ("keys_vision_swinb", {}, "flat"),
        ("keys_vision_swinb", {}, "safetensors"),
        ("keys_vision_swinl", {"embed_dim": 96}, "flat"),
        ("keys_vision_swinl_with_projhead", {"embed_dim": 96, "projection_width": 768}, "lightning"),
    ],
)
def test_a_released_encoder_file_fills_its_encoder(keys, arguments, layout, tmp_path):
    state = synthetic(key_list(keys), torch.float16)
    path = tmp_path / "weights"
    if layout == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if layout == "flat" else {"state_dict": state}, path)
    encoder = SwinEncoder(**arguments)
    report = load_weights(encoder, path)
    assert report.coverage == report.encoder_coverage == 1.0
    assert report.info.precision["float16"] > 100
    assert "float16" in str(report)
    assert_holds(encoder, {to_ours(name): tensor for name, tensor in state.items()}, inside="vision.")


@pytest.mark.parametrize("norm_statistics", ["batch", "instance"])
def test_a_released_unet_file_fills_its_encoder(norm_statistics, tmp_path):
    unet = pytest.importorskip("mg3d.models.vision.unet")
    state = synthetic(key_list("keys_vision_unet"))
    torch.save(state, tmp_path / "unet.ckpt")
    encoder = unet.UNetEncoder(norm_statistics=norm_statistics)
    report = load_weights(encoder, tmp_path / "unet.ckpt")
    assert report.coverage == report.encoder_coverage == 1.0
    assert (report.merging, report.info.encoder) == ("none", "unet")
    assert_holds(encoder, {to_ours(name): tensor for name, tensor in state.items()}, inside="vision.")


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "swinViT.", "swin_vit.", "module.swinViT.", "module.backbone.swinViT.", "student.backbone.swinViT.",
     "backbone.", "encoder.", "model.encoder.", "vision.", "module.student.swinViT.", "model._orig_mod.backbone."],
)  # fmt: skip
@pytest.mark.parametrize("whole", [False, True])
def test_known_prefixes_are_found(prefix, whole, tmp_path):
    model = encoder = small_swin()
    if whole:
        sizes = {"embed_dim": 12, "patch_size": 2, "window_size": 3, "depths": [2, 1], "num_heads": [2, 3], "hidden_size": 24}
        options = {"text_encoder": "x", "freeze_text": True, "weight_mim": 0.0, "image_size": 32, "mim_patch_size": 8}
        model = pretraining_model("tiny", **sizes, **options)
        encoder = model.vision
    state = small_state(encoder)
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in state.items()}}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="the patch merging is unknown"):
        load_weights(model, tmp_path / "weights.pt")
    report = load_weights(model, tmp_path / "weights.pt", merging="legacy")
    assert report.encoder_coverage == 1.0
    assert report.info.prefix == prefix
    assert_holds(encoder, state)


def test_older_mlp_names_are_known(tmp_path):
    encoder = small_swin()
    state = small_state(encoder)
    older = {"module." + name.replace("mlp.linear", "mlp.fc"): tensor for name, tensor in state.items()}
    torch.save({"state_dict": older}, tmp_path / "ssl.pt")
    assert load_weights(encoder, tmp_path / "ssl.pt", merging="legacy").coverage == 1.0
    assert_holds(encoder, state)


def test_the_network_around_an_encoder_is_ignored(tmp_path):
    encoder = small_swin()
    state = {"swinViT." + name: tensor for name, tensor in small_state(encoder).items()}
    around = {"encoder10.layer.conv1.conv.weight": torch.ones(2), "decoder5.transp_conv.conv.weight": torch.ones(3)}
    torch.save(state | around, tmp_path / "unetr.pt")
    report = load_weights(encoder, tmp_path / "unetr.pt", merging="legacy")
    assert set(report.ignored) == set(around)
    assert "ignored         2  encoder10" in str(report)


def test_the_student_is_loaded_unless_the_teacher_is_requested(tmp_path):
    encoder = small_swin()
    state = small_state(encoder)
    torch.save({"student": state, "teacher": doubled(state)}, tmp_path / "pair.pt")
    load_weights(encoder, tmp_path / "pair.pt", merging="legacy")
    assert_holds(encoder, state)
    load_weights(encoder, tmp_path / "pair.pt", merging="legacy", entry="teacher")
    assert_holds(encoder, doubled(state))


def test_an_unknown_prefix_is_reported_and_can_be_passed(tmp_path):
    encoder = small_swin()
    state = {"spine.trunk7." + name: tensor for name, tensor in small_state(encoder).items()}
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"unknown prefix 'spine.trunk7.' .spine.trunk7.layers1.0.blocks.0.attn"):
        load_weights(encoder, tmp_path / "weights.pt", merging="legacy")
    assert load_weights(encoder, tmp_path / "weights.pt", merging="legacy", prefix="spine.trunk7").coverage == 1.0
    with pytest.raises(ValueError, match=r"there is no image encoder with prefix='other.'"):
        load_weights(encoder, tmp_path / "weights.pt", prefix="other")


# --- patch merging


def test_released_weights_are_refused_by_a_model_with_the_current_merging(tmp_path):
    encoder = SwinEncoder(patch_merging="monai")
    torch.save(synthetic(key_list("keys_vision_swinb")), tmp_path / "released.ckpt")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"trained with patch merging 'legacy', but the model computes 'monai'.*patch_merging=legacy"
    ):
        load_weights(encoder, tmp_path / "released.ckpt")
    with pytest.raises(ValueError, match=r"has patch merging 'legacy' .all released MG-3D weights., not merging='monai'"):
        load_weights(encoder, tmp_path / "released.ckpt", merging="monai")
    with pytest.raises(ValueError, match="the model computes 'monai'"):
        load_weights(encoder, tmp_path / "released.ckpt", prefix="vision_encoder")
    assert_holds(encoder, before)


def test_a_given_merging_must_match_the_model(tmp_path):
    torch.save(small_state(small_swin()), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="'monai', but the model computes 'legacy'"):
        load_weights(small_swin(), tmp_path / "weights.pt", merging="monai")
    assert load_weights(small_swin(patch_merging="monai"), tmp_path / "weights.pt", merging="monai").merging == "monai"
    with pytest.raises(ValueError, match="must be one of legacy, monai, monai_v2"):
        load_weights(small_swin(), tmp_path / "weights.pt", merging="new")


# --- refusals leave the model unchanged


def test_a_lower_minimum_coverage_leaves_missing_tensors_unchanged(tmp_path):
    encoder = small_swin()
    state = small_state(encoder)
    rest = {"vision_encoder." + name: tensor for name, tensor in state.items() if not name.startswith("layers2")}
    torch.save(rest, tmp_path / "half.ckpt")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    report = load_weights(encoder, tmp_path / "half.ckpt", minimum_coverage=0.1, merging="legacy")
    assert 0.1 < report.encoder_coverage < 0.9
    assert set(report.missing) == {f"vision.{n}" for n in state if n.startswith("layers2") and not n.endswith("_index")}
    assert_holds(encoder, {name: (before if name.startswith("layers2") else state)[name] for name in state})


def test_another_architecture_is_refused_by_name(tmp_path):
    unet = {name: torch.zeros(shape) for name, shape in key_list("keys_vision_unet").items()}
    torch.save(unet, tmp_path / "unet.ckpt")
    with pytest.raises(ValueError, match=r"contains 0.0% .*is unet, the model swin; the file needs vision_encoder=unet"):
        load_weights(small_swin(), tmp_path / "unet.ckpt")


# --- the text encoder


def test_another_text_encoder_is_skipped_as_a_whole(tmp_path):
    model = pretraining_model("tiny", text_encoder="x", freeze_text=True)
    state = {"model." + name: tensor for name, tensor in model.state_dict().items()}
    words = "model.text.bert.embeddings.word_embeddings.weight"
    state[words] = torch.zeros(len(state[words]) + 7, state[words].shape[1])
    torch.save({"state_dict": state, "mg3d": {"settings": {"patch_merging": "legacy"}}}, tmp_path / "other_words.ckpt")
    before = model.text.bert.encoder.layer[1].output.dense.weight.clone()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.zero_()
    with torch.no_grad():
        model.text.bert.encoder.layer[1].output.dense.weight.copy_(before)
    report = load_weights(model, tmp_path / "other_words.ckpt")
    assert "skipped the text encoder of the file, which differs from the model's: vocabulary 57 (model 50)" in str(report)
    assert torch.equal(model.text.bert.encoder.layer[1].output.dense.weight, before)
    assert report.encoder_coverage == 1.0


def test_copies_of_text_weights_are_initialised_from_the_text_encoder(tmp_path):
    text = small_bert(layers=1, width=16, heads=2, frozen=False)
    model = build_model(resolve(["tiny"], {}), text)
    state = small_state(model)
    copied = (TARGET, SPACE)
    copies = [name for name in state if name.startswith(copied)]
    assert len(copies) > 20
    torch.save({"state_dict": {name: state[name] for name in state if name not in copies}}, tmp_path / "plain.ckpt")
    report = load_weights(model, tmp_path / "plain.ckpt", merging="legacy")
    assert report.missing == (f"{SPACE}word_weight", f"{SPACE}mean")
    held = model.state_dict()
    assert torch.equal(held[f"{SPACE}word_vectors"], state["text.bert.embeddings.word_embeddings.weight"])
    for name in copies:
        if name.startswith(TARGET):
            assert torch.equal(held[name], state["text." + name.removeprefix(TARGET)])
