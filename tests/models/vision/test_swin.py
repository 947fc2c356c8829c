import torch
from torch import nn
from torch.nn import functional as F

from mg3d.models.vision.swin import SwinEncoder, TokenProjection


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
