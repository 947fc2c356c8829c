"""SwinUNETR's decoder over the pyramid of any image encoder."""

from collections.abc import Sequence

from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.models.vision.registry import VisionEncoder

Strides = tuple[int, int, int]


class PyramidSegmenter(nn.Module):
    """U-Net decoder with residual blocks over an encoder's feature pyramid.

    With Swin-B it equals MONAI's `SwinUNETR(feature_size=48)` except for parameter names. As there, the second-to-last map is its
    own skip connection, and finer maps pass through a block; if the first map is coarser than the voxels, the volume itself
    passes through a block for the last step.

    Args:
        encoder: of volumes [B, 1, D, H, W].
        outputs: number of classes, background included.

    Raises:
        ValueError: the encoder has fewer than two maps.
    """

    def __init__(self, encoder: VisionEncoder, outputs: int) -> None:
        super().__init__()
        channels, strides = tuple(encoder.pyramid_channels), [tuple(stride) for stride in encoder.pyramid_strides]
        if len(channels) < 2:
            raise ValueError(f"segmentation needs an encoder with two or more maps, not {len(channels)}")
        self.encoder = encoder
        self.skips = nn.ModuleList(_block(width, width) for width in channels[:-2])
        self.bottom = _block(channels[-1], channels[-1])
        self.ups = nn.ModuleList(
            _up(channels[level + 1], channels[level], _ratio(strides[level + 1], strides[level]))
            for level in reversed(range(len(channels) - 1))
        )
        coarse = max(strides[0]) > 1
        self.finest = _block(1, channels[0]) if coarse else None
        self.last = _up(channels[0], channels[0], strides[0]) if coarse else None
        self.out = UnetOutBlock(3, channels[0], outputs)

    def forward(self, volume: Tensor) -> Tensor:
        """Logits [B, outputs, D, H, W]; sides that the stride does not divide are padded at the end and cropped again."""
        shape = volume.shape[2:]
        missing = [-side % step for side, step in zip(shape, self.encoder.pyramid_strides[-1], strict=True)]
        if any(missing):
            volume = F.pad(volume, [pad for side in reversed(missing) for pad in (0, side)], mode="replicate")
        maps = self.encoder(volume)
        skips = [*(block(features) for block, features in zip(self.skips, maps[:-2], strict=True)), maps[-2]]
        features = self.bottom(maps[-1])
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            features = up(features, skip)
        if self.last is not None:
            features = self.last(features, self.finest(volume))
        depth, height, width = shape
        return self.out(features)[:, :, :depth, :height, :width]


def _ratio(coarse: Strides, fine: Strides) -> Strides:
    if any(above % below for above, below in zip(coarse, fine, strict=True)):
        raise ValueError(f"maps of strides {fine} and {coarse}: the second must be multiples of the first")
    return tuple(above // below for above, below in zip(coarse, fine, strict=True))


def _block(inputs: int, outputs: int) -> UnetrBasicBlock:
    return UnetrBasicBlock(3, inputs, outputs, kernel_size=3, stride=1, norm_name="instance", res_block=True)


def _up(inputs: int, outputs: int, ratio: Sequence[int]) -> UnetrUpBlock:
    return UnetrUpBlock(3, inputs, outputs, kernel_size=3, upsample_kernel_size=ratio, norm_name="instance", res_block=True)
