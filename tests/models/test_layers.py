"""Layers of the branches: MLM head, positional pool, and the norms of the published code."""

import pytest
import torch
from saved_tensors import saved_tensors
from torch import nn
from torch.nn import functional as F

from mg3d.datasets.masking import label_positions
from mg3d.models.branches.report import MLMHead
from mg3d.models.branches.volume import ConvVolumeDecoder
from mg3d.models.pooling import PositionalPool
from mg3d.models.released import ReleasedSALHead, SentencePool
from mg3d.models.vision.swin import TokenProjection


def head_and_tokens(labelled=11, vocabulary=23, width=6):
    torch.manual_seed(0)
    head = MLMHead(width, vocabulary).double()
    labels = torch.full((2, 9), -100)
    chosen = torch.randperm(16)[:labelled]
    labels[chosen // 8, 1 + chosen % 8] = torch.randint(vocabulary, (labelled,))
    return head, torch.randn(2, 9, width, dtype=torch.float64, requires_grad=True), labels


@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 11, 50])
def test_the_token_loss_in_chunks_has_the_value_and_gradient_of_the_whole(chunk):
    head, tokens, labels = head_and_tokens()
    logits = head.decoder(tokens) + head.bias
    plain = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")[labels.flatten() >= 0]
    weights = torch.rand(11, dtype=torch.float64)
    expected = torch.autograd.grad((plain * weights).sum(), (tokens, head.decoder.weight, head.bias))
    positions = label_positions(labels)
    found = head.token_loss(tokens, labels, positions, chunk=chunk)
    assert (found[positions == 0] == 0).all()
    found = found[positions > 0]
    torch.testing.assert_close(found, plain)
    gradients = torch.autograd.grad((found * weights).sum(), (tokens, head.decoder.weight, head.bias))
    for ours, theirs in zip(gradients, expected):
        torch.testing.assert_close(ours, theirs)


def test_the_memory_of_the_token_loss_does_not_grow_with_tokens_times_vocabulary():
    head, tokens, labels = head_and_tokens(labelled=16, vocabulary=5000)
    values = []
    for options in ({"chunk": 4}, {}):
        with saved_tensors() as saved:
            head.token_loss(tokens, labels, label_positions(labels), **options)
        values.append(sum(tensor.numel() for tensor in saved if tensor.numel() != head.decoder.weight.numel()))
    assert values[0] < 1000
    assert values[1] > 16 * 5000


def test_without_labels_the_token_loss_is_empty_and_has_a_graph():
    head, tokens, labels = head_and_tokens(labelled=0)
    head.token_loss(tokens, labels, label_positions(labels)).sum().backward()
    assert tokens.grad.abs().max() == 0


def test_a_positional_pool_is_a_sum_of_one_linear_map_per_position():
    torch.manual_seed(0)
    pool = PositionalPool(8, 5).double()
    tokens = torch.rand(3, 5, 8, dtype=torch.float64)
    expected = pool.join.bias.repeat(3, 1)
    for patient in range(3):
        for index in range(5):
            reduced = pool.reduce.weight @ F.layer_norm(tokens[patient, index], (8,)) + pool.reduce.bias
            expected[patient] += pool.join.weight[:, 2 * index : 2 * index + 2] @ reduced
    torch.testing.assert_close(pool(tokens), expected)
    with pytest.raises(ValueError, match="have 6 image tokens, the pooling layer was built for 5"):
        pool(torch.zeros(1, 6, 8))


def with_batch_norm(layers, tokens):
    """The published code: batch norm without parameters or running statistics, over axis 1 of [B, n, C]."""
    for layer in layers:
        if isinstance(layer, nn.LayerNorm):
            layer = nn.BatchNorm1d(tokens.shape[1], affine=False, track_running_stats=False)
        tokens = layer(tokens)
    return tokens


PARTS = {
    "sentence pool": (lambda: SentencePool(12), lambda part, x: torch.tanh(with_batch_norm(part.dense, x))),
    "sal prediction": (lambda: ReleasedSALHead(12, 6).prediction, with_batch_norm),
    "token projection": (
        lambda: TokenProjection(12, 7),
        lambda part, x: with_batch_norm([*part.layer1, *part.layer2, *part.layer3], x),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_for_one_patient_the_originals_batch_norm_is_our_layer_norm(name):
    build, original = PARTS[name]
    torch.manual_seed(0)
    part, tokens = build().double(), torch.randn(1, 4, 12, dtype=torch.float64)
    torch.testing.assert_close(part(tokens), original(part, tokens))


@pytest.mark.parametrize("name", PARTS)
def test_no_patient_changes_another_in_our_layer_norm(name):
    build, original = PARTS[name]
    torch.manual_seed(0)
    part, tokens = build().double(), torch.randn(3, 4, 12, dtype=torch.float64)
    torch.testing.assert_close(part(tokens)[1:2], part(tokens[1:2]))
    assert (original(part, tokens)[1:2] - original(part, tokens[1:2])).abs().max() > 1e-3


def test_the_volume_decoder_is_the_sequence_of_its_layers_without_the_finest_map():
    torch.manual_seed(0)
    decoder, features = ConvVolumeDecoder(32, (8, 4, 8)).double(), torch.randn(2, 32, 2, 3, 4, dtype=torch.float64)
    largest = []
    decoder.conv[-2].register_forward_pre_hook(lambda module, inputs: largest.append(inputs[0].shape[1]))
    torch.testing.assert_close(decoder(features), decoder.conv(features))
    assert largest == [1, 8]  # channels that are up-sampled last: here, and by the plain sequence
