"""One small encoder of each type (five feature maps, stride 32), and a volume with a different size on every axis."""

import torch

from mg3d.models.vision.registry import build_vision_encoder

SHAPE = (32, 64, 96)
GRID = (4, 8, 12)  # patches of 8 voxels
SMALL = {
    "swin": {"embed_dim": 4, "window_size": 3, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)},
    "swin projected": {"embed_dim": 4, "window_size": 3, "depths": (1,) * 4, "num_heads": (1, 1, 2, 2), "projection_width": 10},
    "vit": {"embed_dim": 32, "patch_size": 8, "depths": (2,), "num_heads": (2,), "pyramid": True},
    "unet": {"embed_dim": 2},
    "unet instance": {"embed_dim": 2, "norm_statistics": "instance"},
    "nnunet": {"embed_dim": 4},
}


def small_encoder(name, *, seed=0, **changes):
    torch.manual_seed(seed)
    return build_vision_encoder(name.split()[0], **({"mask_token": True} | SMALL[name] | changes))


def volumes_and_mask(size=2, *, seed=0):
    """Volumes [size, 1, *SHAPE] in [0, 1] and a mask [size, *GRID] of about half the patches."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 1, *SHAPE, generator=generator), torch.rand(size, *GRID, generator=generator) < 0.5
