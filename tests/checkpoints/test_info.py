"""`inspect_checkpoint` on files without metadata."""

import math
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet, SwinUNETR
from released_files import key_list, small_key_list, synthetic
from weight_files import saved

from mg3d.checkpoints.info import RELEASED_PREPROCESSING, inspect_checkpoint
from mg3d.settings.schema import CROP

ROOT = Path(__file__).parents[2]


def zeros(keys):
    return {name: torch.zeros((), dtype=torch.bfloat16).expand(shape) for name, shape in keys.items()}


@pytest.mark.parametrize(
    ("keys", "encoder", "width", "projection"),
    [
        ("keys_vision_swinb", "swin_b", 48, None),
        ("keys_vision_swinl", "swin_l_unprojected", 96, None),
        ("keys_vision_swinl_with_projhead", "swin_l", 96, 768),
    ],
)
def test_a_released_swin_is_recognised(keys, encoder, width, projection, tmp_path):
    info = inspect_checkpoint(saved(zeros(key_list(keys)), tmp_path))
    assert (info.style, info.encoder, info.width, info.coverage) == ("released", encoder, width, 1.0)
    assert info.details == {"in_channels": 1, "patch_size": 2, "depths": [2, 2, 2, 2], "num_heads": [3, 6, 12, 24],
                            "window_size": 7, "projection": projection}  # fmt: skip
    assert (info.merging, info.merging_source) == ("legacy", "all released MG-3D weights")
    assert info.precision == {"bfloat16": len(key_list(keys))}
    assert info.preprocessing == RELEASED_PREPROCESSING


def test_the_same_shapes_with_other_names_are_not_released_weights(tmp_path):
    keys = {name.replace("vision_encoder.", "swinViT."): shape for name, shape in key_list("keys_vision_swinb").items()}
    info = inspect_checkpoint(saved(zeros(keys | {"swinViT.mask_token": (48,)}), tmp_path))
    assert (info.encoder, info.coverage, info.merging, info.preprocessing) == ("swin_b", 1.0, "unknown", None)


def test_a_released_unet_is_recognised(tmp_path):
    info = inspect_checkpoint(saved(zeros(key_list("keys_vision_unet")), tmp_path))
    assert (info.encoder, info.width, info.coverage, info.merging) == ("unet", 48, 1.0, "none")
    assert info.norm_statistics == "batch"


def test_a_unet_with_its_decoder_is_recognised_without_a_prefix(tmp_path):
    bare = {name.removeprefix("vision_encoder."): shape for name, shape in key_list("keys_vision_unet").items()}
    bare |= {"up_tr256.up_conv.weight": (768, 768, 2, 2, 2), "up_tr128.ops.0.conv1.bias": (4,), "out_tr.final_conv.bias": (2,)}
    info = inspect_checkpoint(saved(zeros(bare), tmp_path))
    assert (info.encoder, info.style, info.coverage) == ("unet", "encoder", 1.0)
    assert info.parts["outside"][0] == 3


def test_a_whole_pretraining_file_is_recognised(tmp_path):
    info = inspect_checkpoint(saved({"state_dict": synthetic(small_key_list()), "global_step": 12}, tmp_path))
    assert info.description == "MG-3D pre-training"
    assert info.text == {"layers": 2, "width": 768, "vocabulary": 50, "positions": 512}
    assert info.provenance == {"global_step": 12}
    learned = [math.prod(s) for n, s in key_list("keys_swinb").items() if "vision_encoder" in n and not n.endswith("_index")]
    assert info.parts["vision"] == (118, sum(learned))
    assert info.layout == "torch, state dict in 'state_dict'"


def test_monais_swin_unetr_has_an_unknown_merging(tmp_path):
    network = SwinUNETR(in_channels=2, out_channels=3, feature_size=12, depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 4))
    info = inspect_checkpoint(saved({"net": {"module.backbone." + n: t for n, t in network.state_dict().items()}}, tmp_path))
    assert info.description == "image encoder"
    assert (info.prefix, info.encoder, info.width, info.merging) == ("module.backbone.swinViT.", "swin", 12, "unknown")
    assert info.details["depths"] == [1, 2, 1, 1]
    assert info.details["num_heads"] == [1, 2, 3, 4]
    assert info.details["in_channels"] == 2
    assert info.preprocessing is None


def test_nnunet_encoders_are_distinguished(tmp_path):
    network = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16], res_block=True)
    info = inspect_checkpoint(saved(network.state_dict(), tmp_path))
    assert (info.encoder, info.width) == ("nnunet", 8)
    names = {"stem.convs.0.conv.weight": (32, 1, 3, 3, 3), "stages.0.blocks.0.conv1.conv.weight": (32, 32, 3, 3, 3)}
    info = inspect_checkpoint(saved({"network_weights": zeros({f"encoder.{n}": s for n, s in names.items()})}, tmp_path))
    assert (info.encoder, info.width, info.coverage) == ("nnunet_v2_residual", 32, None)
    assert info.layout.endswith("'network_weights'")


def test_a_bert_is_recognised(tmp_path):
    names = {"bert.embeddings.word_embeddings.weight": (50, 8), "bert.embeddings.position_embeddings.weight": (16, 8),
             "bert.encoder.layer.0.output.LayerNorm.gamma": (8,), "cls.predictions.bias": (50,)}  # fmt: skip
    info = inspect_checkpoint(saved(zeros(names), tmp_path))
    assert (info.style, info.encoder, info.coverage) == ("bert", "none", None)
    assert info.text == {"layers": 1, "width": 8, "vocabulary": 50, "positions": 16}


def test_other_tensors_are_unknown(tmp_path):
    info = inspect_checkpoint(saved({"conv.weight": torch.ones(3, 1, 2)}, tmp_path))
    assert (info.style, info.description, info.encoder) == ("unknown", "unknown", "none")


def test_the_coverage_of_a_partial_encoder(tmp_path):
    every = key_list("keys_vision_swinb")
    keys = {n: s for n, s in every.items() if ".layers4." not in n}
    info = inspect_checkpoint(saved(zeros(keys), tmp_path))
    assert (info.encoder, info.details["depths"]) == ("swin_b", [2, 2, 2])
    held, whole = (sum(math.prod(s) for n, s in part.items() if not n.endswith("_index")) for part in (keys, every))
    assert info.coverage == pytest.approx(held / whole, abs=1e-9)
    assert info.merging == "unknown"
    keys = {n: s for n, s in every.items() if ".mlp." not in n}
    info = inspect_checkpoint(saved(zeros(keys), tmp_path))
    mlp = sum(2 * (8 * width**2 + 5 * width) for width in (48, 96, 192, 384))  # of two blocks a stage
    assert info.coverage == pytest.approx(1 - mlp / whole, abs=1e-9)


def test_the_released_crop_is_the_default_crop():
    assert tuple(RELEASED_PREPROCESSING["crop_fraction"]) == CROP
