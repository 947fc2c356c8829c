"""MONAI's own Swin code on the parameters of our encoder."""

import torch
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from mg3d.models.vision.masking import apply_mask_token
from mg3d.models.vision.swin import SwinEncoder


class MonaiSwin(nn.Module):
    """Compute the outputs of an encoder with MONAI's stages, blocks and window attention.

    fused: use MONAI's fused attention, which it supports without gradients only.
    """

    def __init__(self, encoder: SwinEncoder, *, fused: bool = False) -> None:
        super().__init__()
        self.swin = encoder
        for module in encoder.modules():
            if isinstance(module, WindowAttention):
                module.use_flash_attention = fused

    def forward(self, volume: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Feature pyramid, as `SwinEncoder.forward`."""
        swin = self.swin
        maps = [apply_mask_token(swin.patch_embed(volume), mask, swin.mask_token)]
        for stage in (*swin.layers1, *swin.layers2, *swin.layers3, *swin.layers4):
            maps.append(stage(maps[-1].contiguous()))
        return [swin.proj_out(features, True) for features in maps]

    def encode(self, volume: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last map, as `SwinEncoder.encode`."""
        last = self(volume, mask)[-1]
        if self.swin.proj_head is None:
            return last
        return self.swin.proj_head(last.movedim(1, -1)).movedim(-1, 1)


def max_relative_difference(output: Tensor, reference: Tensor) -> float:
    """Largest absolute difference in standard deviations of the reference."""
    difference = (output.double() - reference.double()).abs().max()
    return float(difference / torch.clamp(reference.double().std(), min=torch.finfo(torch.float64).tiny))
