"""Costs counted from shapes against formulas."""

import math

import pytest
import torch
from saved_tensors import saved_tensors, storage_bytes
from small_model import SHAPE, build

from mg3d.models.flops import ReportShape, attention_backward_traffic, count_step, needed_flops
from mg3d.models.vision.swin import SwinEncoder
from mg3d.models.vision.vit import DECODER_DEPTH, ViTEncoder

WIDTH, TEXT_WIDTH, VOCABULARY = 24, 16, 40
TOKENS = 12
REPORT = ReportShape(tokens=TOKENS, sentences=3, views=2, view_tokens=5, masked_fraction=0.25)


def bert_flops(tokens):
    """One layer: four maps, two of the feed-forward part with four times the width, both products of attention; a projection."""
    layer = 2 * tokens * TEXT_WIDTH**2 * (4 + 2 * 4) + 2 * 2 * tokens**2 * TEXT_WIDTH
    return layer + 2 * tokens * TEXT_WIDTH * WIDTH


@pytest.mark.parametrize("frozen", [False, True])
def test_flops_of_every_part_follow_its_formula(frozen):
    model = build(frozen=frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = {part.name: part for part in count_step(model, SHAPE, REPORT)}
    cells = math.prod(model.grid)
    assert parts["volume decoder"].forward_flops == 2 * cells * WIDTH * math.prod(model.vision.stride)
    assert parts["word head"].forward_flops == 2 * TOKENS * WIDTH**2 + 2 * 3 * WIDTH * VOCABULARY
    assert parts["report encoder"].forward_flops == 2 * bert_flops(TOKENS)
    assert parts["report encoder, views"].forward_flops == 2 * bert_flops(5)
    assert parts["volume encoder"].forward_flops == parts["volume encoder, masked"].forward_flops > 0
    assert parts["report encoder"].is_trained != frozen
    assert ("report encoder, target" in parts) != frozen  # a frozen encoder's features are there already
    assert parts["report encoder"].needed_flops == parts["report encoder"].forward_flops * (1 if frozen else 3)
    assert needed_flops(list(parts.values())) == sum(part.needed_flops for part in parts.values())
    cached = {part.name: part for part in count_step(model, SHAPE, REPORT._replace(is_cached=True))}
    assert cached["report encoder"].forward_flops == bert_flops(TOKENS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_inactive_objectives_cost_nothing():
    parts = count_step(build(objectives=("mim",)), SHAPE, REPORT)
    assert {part.name for part in parts} == {"volume encoder, masked", "report encoder", "volume fusion", "volume decoder"}


def test_a_vision_transformer_computes_visible_patches_and_its_decoder_in_the_masked_pass():
    width, depth, side = 24, 3, 4
    vision = ViTEncoder(
        embed_dim=width, patch_size=side, depths=(depth,), num_heads=(2,), registers=0, mask_token=True, mask_ratio=0.5
    )
    parts = {part.name: part for part in count_step(build(vision=vision), SHAPE, REPORT)}
    cells = math.prod(SHAPE) // side**3

    def blocks(tokens, channels, count):
        return count * (2 * 12 * tokens * channels**2 + 2 * 2 * tokens**2 * channels)

    decoder = 2 * 2 * cells * width * width // 2 + blocks(cells, width // 2, DECODER_DEPTH)
    left_out = 2 * (cells - cells // 2) * side**3 * width + blocks(cells, width, depth) - blocks(cells // 2, width, depth)
    saved = parts["volume encoder"].forward_flops - parts["volume encoder, masked"].forward_flops
    assert saved == left_out - decoder > 0


def test_saved_bytes_are_those_that_autograd_saves():
    model = build(objectives=("cml",))
    with saved_tensors() as saved:
        result = model.encode_volume(torch.rand(1, 1, *SHAPE, dtype=torch.float64))
    assert result.requires_grad
    encoder = count_step(model, SHAPE, REPORT)[0]
    assert encoder.saved_bytes == pytest.approx(storage_bytes(saved), rel=0.02)


def test_backward_operations_are_counted_with_what_they_recompute():
    encoder, _, report, *_ = count_step(build(), SHAPE, REPORT)
    plain = sum(operation.flops for operation in report.forward)
    backward = sum(operation.flops for operation in report.backward)
    assert backward == pytest.approx(2 * plain, rel=0.01)  # nothing is recomputed
    products = {operation.name: operation.flops for operation in encoder.backward if operation.flops}
    assert "window_attention_backward" in products
    assert sum(operation.flops for operation in encoder.backward) > 2 * sum(operation.flops for operation in encoder.forward)


def test_traffic_is_the_size_of_arguments_and_results():
    decoder = {part.name: part for part in count_step(build(), SHAPE, REPORT)}["word head"]
    product = next(operation for operation in decoder.forward if operation.name == "addmm")
    assert product.bytes == 8 * (TOKENS * WIDTH + WIDTH**2 + WIDTH + TOKENS * WIDTH)  # float64: input, weight, bias, result


def test_the_traffic_of_the_attention_backward_is_the_one_counted_by_hand():
    """16 windows of 4 x 4 x 4 tokens in two volumes, without padding or a shift; bfloat16, sums of gradients in float32."""
    encoder = SwinEncoder(embed_dim=8, window_size=4, patch_size=2, depths=(1,), num_heads=(2,))
    windows, heads, size, width = 16, 2, 64, 8
    token_map, maps, weight = 2 * windows * size * width, 2 * windows * heads * size**2, 2 * 3 * width**2
    by_hand = {
        # gradient of the output, queries, keys, values, output; three gradients; bias; log-sum-exps; two seeds; map gradients
        "_efficient_attention_backward": 8 * token_map + 2 * heads * size**2 + 4 * windows * heads * size + 16 + maps,
        # map gradients to that of the bias; projections to that of their bias
        "sum": maps + 4 * heads * size**2 + 3 * token_map + 2 * 3 * width,
        # gradients of the weight and of the normalised tokens
        "mm": 2 * (4 * token_map + weight),
        # features and gradient of the output
        "index_select": 2 * (2 * token_map + 8 * windows * size),
        # gradient of the features
        "index_put_": 2 * token_map + 8 * windows * size,
    }
    found = attention_backward_traffic(encoder, (16, 16, 16), 2)
    assert {name: found[name] for name in by_hand} == by_hand
    assert "index_fill_" not in found


def test_the_attention_backward_of_swin_b_at_the_papers_size_moves_less_than_6_gb_per_volume():
    """docs/performance.md lists it by operator."""
    assert 5e9 < sum(attention_backward_traffic(SwinEncoder(), (128, 96, 128), 8).values()) / 8 < 6e9
