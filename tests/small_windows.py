"""One of MONAI's Swin blocks with random parameters, and grids that its windows of 4 x 4 x 4 tokens pad, clip and divide."""

import torch
from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask, get_window_size

SHAPES = ((9, 5, 11), (4, 8, 6), (7, 7, 7), (3, 4, 5), (12, 3, 4))


def block_of(shift, *, width=12, heads=3):
    torch.manual_seed(0)
    block = SwinTransformerBlock(width, heads, (4, 4, 4), (shift,) * 3, qkv_bias=True).double()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    torch.nn.init.normal_(block.attn.qkv.bias)
    return block


def monais(block, features):
    shape = features.shape[1:4]
    window, shift = get_window_size(shape, (4, 4, 4), (2, 2, 2))
    padded = [-(-side // length) * length for side, length in zip(shape, window, strict=True)]
    return block.forward_part1(features, compute_mask(padded, window, shift, features.device).double())
