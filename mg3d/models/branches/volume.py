"""MIM: masked volumes, reconstructed with the help of the report."""

import math
from collections.abc import Iterable, Sequence

from einops import rearrange
from torch import Tensor, nn

from mg3d.losses.mim import MIMLoss
from mg3d.models.branches.base import Branch
from mg3d.models.fusion import CrossAttentionFusion
from mg3d.models.mg3d import MG3D
from mg3d.models.tokens import SharedTokens
from mg3d.settings.schema import ModelSettings


class ConvVolumeDecoder(nn.Module):
    """Convolutions and up-sampling from the last feature map to voxels, as in the published code.

    Each step: convolution, instance norm without parameters, LeakyReLU(0.01), trilinear up-sampling. Channels are halved at every
    step but the last; a stride that is not a power of two is completed in the last step.
    """

    def __init__(self, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        steps = max(1, math.ceil(math.log2(max(stride))))
        reached, layers = [1] * len(stride), []
        channels = width
        for step in range(1, steps + 1):
            out_channels = width // 2 ** min(step, steps - 1)
            target = [min(2**step, side) for side in stride]
            factors = tuple(new / old for new, old in zip(target, reached))
            layers += [
                nn.Conv3d(channels, out_channels, 3, padding=1),
                nn.InstanceNorm3d(out_channels),
                nn.LeakyReLU(0.01),
                nn.Upsample(scale_factor=factors, mode="trilinear", align_corners=False),
            ]
            reached, channels = target, out_channels
        self.conv = nn.Sequential(*layers, nn.Conv3d(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """[B, width, d, h, w] -> [B, 1, d * stride, ...], unbounded."""
        *layers, upsample, to_intensity = self.conv
        for layer in layers:
            features = layer(features)
        # A linear map of channels commutes with interpolation; before it, the finest map has one channel.
        return upsample(to_intensity(features))


class LinearVolumeDecoder(nn.Module):
    """One linear layer from each token to its voxels; for small models."""

    def __init__(self, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.linear = nn.Linear(width, math.prod(stride))

    def forward(self, features: Tensor) -> Tensor:
        """[B, width, d, h, w] -> [B, 1, d * stride, ...], unbounded."""
        depth, height, width = self.stride
        voxels = self.linear(rearrange(features, "b c z y x -> b z y x c"))
        return rearrange(voxels, "b z y x (d h w) -> b 1 (z d) (y h) (x w)", d=depth, h=height, w=width)


class VolumeBranch(Branch):
    """Cross-attention from masked image tokens to sentences, and a decoder to voxels."""

    name = "volume"

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        super().__init__(model, settings, objectives)
        width = settings.hidden_size
        self.grid = model.grid
        self.fusion = CrossAttentionFusion(width, layers=settings.fusion_layers, heads=settings.fusion_heads)
        decoder = ConvVolumeDecoder if settings.mim_decoder == "conv" else LinearVolumeDecoder
        self.decoder = decoder(width, model.vision.stride)
        self.objective_losses["mim"] = MIMLoss()

    def fuse(self, tokens: SharedTokens) -> Tensor:
        """Masked image tokens [B, N, d] after reading the sentences."""
        return self.fusion(tokens.masked_image, tokens.sentences, tokens.batch.sentence_mask)

    def features(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """Reconstruction and target."""
        depth, height, width = self.grid
        features = rearrange(self.fuse(tokens), "b (d h w) c -> b c d h w", d=depth, h=height, w=width)
        prediction, voxels = self.decoder(features), tokens.model.voxels
        return {
            "mim_prediction": prediction if voxels is None else voxels.restore(prediction),
            "mim_target": tokens.batch.volume,
        }
