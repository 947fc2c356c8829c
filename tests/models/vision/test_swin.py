import pytest
import torch

from mg3d.models.vision.swin import LegacyPatchMerging, SwinEncoder


def test_encode_projects_the_last_map_cell_by_cell():
    torch.manual_seed(0)
    encoder = SwinEncoder(embed_dim=4, window_size=3, depths=(1, 1), num_heads=(1, 2), projection_width=10).eval()
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


def test_features_are_equal_with_and_without_gradient():
    """Without gradient attention maps are not saved; windows are shifted, padded and masked in both."""
    torch.manual_seed(0)
    encoder = SwinEncoder(embed_dim=6, window_size=3, depths=(2, 2), num_heads=(2, 3)).double().eval()
    volume = torch.rand(2, 1, 20, 14, 24, dtype=torch.float64)
    with torch.no_grad():
        without = encoder(volume)
    for ours, theirs in zip(without, encoder(volume), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
