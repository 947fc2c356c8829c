"""From stored voxels to the numbers a model sees."""

import numpy as np


def to_unit_range(voxels: np.ndarray, *, unit: str, window_hu: tuple[float, float]) -> np.ndarray:
    """float32 [1, D, H, W] in [0, 1] of stored voxels [D, H, W].

    `hu`: the window's lower and upper end become 0 and 1, beyond is cut. `grey8`: 255 becomes 1; its window is not documented.
    """
    if unit == "grey8":
        return (voxels.astype(np.float32) / 255.0)[None]
    if unit != "hu":
        raise ValueError(f"voxels in unit {unit!r} are not known; the preparation writes 'hu' or 'grey8'")
    low, high = window_hu
    scaled = voxels.astype(np.float32)
    scaled -= low
    scaled /= high - low
    return np.clip(scaled, 0.0, 1.0, out=scaled)[None]
