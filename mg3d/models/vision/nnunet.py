"""A residual encoder in the style of nnU-Net, from MONAI's blocks."""

from collections.abc import Iterator

from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn

from mg3d.models.vision.convolutional import ConvolutionalEncoder

_LEAK = 0.01
_HALVINGS = 5


class NNUNetEncoder(ConvolutionalEncoder):
    """One residual block at full resolution, then five that halve every axis and double the channels; instance norm.

    The original links weights of an nnU-Net but publishes neither source nor tensor names of its encoder. This is an nnU-Net
    style encoder: the encoder half of MONAI's `DynUNet(res_block=True)`, with its names, and as many channels and tokens as
    Swin-B (768 channels at stride 32, 48 tokens for 128 x 96 x 128 voxels). The linked weights cannot be expected to fit.

    Maps: strides 2 to 32 with 48 to 768 channels. The block at full resolution has half the channels of the first map and is not
    part of the pyramid.

    Args:
        in_channels: C, channels of a volume [B, C, D, H, W].
        embed_dim: channels of the first map, doubled by each of the others; even.
        mask_token, gradient_checkpointing: see `ConvolutionalEncoder`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        embed_dim: int = 48,
        mask_token: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        if embed_dim % 2:
            raise ValueError(f"embed_dim={embed_dim} must be even: the first block has half as many channels")
        widths = [embed_dim * 2**level for level in range(_HALVINGS)]
        super().__init__(
            in_channels=in_channels,
            pyramid_channels=widths,
            pyramid_strides=[2 ** (level + 1) for level in range(_HALVINGS)],
            mask_token=mask_token,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.input_block = _block(in_channels, embed_dim // 2, stride=1)
        inputs = (embed_dim // 2, *widths)
        self.downsamples = nn.ModuleList(_block(inputs[level], widths[level], stride=2) for level in range(_HALVINGS - 1))
        self.bottleneck = _block(widths[-2], widths[-1], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=_LEAK)

    def _maps(self, volume: Tensor) -> Iterator[Tensor]:
        features = self._compute(self.input_block, volume)
        for block in (*self.downsamples, self.bottleneck):
            features = self._compute(block, features)
            yield features


def _block(in_channels: int, out_channels: int, *, stride: int) -> UnetResBlock:
    return UnetResBlock(
        3,
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        norm_name=("instance", {"affine": True}),
        act_name=("leakyrelu", {"inplace": True, "negative_slope": _LEAK}),
    )
