"""MONAI's Swin as it is, over the parameters of our encoder."""

import torch
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from mg3d.models.vision.masking import hide
from mg3d.models.vision.swin import SwinEncoder


class MonaiSwin(nn.Module):
    """Takes an encoder of ours and computes the same with MONAI's code for stages, blocks and windows.

    fused: with the fused attention that MONAI uses where no gradient is asked for.
    """

    def __init__(self, encoder: SwinEncoder, *, fused: bool = False) -> None:
        super().__init__()
        self.swin = encoder
        for module in encoder.modules():
            if isinstance(module, WindowAttention):
                module.use_flash_attention = fused

    def forward(self, volume: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """The pyramid, as `SwinEncoder.forward`."""
        swin = self.swin
        maps = [hide(swin.patch_embed(volume), hidden, swin.mask_token)]
        for stage in (*swin.layers1, *swin.layers2, *swin.layers3, *swin.layers4):
            maps.append(stage(maps[-1].contiguous()))
        return [swin.proj_out(features, True) for features in maps]

    def encode(self, volume: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The last map, as `SwinEncoder.encode`."""
        last = self(volume, hidden)[-1]
        if self.swin.proj_head is None:
            return last
        return self.swin.proj_head(last.movedim(1, -1)).movedim(-1, 1)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """In units of the larger one's deviation."""
    gap = (ours.double() - theirs.double()).abs().max()
    return float(gap / torch.clamp(theirs.double().std(), min=torch.finfo(torch.float64).tiny))
