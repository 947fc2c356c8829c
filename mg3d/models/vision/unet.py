"""Encoder of the 3D U-Net of Models Genesis, with the parameter names and shapes of the released U-Net weights."""

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.models.vision.convolutional import ConvolutionalEncoder

_POOL_SIDE = 4
"""Pooling size from the fourth to the fifth map (the original's AvgPool3d(4))."""


class StatisticsNorm(nn.BatchNorm3d):
    """Batch norm that uses the statistics of its input in training and evaluation, as the original.

    The running statistics exist for the names of released files; they are neither read nor updated (the original updates them,
    but does not read them either).

    Args:
        channels: channels of the map.
        statistics: "batch" over all volumes of the batch, so that features depend on the other volumes; "instance" over each
            volume, equal to "batch" for a batch of one.
    """

    def __init__(self, channels: int, statistics: Literal["batch", "instance"]) -> None:
        super().__init__(channels)
        self.statistics = statistics

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, d, h, w] -> the same shape."""
        if self.statistics == "instance":
            return F.instance_norm(features, weight=self.weight, bias=self.bias, eps=self.eps)
        return F.batch_norm(features, None, None, self.weight, self.bias, training=True, eps=self.eps)


class UNetUnit(nn.Module):
    """3 x 3 x 3 convolution, norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, statistics: Literal["batch", "instance"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.bn1 = StatisticsNorm(out_channels, statistics)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_channels, d, h, w] -> [B, out_channels, d, h, w]."""
        return F.relu(self.bn1(self.conv1(features)), inplace=True)


class UNetStage(nn.Module):
    """Two units; `channels` holds their inputs' and outputs' channels."""

    def __init__(self, channels: tuple[int, int, int], statistics: Literal["batch", "instance"]) -> None:
        super().__init__()
        first, middle, last = channels
        self.ops = nn.Sequential(UNetUnit(first, middle, statistics), UNetUnit(middle, last, statistics))

    def forward(self, features: Tensor) -> Tensor:
        """[B, first, d, h, w] -> [B, last, d, h, w]."""
        return self.ops(features)


class UNetEncoder(ConvolutionalEncoder):
    """Four stages with max-pooling between them and mean pooling after the last; the released one with the default arguments.

    Maps of 128 x 96 x 128 voxels: 96 channels at every voxel, 192 at every 2nd, 384 at every 4th, 768 at every 8th, and their
    means over 4 x 4 x 4 cells, 768 at every 32nd: 48 tokens, as Swin-B has. 15.8 M parameters. The published source lacks this
    class; the original contains it as byte-code only.

    Args:
        in_channels: C, channels of a volume [B, C, D, H, W].
        embed_dim: channels of the first convolution; the four stages have 2, 4, 8 and 16 times as many.
        norm_statistics: "batch" as the original, "instance" to keep the volumes of a batch independent.
        mask_token, gradient_checkpointing: see `ConvolutionalEncoder`. The first stages use nearly all of the memory.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        embed_dim: int = 48,
        norm_statistics: Literal["batch", "instance"] = "batch",
        mask_token: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        if norm_statistics not in ("batch", "instance"):
            raise ValueError(f"norm_statistics={norm_statistics!r} is unknown; choose 'batch' or 'instance'")
        widths = [embed_dim * 2**stage for stage in range(5)]
        super().__init__(
            in_channels=in_channels,
            pyramid_channels=(*widths[1:], widths[-1]),
            pyramid_strides=(1, 2, 4, 8, 8 * _POOL_SIDE),
            mask_token=mask_token,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.down_tr64 = UNetStage((in_channels, widths[0], widths[1]), norm_statistics)
        self.down_tr128 = UNetStage((widths[1], widths[1], widths[2]), norm_statistics)
        self.down_tr256 = UNetStage((widths[2], widths[2], widths[3]), norm_statistics)
        self.down_tr512 = UNetStage((widths[3], widths[3], widths[4]), norm_statistics)

    def grid(self, volume_shape: Sequence[int]) -> tuple[int, ...]:
        """Size (z, y, x) of the last map for a volume of this shape in voxels, rounded down."""
        return tuple(side // step for side, step in zip(volume_shape, self.stride))

    def _maps(self, volume: Tensor) -> Iterator[Tensor]:
        features = self._compute(self.down_tr64, volume)
        yield features
        for stage in (self.down_tr128, self.down_tr256, self.down_tr512):
            features = self._compute(stage, F.max_pool3d(features, 2))
            yield features
        yield F.avg_pool3d(features, _POOL_SIDE)
