"""MIM: masked volume modelling, guided by the report."""

from einops import repeat
from torch import Tensor

from mg3d.distributed import global_mean
from mg3d.losses.base import Loss


class MIMLoss(Loss):
    """Mean squared error over masked voxels (paper: context-guided volume reconstruction)."""

    gathers = ("patch_mask",)

    def forward(self, mim_prediction: Tensor, mim_target: Tensor, patch_mask: Tensor) -> Tensor:
        """Prediction and target [B, 1, D, H, W]; patch_mask bool [B, D/c, H/c, W/c], True = masked."""
        depth, height, width = (side // count for side, count in zip(mim_target.shape[2:], patch_mask.shape[1:], strict=True))
        masked = repeat(patch_mask, "b z y x -> b 1 (z d) (y h) (x w)", d=depth, h=height, w=width)
        squares = (mim_prediction.to(mim_target.dtype) - mim_target).square()
        return global_mean((squares * masked).sum() / (depth * height * width), patch_mask)
