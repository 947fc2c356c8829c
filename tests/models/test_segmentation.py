"""The decoder over an encoder's pyramid is SwinUNETR's, and fits every encoder."""

import pytest
import torch
from monai.networks.nets import SwinUNETR

from mg3d.models.segmentation import PyramidSegmenter
from mg3d.models.vision.nnunet import NNUNetEncoder
from mg3d.models.vision.swin import LegacyPatchMerging, SwinEncoder
from mg3d.models.vision.unet import UNetEncoder

PLACES = {"swinViT": "encoder", "encoder1": "finest", "encoder2": "skips.0", "encoder3": "skips.1", "encoder4": "skips.2",
          "encoder10": "bottom", "decoder5": "ups.0", "decoder4": "ups.1", "decoder3": "ups.2", "decoder2": "ups.3",
          "decoder1": "last", "out": "out"}  # fmt: skip
"""Part of SwinUNETR -> the same part here."""


def test_with_swin_it_computes_what_swin_unetr_computes():
    torch.manual_seed(3)
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=12, downsample=LegacyPatchMerging).eval()
    ours = PyramidSegmenter(SwinEncoder(embed_dim=12), 3).eval()
    weights = {}
    for name, tensor in theirs.state_dict().items():
        part, _, rest = name.partition(".")
        weights[f"{PLACES[part]}.{rest}"] = tensor
    ours.load_state_dict(weights)
    volume = torch.randn(2, 1, 32, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(volume), theirs(volume), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "encoder",
    [
        SwinEncoder(embed_dim=12, patch_size=4, window_size=4, depths=(2,), num_heads=(3,)),
        SwinEncoder(embed_dim=12, patch_size=(1, 2, 4), window_size=4, depths=(2, 2), num_heads=(3, 3)),
        UNetEncoder(embed_dim=4),
        NNUNetEncoder(embed_dim=4),
    ],
    ids=["two maps", "strides that differ by axis", "unet, from stride 1", "nnunet"],
)
def test_every_encoder_gives_logits_of_every_voxel_and_learns(encoder):
    network = PyramidSegmenter(encoder, 2)
    logits = network(torch.randn(1, 1, 33, 40, 50))
    assert logits.shape == (1, 2, 33, 40, 50)
    logits.square().mean().backward()
    assert network.bottom.layer.conv1.conv.weight.grad.abs().sum() > 0


def test_padding_to_the_stride_changes_nothing_where_none_is_needed():
    network = PyramidSegmenter(SwinEncoder(embed_dim=12, patch_size=4, window_size=4, depths=(2,), num_heads=(3,)), 2).eval()
    volume = torch.randn(1, 1, 16, 24, 8)
    padded = torch.cat([volume, volume[:, :, :, -1:].expand(-1, -1, -1, 5, -1)], 3)
    with torch.no_grad():
        given = network(torch.cat([padded, padded[:, :, :, -1:].expand(-1, -1, -1, 3, -1)], 3))[:, :, :, :29]
        torch.testing.assert_close(network(padded), given)


def test_one_map_is_refused():
    class Flat:
        pyramid_channels, pyramid_strides = (8,), ((2, 2, 2),)

    with pytest.raises(ValueError, match="two or more maps, not 1"):
        PyramidSegmenter(Flat(), 2)
