"""Costs counted from shapes against formulas."""

import math

import pytest
import torch
from small_model import SHAPE, build

from mg3d.models.flops import ReportShape, count_step, needed_flops

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
    assert parts["volume encoder"].passes == 2
    assert parts["report encoder"].is_trained != frozen
    assert ("report encoder, target" in parts) != frozen  # a frozen encoder's features are there already
    assert parts["report encoder"].needed_flops == parts["report encoder"].forward_flops * (1 if frozen else 3)
    assert needed_flops(list(parts.values())) == sum(part.needed_flops for part in parts.values())
    cached = {part.name: part for part in count_step(model, SHAPE, REPORT._replace(is_cached=True))}
    assert cached["report encoder"].forward_flops == bert_flops(TOKENS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_two_passes_of_an_encoder_cost_twice_as_much_and_inactive_objectives_nothing():
    both, one = (count_step(build(objectives=names), SHAPE, REPORT) for names in (("mim", "cml"), ("mim",)))
    assert both[0].forward_flops == 2 * one[0].forward_flops > 0
    assert both[0].saved_bytes == 2 * one[0].saved_bytes > 0
    assert {part.name for part in one} == {"volume encoder", "report encoder", "volume fusion", "volume decoder"}


def test_saved_bytes_are_those_that_autograd_saves():
    model = build(objectives=("mim",))
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model.encode_volume(torch.rand(1, 1, *SHAPE, dtype=torch.float64))
    assert result.requires_grad
    encoder = count_step(model, SHAPE, REPORT)[0]
    assert encoder.saved_bytes == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.02)


def test_backward_operations_are_counted_with_what_they_recompute():
    encoder, report = (count_step(build(), SHAPE, REPORT)[index] for index in (0, 1))
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
