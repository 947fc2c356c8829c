"""Plain vision transformer for volumes: rotary positions, normalised queries and keys, masked patches left out."""

import math
from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mg3d.models.vision.base import VisionEncoder
from mg3d.models.vision.masking import upsample_mask

ROTARY_BASE = 100.0
"""Ratio of the longest to the shortest wavelength, as grids have far fewer positions along an axis than texts have tokens."""
LAYER_SCALE = 0.1
"""Initial factor of each residual branch."""
DECODER_DEPTH = 2


class ViTEncoder(VisionEncoder):
    """Vision transformer over all patches of a volume of any size; ViT-B with the default arguments.

    A volume is padded with zeros to whole patches. With a mask, only visible patches pass through the blocks; a light decoder
    computes the masked ones, as in masked autoencoders (He et al., 2022). Maps of several resolutions for fine-tuning are
    computed from the last one, as in ViTDet (Li et al., 2022).

    Args:
        in_channels: C, channels of a volume [B, C, D, H, W].
        embed_dim: width of a token; even, divisible by num_heads.
        patch_size: voxels of a patch, one number or (z, y, x).
        depths: number of blocks, as a tuple of one stage.
        num_heads: attention heads, as a tuple of one stage.
        registers: learned tokens without a position (Darcet et al., 2024).
        mask_token: build the decoder of masked patches.
        mask_ratio: fraction of patches that every mask covers exactly. None: any mask, for which the host waits for a GPU.
        pyramid: build the layers of the maps of `forward`; without, only `encode` works.
        gradient_checkpointing: recompute each block in the backward pass.

    Raises:
        ValueError: more than one stage, or heads that do not divide the width or are narrower than six channels.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        embed_dim: int = 768,
        patch_size: int | Sequence[int] = 16,
        depths: Sequence[int] = (12,),
        num_heads: Sequence[int] = (12,),
        registers: int = 4,
        mask_token: bool = False,
        mask_ratio: float | None = None,
        pyramid: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != 1 or len(num_heads) != 1:
            raise ValueError(f"depths={tuple(depths)} and num_heads={tuple(num_heads)}: a vision transformer has one stage")
        ((depth,), (heads,)) = depths, num_heads
        if embed_dim % (2 * heads) or embed_dim // heads < 6:
            raise ValueError(f"num_heads={heads} must divide embed_dim={embed_dim} into an even number of at least 6 channels")
        self.patch_size = (patch_size,) * 3 if isinstance(patch_size, int) else tuple(patch_size)
        self.mask_ratio, self.gradient_checkpointing = mask_ratio, gradient_checkpointing
        self.patch_embed = nn.Conv3d(in_channels, embed_dim, self.patch_size, self.patch_size)
        self.register_tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(registers, embed_dim), std=0.02))
        self.blocks = nn.ModuleList(Block(embed_dim, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(embed_dim)
        self.decoder = MaskDecoder(embed_dim, max(1, heads // 2)) if mask_token else None
        halvings = min(4, *(int(math.log2(side & -side)) for side in self.patch_size))
        levels = range(halvings, -1, -1)
        self.pyramid_channels = tuple(embed_dim // 2**level for level in levels)
        self.pyramid_strides = tuple(tuple(side // 2**level for side in self.patch_size) for level in levels)
        self.pyramid = FeaturePyramid(embed_dim, halvings) if pyramid else None

    @property
    def mask_token(self) -> nn.Parameter | None:
        """[embed_dim / 2]: what the decoder reads for a masked patch."""
        return None if self.decoder is None else self.decoder.mask_token

    def forward(self, volume: Tensor, patch_mask: Tensor | None = None) -> list[Tensor]:
        """Maps, see `VisionEncoder.forward`; the last one is that of `encode`."""
        if self.pyramid is None:
            raise ValueError("this encoder has no feature pyramid; build it with pyramid=True")
        return self.pyramid(self.encode(volume, patch_mask))

    def encode(self, volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """[B, embed_dim, d, h, w], normalised over channels; arguments as in `VisionEncoder.forward`."""
        patches, grid = self._patches(volume), self.grid(volume.shape[2:])
        angles = rotary_angles(grid, self.blocks[0].attention.frequencies, patches)
        if patch_mask is None:
            encoded = self._encode(patches, angles.expand(len(patches), -1, -1), None)
        else:
            encoded = self._encode_masked(patches, angles, upsample_mask(patch_mask, grid).flatten(1), patch_mask)
        depth, height, width = grid
        return rearrange(encoded, "b (d h w) c -> b c d h w", d=depth, h=height, w=width).contiguous()

    def _patches(self, volume: Tensor) -> Tensor:
        """Voxels of each patch [B, N, V]."""
        pad = [side for size, step in zip(volume.shape[:1:-1], self.patch_size[::-1]) for side in (0, -size % step)]
        depth, height, width = self.patch_size
        pattern = "b c (z d) (y h) (x w) -> b (z y x) (c d h w)"
        return rearrange(F.pad(volume, pad) if any(pad) else volume, pattern, d=depth, h=height, w=width)

    def _encode(self, patches: Tensor, angles: Tensor, real: Tensor | None) -> Tensor:
        """[B, n, C] of patches [B, n, V], angles [B, n, 3 K]; real bool [B, n]: False is padding, None if there is none."""
        # As a product: convolutions whose stride is their kernel are several times slower on a CPU.
        tokens = F.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias)
        registers = len(self.register_tokens)
        tokens = torch.cat([self.register_tokens.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], 1)
        angles = F.pad(angles, (0, 0, registers, 0))
        mask = None if real is None else F.pad(real, (registers, 0), value=True)[:, None, None]
        tokens = _through(self.blocks, tokens, angles, mask, recompute=self.gradient_checkpointing)
        return self.final_norm(tokens[:, registers:])

    def _encode_masked(self, patches: Tensor, angles: Tensor, masked: Tensor, patch_mask: Tensor) -> Tensor:
        """[B, N, C] of patches [B, N, V]: visible tokens from the blocks, masked ones, bool [B, N], from the decoder."""
        if self.decoder is None:
            raise ValueError("this encoder has no mask token; build it with mask_token=True")
        visible, real = self._visible(masked, patch_mask[0].numel())
        rows = visible[..., None]
        encoded = self._encode(patches.take_along_dim(rows, 1), angles[0][visible], real)
        everywhere = encoded.new_zeros((*masked.shape, encoded.shape[2])).scatter(1, rows.expand_as(encoded), encoded)
        angles = angles.expand(len(patches), -1, -1)
        decoded = self.decoder(everywhere, angles, masked, recompute=self.gradient_checkpointing)
        return torch.where(masked[..., None], decoded.to(encoded.dtype), everywhere)

    def _visible(self, masked: Tensor, patches: int) -> tuple[Tensor, Tensor | None]:
        """Positions int64 [B, V] of visible tokens, ascending, and which of them are real if volumes differ in their number."""
        counts, tokens = (~masked).sum(1), masked.shape[1]
        order = masked.to(torch.uint8).argsort(dim=1, stable=True)
        if self.mask_ratio is None:
            most = int(counts.max())
            return order[:, :most], torch.arange(most, device=masked.device) < counts[:, None]
        most = tokens - round(patches * self.mask_ratio) * (tokens // patches)
        refusal = f"patch_mask must leave {most} of {tokens} tokens visible in every volume, as mask_ratio={self.mask_ratio} says"
        torch._assert_async((counts == most).all(), refusal)  # on a GPU without waiting
        return order[:, :most], None


class MaskDecoder(nn.Module):
    """Light transformer of half the width that computes masked tokens from visible ones."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * (width // 2 // heads // 2 * 2)
        self.reduce = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(inner), std=0.02))
        self.blocks = nn.ModuleList(Block(inner, heads) for _ in range(DECODER_DEPTH))
        self.norm = nn.LayerNorm(inner)
        self.expand = nn.Linear(inner, width)

    def forward(self, tokens: Tensor, angles: Tensor, masked: Tensor, *, recompute: bool) -> Tensor:
        """[B, N, C] of tokens [B, N, C], of which those with masked bool [B, N] are not read."""
        features = self.reduce(tokens)
        features = torch.where(masked[..., None], self.mask_token.to(features.dtype), features)
        frequencies = self.blocks[0].attention.frequencies
        angles = angles.unflatten(-1, (3, -1))[..., :frequencies].flatten(-2)
        features = _through(self.blocks, features, angles, None, recompute=recompute)
        return self.expand(self.norm(features))


class Block(nn.Module):
    """Pre-norm transformer block with layer scale; the MLP has four times the width and GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = RotaryAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), LAYER_SCALE)) for _ in range(2))

    def forward(self, tokens: Tensor, waves: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """[B, n, C]; arguments as in `RotaryAttention.forward`."""
        tokens = tokens + self.scale1 * self.attention(self.norm1(tokens), waves, mask)
        return tokens + self.scale2 * self.mlp(self.norm2(tokens))


class RotaryAttention(nn.Module):
    """Self-attention with LayerNorm on queries and keys, which rotary embeddings turn by their positions along z, y and x."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.frequencies = width // heads // 6
        """K, per axis; each turns two channels, the other channels of a head carry no position."""

    def forward(self, tokens: Tensor, waves: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """[B, n, C] of tokens [B, n, C].

        waves: cosines and sines [B, 1, n, 3 K] of the angles; mask: bool [B, 1, 1, n] of the tokens that are read, None = all.
        """
        q, k, v = rearrange(self.qkv(tokens), "b n (part h c) -> part b h n c", part=3, h=self.heads)
        q, k = (rotate(norm(side), *waves).to(v.dtype) for norm, side in ((self.q_norm, q), (self.k_norm, k)))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(rearrange(read, "b h n c -> b n (h c)"))


def _through(
    blocks: Iterable[Block], tokens: Tensor, angles: Tensor, mask: Tensor | None, *, recompute: bool
) -> Tensor:
    waves = angles.cos()[:, None], angles.sin()[:, None]
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, waves, mask, use_reentrant=False)
        else:
            tokens = block(tokens, waves, mask)
    return tokens


def rotary_angles(grid: Sequence[int], frequencies: int, like: Tensor) -> Tensor:
    """Angles [1, N, 3 K] in radians of the tokens of a grid (z, y, x), z-major; K = `frequencies` per axis."""
    kind = torch.promote_types(like.dtype, torch.float32)
    speeds = ROTARY_BASE ** (-torch.arange(frequencies, device=like.device, dtype=kind) / frequencies)
    axes = torch.meshgrid(*(torch.arange(side, device=like.device, dtype=kind) for side in grid), indexing="ij")
    return torch.cat([axis.reshape(1, -1, 1) * speeds for axis in axes], -1)


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel i and channel i + F of vectors [B, h, n, c] by angle i; cos and sin [B, 1, n, F], 2 F <= c."""
    size = cos.shape[-1]
    first, second, rest = vectors.split([size, size, vectors.shape[-1] - 2 * size], -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)


class FeaturePyramid(nn.Module):
    """Finer maps from the last one, each by its own transposed convolutions that double the resolution and halve the channels."""

    def __init__(self, width: int, halvings: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(self._level(width, steps) for steps in range(halvings, 0, -1))

    @staticmethod
    def _level(width: int, steps: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for step in range(steps):
            layers += [nn.ConvTranspose3d(width // 2**step, width // 2 ** (step + 1), 2, 2), nn.GELU()]
        return nn.Sequential(*layers)

    def forward(self, last: Tensor) -> list[Tensor]:
        """Maps, finest first; the last one is `last` [B, width, d, h, w]."""
        return [*(level(last) for level in self.levels), last]
