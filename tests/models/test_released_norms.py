"""The original normalises with a batch norm that has neither parameters nor running statistics, over axis 1 of [B, n, C]."""

import pytest
import torch
from torch import nn

from mg3d.models.heads import WordEmbeddingSalHead
from mg3d.models.pooling import SentencePool
from mg3d.models.vision.swin import TokenProjection


def as_the_original(layers, tokens):
    """The same linear maps with the original's norm."""
    for layer in layers:
        if isinstance(layer, nn.LayerNorm):
            layer = nn.BatchNorm1d(tokens.shape[1], affine=False, track_running_stats=False)
        tokens = layer(tokens)
    return tokens


PARTS = {
    "sentence pool": (lambda: SentencePool(12, 5), lambda part, x: torch.tanh(as_the_original(part.dense, x))),
    "sal prediction": (lambda: WordEmbeddingSalHead(12, 6).prediction, as_the_original),
    "token projection": (
        lambda: TokenProjection(12, 7),
        lambda part, x: as_the_original([*part.layer1, *part.layer2, *part.layer3], x),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_for_one_patient_the_originals_batch_norm_is_our_layer_norm(name):
    build, original = PARTS[name]
    torch.manual_seed(0)
    part, tokens = build().double(), torch.randn(1, 4, 12, dtype=torch.float64)
    torch.testing.assert_close(part(tokens), original(part, tokens))


@pytest.mark.parametrize("name", PARTS)
def test_in_a_batch_ours_lets_no_patient_change_another(name):
    build, original = PARTS[name]
    torch.manual_seed(0)
    part, tokens = build().double(), torch.randn(3, 4, 12, dtype=torch.float64)
    torch.testing.assert_close(part(tokens)[1:2], part(tokens[1:2]))
    assert (original(part, tokens)[1:2] - original(part, tokens[1:2])).abs().max() > 1e-3
