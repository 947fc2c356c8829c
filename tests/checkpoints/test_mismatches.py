"""Encoders that nearly fit are refused with what differs, and the model is unchanged."""

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from released_files import key_list, pretraining_model, small_bert, synthetic
from weight_files import assert_refused, saved, small_swin

from mg3d.checkpoints.info import inspect_checkpoint
from mg3d.checkpoints.load import load_weights
from mg3d.checkpoints.patch_merging import merging_of
from mg3d.config import resolve
from mg3d.models.build import build_model
from mg3d.models.vision.nnunet import NNUNetEncoder
from mg3d.models.vision.swin import SwinEncoder
from mg3d.models.vision.unet import UNetEncoder
from mg3d.models.vision.vit import ViTEncoder


def monai_swin(**changes):
    sizes = {"window_size": (3, 3, 3), "patch_size": (2, 2, 2), "depths": (2, 1), "num_heads": (2, 3)}
    return SwinTransformer(**({"in_chans": 1, "embed_dim": 12} | sizes | changes))


# --- other structure


@pytest.mark.parametrize(
    ("file", "model", "sentence"),
    [
        (small_swin(depths=(4, 3)), small_swin(), r"depths=\[4, 3\]. .*not in the model .*vision.layers1.0.blocks.2"),
        (small_swin(), small_swin(depths=(3, 1)), r"depths=\[2, 1\]. .*missing .*vision.layers1.0.blocks.2"),
        (small_swin(depths=(2, 1, 1), num_heads=(2, 3, 2)), small_swin(), r"depths=\[2, 1, 1\].*not in the model .*layers3.0"),
        (monai_swin(use_v2=True), small_swin(), r"another structure.*not in the model .*layers1c.0"),
        (monai_swin(), monai_swin(use_v2=True), r"not in the file .*layers1c.0"),
        (monai_swin(qkv_bias=False), small_swin(), r"not in the file 3: vision.layers1.0.blocks.0.attn.qkv.bias"),
        (monai_swin(), monai_swin(qkv_bias=False), r"not in the model 3: vision.layers1.0.blocks.0.attn.qkv.bias"),
        (monai_swin(patch_norm=True), small_swin(), r"not in the model 2: vision.patch_embed.norm.weight"),
        (monai_swin(), monai_swin(patch_norm=True), r"not in the file 2: vision.patch_embed.norm.weight"),
        (small_swin(in_channels=2), small_swin(), r"in_channels=2. .*patch_embed.proj.weight \[12, 2, 2, 2, 2\] \(model"),
        (small_swin(window_size=(2, 3, 4)), small_swin(), r"has encoder tensors of another shape. wrong shape"),
        (small_swin(window_size=4), small_swin(), r"window_size=4.*relative_position_bias_table \[343, 2\] \(model \[125, 2\]\)"),
        (small_swin(embed_dim=24), small_swin(), "the file needs embed_dim=24"),
    ],
)  # fmt: skip
def test_another_structure_is_refused_with_the_difference(file, model, sentence, tmp_path):
    assert_refused(model, file.state_dict(), sentence, tmp_path, merging="legacy", minimum_coverage=0.0)


@pytest.mark.parametrize(
    ("keys", "arguments", "preset"),
    [("keys_vision_swinl", {"projection_width": 768}, "swin_l_unprojected"), ("keys_vision_swinl_with_projhead", {}, "swin_l")],
)
def test_swin_l_with_and_without_its_projection_are_two_encoders(keys, arguments, preset, tmp_path):
    model = SwinEncoder(embed_dim=96, **arguments)
    assert_refused(model, synthetic(key_list(keys), torch.bfloat16), f"set by the preset {preset}.*proj_head", tmp_path)


@pytest.mark.parametrize("masked", ["file", "model"])
def test_mask_token_and_running_statistics_may_be_missing(masked, tmp_path):
    file, model = (UNetEncoder(embed_dim=4, mask_token=side == masked) for side in ("file", "model"))
    state = {name: tensor for name, tensor in file.state_dict().items() if "running" not in name}
    report = load_weights(model, saved(state, tmp_path))
    assert torch.equal(model.down_tr512.ops[1].conv1.weight, file.down_tr512.ops[1].conv1.weight)
    assert (report.missing[:1] == ("vision.mask_token",)) == (masked == "model")


def test_a_pretrained_vision_transformer_loads_into_one_for_fine_tuning(tmp_path):
    sizes = {"embed_dim": 24, "patch_size": (2, 4, 4), "depths": (2,), "num_heads": (2,)}
    file, model = ViTEncoder(mask_token=True, **sizes), ViTEncoder(pyramid=True, **sizes)
    report = load_weights(model, saved({f"vision.{name}": tensor for name, tensor in file.state_dict().items()}, tmp_path))
    assert report.encoder_coverage == report.info.coverage == 1.0
    assert {name.split(".")[1] for name in report.missing} == {"pyramid"}
    assert {name.split(".")[1] for name in report.unexpected} == {"decoder"}
    volume = torch.rand(1, 1, 8, 12, 16)
    torch.testing.assert_close(model.encode(volume), file.encode(volume), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change", [{"depths": (3,)}, {"num_heads": (1,)}, {"patch_size": 8}, {"embed_dim": 28}, {"registers": 2}]
)
def test_another_vision_transformer_is_refused(change, tmp_path):
    sizes = {"embed_dim": 24, "patch_size": 4, "depths": (2,), "num_heads": (2,)}
    content = ViTEncoder(**sizes).state_dict()
    assert_refused(ViTEncoder(pyramid=True, **(sizes | change)), content, next(iter(change)).split("s")[0], tmp_path)


def test_heads_next_to_an_encoder_are_ignored(tmp_path):
    heads = {f"module.{name}": torch.ones(4) for name in ("rotation_head.bias", "convTrans3d.bias", "norm.bias")}
    content = {"module." + name: tensor for name, tensor in small_swin().state_dict().items()} | heads
    report = load_weights(small_swin(), saved(content, tmp_path), merging="legacy")
    assert (set(report.ignored), report.unexpected) == (set(heads), ())


def test_windows_that_differ_only_in_their_indices_are_refused(tmp_path):
    file, model = small_swin(window_size=(2, 3, 4)), small_swin(window_size=(4, 3, 2))
    assert_refused(model, file.state_dict(), "another attention window.*relative_position_index", tmp_path, merging="legacy")


def test_position_indices_are_not_copied(tmp_path):
    state, model = small_swin().state_dict(), small_swin()
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    before = model.layers1[0].blocks[0].attn.relative_position_index.clone()
    report = load_weights(model, saved(half, tmp_path), merging="legacy")
    assert torch.equal(model.layers1[0].blocks[0].attn.relative_position_index, before)
    assert not any(name.endswith("_index") for name in (*report.matched, *report.missing, *report.unexpected))


def test_ninety_percent_is_the_limit(tmp_path):
    model = small_swin()
    sizes, state = {name: p.numel() for name, p in model.named_parameters()}, model.state_dict()

    def without(*names):
        rest = {name: tensor for name, tensor in state.items() if name not in names}
        return rest, 1 - sum(sizes[name] for name in names) / sum(sizes.values())

    rest, share = without("layers2.0.blocks.0.mlp.linear1.weight")
    assert 0.9 < share < 0.91
    report = load_weights(model, saved(rest, tmp_path), merging="legacy")
    assert (report.missing, report.encoder_coverage) == (("vision.layers2.0.blocks.0.mlp.linear1.weight",), pytest.approx(share))
    rest, share = without("layers2.0.blocks.0.mlp.linear1.weight", "layers1.0.blocks.0.mlp.linear1.weight")
    assert 0.87 < share < 0.9
    refusal = f"contains {share:.1%} .*at least 90% are required. Everything in it fits. missing .*layers1.0.blocks.0.mlp"
    assert_refused(model, rest, refusal, tmp_path, merging="legacy")


@pytest.mark.parametrize("minimum", [0.0, 0.9])
def test_a_file_without_an_encoder_is_refused_at_any_minimum(minimum, tmp_path):
    other = {"classifier.weight": torch.ones(2, 3), "classifier.bias": torch.ones(2)}
    refusal = "contains 0.0% .*no image encoder that mg3d knows.*patch_embed.proj.weight"
    assert_refused(small_swin(), other, refusal, tmp_path, minimum_coverage=minimum)


@pytest.mark.parametrize("share", [90, -0.1, float("nan")])
def test_an_invalid_minimum_is_refused(share, tmp_path):
    state = small_swin().state_dict()
    assert_refused(small_swin(), state, "must be a fraction between 0 and 1", tmp_path, minimum_coverage=share)


# --- merging


@pytest.mark.parametrize(
    ("model", "kind"),
    [(monai_swin(downsample="merging"), "monai"), (monai_swin(downsample="mergingv2"), "monai_v2"), (small_swin(), "legacy"),
     (small_swin(patch_merging="monai"), "monai")],
)  # fmt: skip
def test_patch_mergings_are_distinguished(model, kind, tmp_path):
    assert merging_of(model) == kind
    other = {"monai": "monai_v2"}.get(kind, "monai")
    assert_refused(model, model.state_dict(), f"'{other}', but the model computes '{kind}'", tmp_path, merging=other)
    assert load_weights(model, saved(model.state_dict(), tmp_path), merging=kind).merging == kind


def test_an_unknown_merging_is_refused(tmp_path):
    class Merge(torch.nn.Module):
        def __init__(self, dim, norm_layer, spatial_dims):
            super().__init__()
            self.reduction, self.norm = torch.nn.Linear(8 * dim, 2 * dim, bias=False), norm_layer(8 * dim)

    model = monai_swin(downsample=Merge)
    assert_refused(model, model.state_dict(), "patch merging is .*Merge; it must be exactly one of", tmp_path, merging="monai")


def test_a_model_that_mixes_mergings_is_refused():
    with pytest.raises(ValueError, match="patch merging is legacy and monai;"):
        merging_of(torch.nn.ModuleList([small_swin(), small_swin(patch_merging="monai")]))


def test_a_small_encoder_with_released_names_is_not_released(tmp_path):
    state = {"vision_encoder." + name: tensor for name, tensor in small_swin().state_dict().items()}
    info = inspect_checkpoint(saved(state, tmp_path))
    assert (info.style, info.merging, info.preprocessing) == ("released", "unknown", None)
    assert_refused(small_swin(), state, "the patch merging is unknown", tmp_path)


@pytest.mark.parametrize("prefix", [None, "vision_encoder", "vision_encoder."])
def test_a_released_file_is_recognised_with_any_prefix_argument(prefix, tmp_path):
    info = inspect_checkpoint(saved(synthetic(key_list("keys_vision_swinb"), torch.bfloat16), tmp_path), prefix=prefix)
    assert (info.style, info.merging, info.preprocessing["window_hu"]) == ("released", "legacy", [-1000.0, 1000.0])


@pytest.mark.parametrize(
    ("settings", "merging"),
    [
        ({"patch_merging": "monai"}, "monai"), ({"patch_merging": "other"}, "unknown"), ({"patch_merging": ["monai"]}, "unknown"),
        (None, "unknown"), (3, "unknown"),
    ],
)  # fmt: skip
def test_the_merging_is_read_from_the_settings(settings, merging, tmp_path):
    content = {"state_dict": small_swin().state_dict(), "mg3d": {"settings": settings}}
    assert inspect_checkpoint(saved(content, tmp_path)).merging == merging


# --- norms of the U-Net


class WithRunningStatistics(UNetEncoder):
    def __init__(self):
        super().__init__(embed_dim=4)
        for stage in (self.down_tr64, self.down_tr128, self.down_tr256, self.down_tr512):
            for unit in stage.ops:
                unit.bn1 = torch.nn.BatchNorm3d(unit.bn1.num_features)


@pytest.mark.parametrize(
    ("stored", "model", "note"),
    [
        ("batch", UNetEncoder(embed_dim=4), None),
        ("instance", UNetEncoder(embed_dim=4), "norm_statistics='instance', the model uses 'batch'"),
        ("batch", UNetEncoder(embed_dim=4, norm_statistics="instance"), "the model uses 'instance': equal for one"),
        (None, UNetEncoder(embed_dim=4), "norm statistics of the file are unknown"),
        (None, WithRunningStatistics(), None),
    ],
)  # fmt: skip
def test_norm_statistics_are_compared_with_the_model(stored, model, note, tmp_path):
    identity = {"settings": {"norm_statistics": stored}} if stored else {}
    report = load_weights(model, saved({"state_dict": model.state_dict(), "mg3d": identity}, tmp_path))
    assert report.info.norm_statistics == (stored or "unknown")
    assert [note in one for one in report.notes] == ([True] if note else [])


def test_batch_statistics_are_refused_by_running_norms(tmp_path):
    model = WithRunningStatistics()
    content = {"state_dict": model.state_dict(), "mg3d": {"settings": {"norm_statistics": "batch"}}}
    assert_refused(model, content, "norm_statistics='batch', but the model uses running statistics", tmp_path)


# --- values


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensor: tensor.to(torch.int8), r"unsupported type: vision.patch_embed.proj.bias \(int8, strided\)"),
        (lambda tensor: tensor.to(torch.int32), r"bias \(int32, strided\)"),
        (lambda tensor: tensor.to(torch.complex64), r"bias \(complex64, strided\)"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), r"bias \(float8_e4m3fn, strided\)"),
        (lambda tensor: tensor.to_sparse(), r"bias \(float32, sparse_coo\)"),
        (lambda tensor: tensor.double() + 1e300, "NaN or Inf in vision.patch_embed.proj.bias, as float32"),
        (lambda tensor: tensor * float("nan"), "NaN or Inf in vision.patch_embed.proj.bias"),
    ],
)  # fmt: skip
def test_unsupported_types_and_values_are_refused_by_name(change, sentence, tmp_path):
    state = small_swin().state_dict()
    state["patch_embed.proj.bias"] = change(state["patch_embed.proj.bias"])
    assert_refused(small_swin(), state, sentence, tmp_path, merging="legacy")


def test_overflow_in_the_models_precision_is_refused(tmp_path):
    state = small_swin().state_dict()
    state["patch_embed.proj.bias"] = state["patch_embed.proj.bias"] + 1e6
    assert_refused(
        small_swin().half(), state, "NaN or Inf in vision.patch_embed.proj.bias, as float16", tmp_path, merging="legacy"
    )
    report = load_weights(small_swin(), saved(small_swin().half().state_dict(), tmp_path), merging="legacy")
    tensors = len(list(small_swin().parameters()))
    assert f"converted {tensors} tensors from float16 to the model's precision; half precision" in report.notes[0]


# --- wrappers, prefixes


def test_a_wrapped_model_is_loaded_as_what_it_wraps(tmp_path):
    file = small_swin().state_dict()
    for wrap in (torch.compile, torch.nn.DataParallel):
        model = small_swin()
        assert load_weights(wrap(model), saved(file, tmp_path), merging="legacy").coverage == 1.0
        assert torch.equal(model.patch_embed.proj.weight, file["patch_embed.proj.weight"])
    model = small_swin()
    model.layers1[0] = torch.compile(model.layers1[0])
    assert load_weights(model, saved(file, tmp_path), merging="legacy").coverage == 1.0


def test_one_of_several_encoders_must_be_chosen(tmp_path):
    state = small_swin().state_dict()
    pair = {word + name: tensor for word in ("backbone.", "encoder.") for name, tensor in state.items()}
    assert_refused(small_swin(), pair, "several image encoders, 'backbone.', 'encoder.'; pass prefix", tmp_path)
    assert load_weights(small_swin(), saved(pair, tmp_path), merging="legacy", prefix="encoder").coverage == 1.0


@pytest.mark.parametrize("order", [("teacher.", "student.backbone."), ("student.backbone.", "teacher.")])
def test_the_student_is_preferred_to_the_teacher(order, tmp_path):
    state = {word + name: tensor for word in order for name, tensor in small_swin().state_dict().items()}
    report = load_weights(small_swin(), saved(state, tmp_path), merging="legacy")
    assert report.info.prefix == "student.backbone."


# --- released fusion, text


def test_another_fusion_is_noted(tmp_path):
    model = pretraining_model("tiny", text_encoder="x", freeze_text=True)
    state = {name.replace(".fusion.", ".fusion.gates."): t for name, t in model.state_dict().items()}
    report = load_weights(model, saved(state, tmp_path), merging="legacy")
    assert "the fusion of the file differs" in str(report)
    assert load_weights(model, saved(model.state_dict(), tmp_path), merging="legacy").notes == ()


ORIGIN = {"tiny_vocabulary": 50, "reports": 9, "sha256": "ab"}


@pytest.mark.parametrize(
    ("stored", "ours", "note", "loaded"),
    [
        (ORIGIN, ORIGIN, None, True),
        (ORIGIN, ORIGIN | {"sha256": "cd"}, "its tokenizer was trained on other reports", False),
        (ORIGIN, None, "has its own tokenizer", True),
        (None, ORIGIN, None, True),
    ],
)
def test_a_text_encoder_with_other_token_ids_is_skipped(stored, ours, note, loaded, tmp_path):
    model = build_model(resolve(["tiny"], {}), small_bert(layers=1, width=16, heads=2, frozen=False))
    state = {name: t.clone() if name.endswith("_index") else torch.zeros_like(t) for name, t in model.state_dict().items()}
    report = load_weights(
        model, saved({"state_dict": state, "mg3d": {"tokenizer": stored}}, tmp_path), merging="legacy", tokenizer=ours
    )
    assert [note in one for one in report.notes] == ([True] if note else [])
    embeddings = "bert.embeddings.word_embeddings.weight"
    words = (f"text.{embeddings}", f"branches.report.target_text.{embeddings}", "branches.report.mlm_head.decoder.weight",
             "branches.disentangled.sentence_space.word_weight")  # fmt: skip
    for name in words:
        assert bool(model.state_dict()[name].any()) is not loaded, name
        assert (name in report.ignored) is not loaded
    assert not model.state_dict()["project_report.weight"].any()


# --- inspection


def test_the_coverage_of_a_small_nnunet(tmp_path):
    state = NNUNetEncoder(embed_dim=4).state_dict()
    info = inspect_checkpoint(saved(state, tmp_path))
    assert (info.encoder, info.width, info.coverage) == ("nnunet", 4, 1.0)
    less = {name: tensor for name, tensor in state.items() if not name.startswith("bottleneck")}
    lost = sum(tensor.numel() for name, tensor in state.items() if name.startswith("bottleneck"))
    share = 1 - lost / sum(tensor.numel() for tensor in state.values())
    assert inspect_checkpoint(saved(less, tmp_path)).coverage == pytest.approx(share)


def test_coverage_includes_projection_and_missing_stages(tmp_path):
    keys = key_list("keys_vision_swinl_with_projhead")
    less = {name: shape for name, shape in keys.items() if "proj_head.layer3" not in name and ".layers2." not in name}
    info = inspect_checkpoint(saved({n: torch.zeros((), dtype=torch.bfloat16).expand(s) for n, s in less.items()}, tmp_path))
    assert (info.encoder, info.details["depths"], info.details["num_heads"]) == ("swin_l", [2, 0, 2, 2], [3, 0, 12, 24])
    held, whole = (sum(torch.Size(s).numel() for n, s in part.items() if not n.endswith("_index")) for part in (less, keys))
    assert info.coverage == pytest.approx(held / whole)


@pytest.mark.parametrize("table", [torch.zeros(()), torch.zeros(5)])
def test_malformed_bias_tables_are_described(table, tmp_path):
    state = small_swin().state_dict()
    state |= {name: table for name in state if name.endswith("bias_table")}
    info = inspect_checkpoint(saved(state, tmp_path))
    assert (info.details["num_heads"], info.details["window_size"]) == ([0, 0], None)


def test_a_bert_without_positions_is_described(tmp_path):
    words = {"bert.embeddings.word_embeddings.weight": torch.zeros(50, 8)}
    assert inspect_checkpoint(saved(words, tmp_path)).text == {"layers": 0, "width": 8, "vocabulary": 50, "positions": 0}


@pytest.mark.parametrize(
    ("settings", "info"),
    [
        ({"image_size": 64, "window_hu": [-9, 3], "max_text_len": 77}, ([64, 48, 64], [-9, 3], "lower case, at most 77 tokens")),
        ({"image_size": 64, "max_text_len": 77}, None),
        ({"window_hu": [-900, 300], "max_text_len": 77}, None),
        ({"image_size": "x", "window_hu": 3, "max_text_len": 77}, None),
        (None, None),
        (3, None),
    ],
)  # fmt: skip
def test_preprocessing_needs_complete_settings(settings, info, tmp_path):
    content = {"state_dict": small_swin().state_dict(), "mg3d": {"settings": settings}}
    preprocessing = inspect_checkpoint(saved(content, tmp_path)).preprocessing
    assert (preprocessing and (preprocessing["shape"], preprocessing["window_hu"], preprocessing["text"])) == info
