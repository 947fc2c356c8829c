"""3D Swin Transformer: MONAI's class with the patch merging of the released weights."""

import math
from collections.abc import Iterator, Sequence

import torch
from monai.networks.nets.swin_unetr import SwinTransformer, SwinTransformerBlock
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mg3d.models.vision.base import VisionEncoder
from mg3d.models.vision.masking import apply_mask_token
from mg3d.models.vision.recompute import per_token
from mg3d.models.vision.windows import Parameters, attend, clip_window, window_attention

_LEGACY_NEIGHBOURS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class LegacyPatchMerging(nn.Module):
    """Patch merging of early MONAI: halves every axis and doubles the channels.

    Of each 2 x 2 x 2 block (offsets along z, y, x) it uses 010 and 001 twice and 110 and 011 never. MONAI's current merging has
    the same parameter names and shapes but computes other features, so weights loaded into the wrong one fail silently.
    The signature is that which MONAI's Swin stages call.
    """

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise ValueError(f"legacy patch merging needs spatial_dims=3, not {spatial_dims}")
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, H, W, C] -> [B, D/2, H/2, W/2, 2C]; odd axes are padded with zeros at the end."""
        depth, height, width = features.shape[1:4]
        features = F.pad(features, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        neighbours = [features[:, z::2, y::2, x::2] for z, y, x in _LEGACY_NEIGHBOURS]
        return per_token((self.norm, self.reduction), torch.cat(neighbours, -1), widest=self.reduction.in_features)


MERGINGS: dict[str, type[LegacyPatchMerging] | str] = {"legacy": LegacyPatchMerging, "monai": "merging", "monai_v2": "mergingv2"}
"""`settings.schema.PatchMerging` -> argument `downsample` of MONAI's Swin."""


class TokenProjection(nn.Module):
    """Three linear layers that project the tokens of Swin-L to the joint width (1536 -> 768 -> 768 -> 768).

    The original normalises each token over batch and channels; here over channels only, which is equal for a batch of one and
    keeps the patients of a batch independent.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width, elementwise_affine=False), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width, elementwise_affine=False), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width, elementwise_affine=False))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., channels] -> [..., width]."""
        return self.layer3(self.layer2(self.layer1(tokens)))


class SwinEncoder(VisionEncoder, SwinTransformer):
    """Swin Transformer for volumes of any size; Swin-B with the default arguments, Swin-L with `embed_dim=96`.

    Args:
        in_channels: C, channels of a volume [B, C, D, H, W].
        embed_dim: channels of the patch embedding. Map i is [B, embed_dim * 2**i, D/(p 2**i), ...] with patch size p.
        patch_size: voxels of a patch, one number or (z, y, x).
        window_size: patches of an attention window, one number or (z, y, x).
        depths: attention blocks of each stage, one to four stages; every stage ends in a patch merging.
        num_heads: attention heads of each stage.
        patch_merging: a name of `MERGINGS`.
        mask_token: learn a vector for masked patches.
        projection_width: width of the three-layer `proj_head` of `encode`; 768 in the released Swin-L, None = no projection.
        gradient_checkpointing: store only the input of each block and recompute the block in the backward pass. Attention maps,
            queries, keys, values and hidden activations of the MLP are never stored, with or without it.

    Raises:
        ValueError: depths and num_heads differ in length or do not have one to four stages; a size is neither one integer nor
            three; an unknown patch_merging.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        embed_dim: int = 48,
        patch_size: int | Sequence[int] = 2,
        window_size: int | Sequence[int] = 7,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        patch_merging: str = "legacy",
        mask_token: bool = False,
        projection_width: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        if not 1 <= len(depths) <= 4 or len(depths) != len(num_heads):
            raise ValueError(f"depths={tuple(depths)} and num_heads={tuple(num_heads)}: each needs one entry for 1 to 4 stages")
        if patch_merging not in MERGINGS:
            raise ValueError(f"patch_merging={patch_merging!r} is unknown; choose one of {', '.join(MERGINGS)}")
        super().__init__(
            in_chans=in_channels,
            embed_dim=embed_dim,
            window_size=_triple(window_size),
            patch_size=_triple(patch_size),
            depths=depths,
            num_heads=num_heads,
            downsample=MERGINGS[patch_merging],
        )
        levels = range(len(depths) + 1)
        self.pyramid_channels = tuple(embed_dim * 2**level for level in levels)
        self.pyramid_strides = tuple(tuple(side * 2**level for side in self.patch_size) for level in levels)
        self.mask_token = nn.Parameter(trunc_normal_(torch.empty(embed_dim), std=0.02)) if mask_token else None
        self.proj_head = TokenProjection(self.pyramid_channels[-1], projection_width) if projection_width else None
        self._projection_width = projection_width
        self.gradient_checkpointing = gradient_checkpointing

    @property
    def channels(self) -> int:
        """Channels of the map of `encode`."""
        return self._projection_width or self.pyramid_channels[-1]

    def forward(self, volume: Tensor, patch_mask: Tensor | None = None) -> list[Tensor]:
        """Maps of the patch embedding and of every stage, normalised over channels; see `VisionEncoder.forward`."""
        return [_channels_first(_normalised(features)) for features in self._stages(volume, patch_mask)]

    def encode(self, volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """The last map [B, channels, d, h, w], through `proj_head` if there is one; arguments as in `forward`."""
        *_, last = self._stages(volume, patch_mask)
        last = _normalised(last)
        return _channels_first(last if self.proj_head is None else self.proj_head(last))

    def _stages(self, volume: Tensor, patch_mask: Tensor | None) -> Iterator[Tensor]:
        """Maps [B, d, h, w, channels], not normalised."""
        features = apply_mask_token(self.patch_embed(volume), patch_mask, self.mask_token).movedim(1, -1).contiguous()
        yield features
        for stage in (*self.layers1, *self.layers2, *self.layers3, *self.layers4):
            for block in stage.blocks:
                recompute = self.gradient_checkpointing and torch.is_grad_enabled()
                features = checkpoint(_through, block, features, use_reentrant=False) if recompute else _through(block, features)
            features = stage.downsample(features)
            yield features


def _through(block: SwinTransformerBlock, features: Tensor) -> Tensor:
    """One of MONAI's blocks, for features [B, d, h, w, C]."""
    features = features + _attended(block, features)
    return features + per_token((block.norm2, block.mlp), features, widest=block.mlp.linear1.out_features)


def _attended(block: SwinTransformerBlock, features: Tensor) -> Tensor:
    """Window attention of features [B, d, h, w, C], with the parameters of MONAI's block."""
    window, shift = clip_window(features.shape[1:4], block.window_size, block.shift_size)
    attention, kind, size = block.attn, features.device.type, math.prod(window)
    index = attention.relative_position_index[:size, :size].reshape(-1)
    bias = attention.relative_position_bias_table[index].T.reshape(-1, size, size).contiguous()
    weights = (attention.qkv.weight, attention.qkv.bias)
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        weights = tuple(weight.to(torch.get_autocast_dtype(kind)) for weight in weights)
    learned = Parameters(block.norm1.weight, block.norm1.bias, *weights, bias)
    attended = attend if torch.compiler.is_exporting() else window_attention  # exported programs run without mg3d
    return attention.proj(attended(features, list(learned), window=window, shift=shift, eps=block.norm1.eps))


def _normalised(features: Tensor) -> Tensor:
    return F.layer_norm(features, features.shape[-1:])


def _channels_first(features: Tensor) -> Tensor:
    return features.movedim(-1, 1).contiguous()


def _triple(side: int | Sequence[int]) -> tuple[int, ...]:
    sides = (side,) * 3 if isinstance(side, int) else tuple(side)
    if len(sides) != 3:
        raise ValueError(f"{sides}: expected one integer or three (z, y, x)")
    return sides
