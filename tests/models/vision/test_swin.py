import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mg3d.models.vision.swin import LegacyPatchMerging, SwinEncoder, TokenProjection


def slow_projection(weights, tokens):
    """The original's head: linear, batch norm that takes the token axis for channels, ReLU; no ReLU at the end."""

    def norm(features):
        return nn.BatchNorm1d(features.shape[1], affine=False, track_running_stats=False)(features)

    for layer in ("layer1", "layer2", "layer3"):
        tokens = norm(F.linear(tokens, weights[f"{layer}.0.weight"], weights[f"{layer}.0.bias"]))
        tokens = tokens if layer == "layer3" else tokens.clamp(min=0)
    return tokens


def test_the_token_projection_is_the_originals_for_a_batch_of_one():
    torch.manual_seed(0)
    projection, tokens = TokenProjection(14, 6).double(), torch.randn(1, 5, 14, dtype=torch.float64)
    torch.testing.assert_close(projection(tokens), slow_projection(projection.state_dict(), tokens))


def test_the_token_projection_treats_every_token_alone():
    torch.manual_seed(0)
    projection, tokens = TokenProjection(14, 6).double(), torch.randn(3, 5, 14, dtype=torch.float64)
    torch.testing.assert_close(projection(tokens)[1, 2], projection(tokens[1, 2]))


def test_encode_projects_the_last_map_cell_by_cell():
    torch.manual_seed(0)
    encoder = SwinEncoder(embed_width=4, window_size=3, depths=(1, 1), heads=(1, 2), projection_width=10).eval()
    with torch.no_grad():
        *_, last = encoder(volume := torch.rand(2, 1, 16, 8, 24))
        projected = encoder.encode(volume)
        assert projected.shape == (2, 10, 2, 1, 3)
        torch.testing.assert_close(projected[1, :, 1, 0, 2], encoder.proj_head(last[1, :, 1, 0, 2]))


TAKEN = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
"""Offsets (z, y, x) that early MONAI takes of each 2 x 2 x 2 block, in the order of the weights."""


def slow_merging(merging, features):
    """Block by block; a cell beyond the end of an axis is zero."""
    batch, *sides, channels = features.shape
    halves = [(side + 1) // 2 for side in sides]
    out = features.new_empty(batch, *halves, 2 * channels)
    for b, *corner in torch.cartesian_prod(torch.arange(batch), *map(torch.arange, halves)).tolist():
        cells = [tuple(2 * at + step for at, step in zip(corner, offset)) for offset in TAKEN]
        inside = [all(at < side for at, side in zip(cell, sides)) for cell in cells]
        taken = torch.cat([features[(b, *cell)] if real else features.new_zeros(channels) for cell, real in zip(cells, inside)])
        scaled = (taken - taken.mean()) / (taken.var(correction=0) + 1e-5).sqrt() * merging.norm.weight + merging.norm.bias
        out[(b, *corner)] = merging.reduction.weight @ scaled
    return out


@pytest.mark.parametrize("sides", [(4, 6, 2), (5, 4, 6), (4, 5, 6), (4, 6, 5), (3, 5, 1)], ids=str)
def test_legacy_merging_is_its_slow_version_and_pads_odd_axes_with_zeros_at_their_end(sides):
    torch.manual_seed(0)
    merging, features = LegacyPatchMerging(3).double(), torch.randn(2, *sides, 3, dtype=torch.float64)
    with torch.no_grad():
        merging.norm.weight.normal_(), merging.norm.bias.normal_()
        torch.testing.assert_close(merging(features), slow_merging(merging, features))
