"""The plain vision transformer against a reference of loops, and what its masked pass leaves out."""

import math

import pytest
import torch
from small_model import OBJECTIVES, build, random_batch
from torch.nn import functional as F

from mg3d.config import resolve
from mg3d.models.build import build_vision
from mg3d.models.vision.masking import upsample_mask
from mg3d.models.vision.vit import ROTARY_BASE, ViTEncoder, rotary_angles, rotate

SIZES = {"embed_dim": 28, "patch_size": (2, 4, 3), "depths": (2,), "num_heads": (2,)}
SHAPE = (4, 12, 9)
GRID = (2, 3, 3)


def small_vit(*, shift=0.3, **changes):
    """In float64; every parameter is moved, because zeros and ones hide mistakes."""
    torch.manual_seed(0)
    encoder = ViTEncoder(**(SIZES | changes)).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += shift * torch.randn_like(parameter)
    return encoder


def slow_attention(attention, tokens, positions):
    """One head, one query and one channel pair at a time; positions: (z, y, x), or None for a register."""
    width = tokens.shape[-1] // attention.heads
    parts = attention.qkv(tokens).unflatten(-1, (3, attention.heads, width))
    rows = torch.zeros_like(tokens)
    for head in range(attention.heads):
        q, k = (
            torch.stack([turned(norm(parts[n, part, head]), position) for n, position in enumerate(positions)])
            for part, norm in ((0, attention.q_norm), (1, attention.k_norm))
        )
        for n in range(len(tokens)):
            weights = torch.stack([q[n] @ other for other in k]).div(math.sqrt(width)).softmax(0)
            rows[n, head * width : (head + 1) * width] = weights @ parts[:, 2, head]
    return attention.proj(rows)


def turned(vector, position):
    count, result = len(vector) // 6, vector.clone()
    for axis, coordinate in enumerate(position or ()):
        for index in range(count):
            angle = coordinate * ROTARY_BASE ** (-index / count)
            first, second = axis * count + index, (3 + axis) * count + index
            result[first] = vector[first] * math.cos(angle) - vector[second] * math.sin(angle)
            result[second] = vector[first] * math.sin(angle) + vector[second] * math.cos(angle)
    return result


def slow_encode(encoder, volume, visible):
    """Tokens of one volume [1, D, H, W] with only the visible patches (z, y, x)."""
    size = encoder.patch_size
    corners = [[side * step for side, step in zip(patch, size)] for patch in visible]
    patches = [volume[:, z : z + size[0], y : y + size[1], x : x + size[2]] for z, y, x in corners]
    tokens = torch.stack([(encoder.patch_embed.weight * patch).sum((1, 2, 3, 4)) + encoder.patch_embed.bias for patch in patches])
    tokens, positions = torch.cat([encoder.register_tokens, tokens]), [None] * len(encoder.register_tokens) + list(visible)
    for block in encoder.blocks:
        tokens = tokens + block.scale1 * slow_attention(block.attention, block.norm1(tokens), positions)
        expanded = F.gelu(block.mlp[0](block.norm2(tokens)))
        tokens = tokens + block.scale2 * block.mlp[2](expanded)
    return encoder.final_norm(tokens[len(encoder.register_tokens) :])


PATCHES = [(z, y, x) for z in range(GRID[0]) for y in range(GRID[1]) for x in range(GRID[2])]


@torch.no_grad()
def test_tokens_are_those_of_the_loops():
    encoder, volumes = small_vit(), torch.rand(2, 1, *SHAPE, dtype=torch.float64)
    features = encoder.encode(volumes)
    for volume, fast in zip(volumes, features, strict=True):
        torch.testing.assert_close(fast.flatten(1).T, slow_encode(encoder, volume, PATCHES))


@torch.no_grad()
def test_visible_tokens_of_a_masked_pass_are_those_without_the_masked_patches():
    encoder, volumes = small_vit(mask_token=True), torch.rand(2, 1, *SHAPE, dtype=torch.float64)
    mask = torch.rand(2, *GRID, generator=torch.Generator().manual_seed(2)) < 0.5
    assert mask[0].sum() != mask[1].sum()
    features = encoder.encode(volumes, mask)
    for volume, masked, fast in zip(volumes, mask, features, strict=True):
        visible = [patch for patch in PATCHES if not masked[patch]]
        torch.testing.assert_close(fast[:, ~masked].T, slow_encode(encoder, volume, visible))
        assert fast[:, masked].std(1).min() > 1e-3  # the decoder's, different at each position


@torch.no_grad()
def test_masks_of_a_known_ratio_give_the_same_without_reading_their_values():
    volumes, mask = torch.rand(3, 1, *SHAPE, dtype=torch.float64), torch.zeros(3, 1, 3, 3, dtype=torch.bool)
    for row in range(3):
        mask[row].view(-1)[torch.randperm(9)[:4]] = True
    general, known = small_vit(mask_token=True), small_vit(mask_token=True, mask_ratio=4 / 9)
    torch.testing.assert_close(known.encode(volumes, mask), general.encode(volumes, mask))
    mask[1].view(-1)[:] = False
    with pytest.raises(RuntimeError, match=r"must leave 10 of 18 tokens visible in every volume, as mask_ratio=0.444"):
        known.encode(volumes, mask)


def test_rotated_products_depend_on_the_distance_of_positions():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 14, dtype=torch.float64)
    angles = rotary_angles((5, 6, 7), 2, q)[0].unflatten(0, (5, 6, 7))

    def product(first, second):
        turned = (rotate(side, angles[at].cos(), angles[at].sin()) for side, at in ((q, first), (k, second)))
        return float((next(turned) * next(turned)).sum())

    assert product((1, 2, 3), (0, 4, 1)) == pytest.approx(product((4, 1, 6), (3, 3, 4)), abs=1e-12)
    assert product((1, 2, 3), (0, 4, 1)) != pytest.approx(product((1, 2, 3), (0, 4, 2)), abs=1e-3)


def test_a_volume_is_padded_with_zeros_to_whole_patches():
    encoder, volume = small_vit(), torch.rand(1, 1, 3, 11, 8, dtype=torch.float64)
    padded = F.pad(volume, (0, 1, 0, 1, 0, 1))
    torch.testing.assert_close(encoder.encode(volume), encoder.encode(padded), rtol=0, atol=0)


@pytest.mark.parametrize(("preset", "millions"), [("vit_b", 88.2), ("vit_l", 306.5)])
def test_presets_have_the_size_of_vision_transformers(preset, millions):
    encoder = build_vision(resolve([preset], {"weight_mim": 0.0})).to("meta")
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert encoder.encode(torch.empty(1, 1, 128, 96, 160, device="meta")).shape[2:] == (8, 6, 10)


def test_all_objectives_decrease_and_reach_every_parameter():
    vision = ViTEncoder(embed_dim=24, patch_size=4, depths=(2,), num_heads=(2,), mask_token=True)
    model, batch = build(vision=vision), random_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for _ in range(12):
        losses = model.losses(model(batch))
        assert losses.keys() == set(OBJECTIVES)
        totals.append(sum(losses.values()))
        optimizer.zero_grad()
        totals[-1].backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
        optimizer.step()
    assert totals[-1] < 0.9 * totals[0]


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="one stage"):
        ViTEncoder(depths=(2, 2), num_heads=(2, 2))
    with pytest.raises(ValueError, match="num_heads=5 must divide"):
        ViTEncoder(embed_dim=32, num_heads=(5,))
    with pytest.raises(ValueError, match="pyramid=True"):
        small_vit()(torch.rand(1, 1, *SHAPE).double())


def test_masks_of_several_tokens_per_patch_hide_all_of_them():
    encoder, volume = small_vit(mask_token=True), torch.rand(1, 1, *SHAPE, dtype=torch.float64)
    mask = torch.zeros(1, 2, 1, 3, dtype=torch.bool)
    mask[0, 1, 0, 2] = True
    voxel_mask = upsample_mask(mask, SHAPE)[:, None]
    torch.testing.assert_close(encoder.encode(volume, mask), encoder.encode(torch.where(voxel_mask, 9.0, volume), mask))
