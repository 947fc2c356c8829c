"""Air inside the body tells chests from heads, also with a couch or headrest around them."""

import numpy as np
import pytest

from mg3d.preparation.chest import MIN_CHEST_AIR, air_inside, coarse


def test_air_inside_is_enclosed_by_tissue_on_three_sides():
    plane = np.full((1, 7, 9), -1000.0, np.float32)
    plane[0, 1, 1:8] = plane[0, 5, 1:8] = 40  # above and below
    plane[0, 1:6, 1] = plane[0, 1:6, 7] = 40  # a closed ring of 7 x 5
    assert air_inside(plane) == 15 / 35
    plane[0, 2:5, 7] = -1000  # open to the right: the inside still has three sides, and so has the gap
    assert air_inside(plane) == 18 / (18 + 17)
    assert air_inside(np.full((2, 3, 4), -1000.0, np.float32)) == 0


def scan(holes, *, support):
    """HU [z, y, x] of an elliptic body 50 voxels wide with air in `holes` (center y, x and radii y, x) and a couch below it."""
    _, y, x = np.mgrid[:24, :64, :72].astype(float)
    hu = np.full(y.shape, -1000.0, np.float32)
    hu[((y - 28) / 19) ** 2 + ((x - 36) / 25) ** 2 < 1] = 40
    for center_y, center_x, radius_y, radius_x in holes:
        hu[((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 < 1] = -900
    if support:
        around = ((y - 28) / 25) ** 2 + ((x - 36) / 32) ** 2
        hu[(around > 1) & (around < 1.12) & (y > 22)] = 200  # a thin shell, open above
    return hu


LUNGS = [(28, 24, 12, 9), (28, 48, 12, 9)]
SINUS = [(14, 36, 3, 5)]


@pytest.mark.parametrize("support", [False, True])
def test_chests_have_air_and_heads_have_not_whatever_lies_around_them(support):
    assert air_inside(scan(LUNGS, support=support)) > 2 * MIN_CHEST_AIR
    assert air_inside(scan(SINUS, support=support)) < MIN_CHEST_AIR


def test_a_scan_is_reduced_to_64_voxels_along_each_axis():
    assert coarse(np.zeros((130, 64, 65))).shape == (44, 64, 33)
