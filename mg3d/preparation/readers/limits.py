"""Size limits that every reader checks before it reads voxels."""

import math
from collections.abc import Sequence

from mg3d.preparation.quarantine import Refusal

MAX_AXIS = 4096
MAX_BYTES = 3 * 10**9
"""Of the voxels as stored in the file; 512 x 512 x 600 of 8 bytes are 1.26 GB."""


def check_shape(shape: Sequence[int], bytes_per_voxel: int) -> None:
    """Raise `Refusal` not_3d or too_large for a shape that is not a CT volume."""
    text = "x".join(map(str, shape))
    if len(shape) != 3 or min(shape) < 1:
        raise Refusal("not_3d", f"shape {text}")
    if max(shape) > MAX_AXIS or math.prod(map(int, shape)) * bytes_per_voxel > MAX_BYTES:
        raise Refusal(
            "too_large", f"{text} voxels of {bytes_per_voxel} bytes; at most {MAX_BYTES / 1e9:g} GB and {MAX_AXIS} along an axis"
        )


def check_range(low: float, high: float) -> None:
    """Raise `Refusal` constant_image if the smallest and the largest voxel are equal."""
    if low == high:
        raise Refusal("constant_image", f"every voxel is {low:g}")
