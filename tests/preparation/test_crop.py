import numpy as np
import pytest

from mg3d.preparation import crop
from mg3d.preparation.quarantine import Refusal


def test_the_crop_of_a_512_matrix_is_that_of_the_original_code():
    volume = np.broadcast_to(np.arange(512)[:, None], (100, 512, 512))
    cropped, _ = crop.cut(volume, crop.center_box(volume.shape))
    assert cropped.shape == (88, 336, 448)
    assert cropped[0, 0, 0] == 88
    assert cropped[0, -1, 0] == 512 - 88 - 1


def body_in_air():
    """[40, 60, 50] with a body in [10:31, 20:49, 8:41], a small dense object elsewhere, and lung inside the body."""
    volume = np.full((40, 60, 50), -1000, np.int16)
    volume[10:31, 20:49, 8:41] = 40
    volume[15:25, 25:40, 12:30] = -850
    volume[0:6, 0:8, 44:50] = 1500
    return volume


@pytest.mark.parametrize(("spacing", "repeats", "coarse"), [((5.0, 4.5, 6.0), 1, (1, 1, 1)), ((2.0, 1.0, 1.3), 5, (2, 4, 3))])
def test_the_body_is_the_largest_component_to_within_a_coarse_voxel(spacing, repeats, coarse):
    volume = body_in_air().repeat(repeats, axis=1).repeat(repeats, axis=2)
    found = crop.body_box(volume + 1024, (1.0, -1024.0), spacing)
    ends = ((10, 31), (20 * repeats, 49 * repeats), (8 * repeats, 41 * repeats))
    for (first, end), (start, stop), step in zip(found, ends, coarse):
        assert start <= first < start + step
        assert stop - step < end <= stop


def test_the_margin_of_a_body_crop_is_clipped_to_the_volume():
    volume = body_in_air()
    cropped, padding = crop.cut(volume, crop.margin_box(volume, (1.0, 0.0), (5.0, 4.5, 6.0), 50.0))
    assert padding == ((0, 0), (0, 0), (0, 0))
    assert np.shares_memory(cropped, volume)
    # 10, 11 and 8 voxels of margin: 0:41 of 40, 9:60 of 60, 0:49 of 50
    np.testing.assert_array_equal(cropped, volume[0:40, 9:60, 0:49])


def test_a_crop_in_mm_is_a_box_around_the_center_of_the_body():
    volume = body_in_air()
    part, padding = crop.cut(volume, crop.mm_box(volume, (1.0, 0.0), (5.0, 4.5, 6.0), (250.0, 45.0, 360.0)))
    # 50, 10 and 60 voxels around 20.5, 34.5, 24.5: from -5 to 45, 29 to 39, -6 to 54
    np.testing.assert_array_equal(part, volume[0:40, 29:39, 0:50])
    assert padding == ((5, 5), (0, 0), (6, 4))


@pytest.mark.parametrize(("volume", "spacing", "code"), [(-700, (5.0, 4.5, 6.0), "no_body"), (0, None, "nan_spacing")])
def test_a_crop_without_body_or_spacing_is_refused(volume, spacing, code):
    with pytest.raises(Refusal) as caught:
        crop.body_box(np.full((30, 20, 25), volume), (1.0, 0.0), spacing)
    assert caught.value.code == code


SPACING = (4.0, 3.5, 3.0)


def lying_patient(*, couch_hu=-1000, arms=False, headrest=False):
    """HU [z, y, x] of a chest with lungs of 217 x 317 mm that lies on a hollow couch of 400 mm."""
    z, y, x = np.meshgrid(*(np.arange(length) * mm for length, mm in zip((70, 110, 150), SPACING)), indexing="ij")
    volume = np.full(z.shape, -1000, np.int16)
    chest = ((y - 170) / 108.5) ** 2 + ((x - 224) / 158.5) ** 2 < 1
    volume[chest] = 40
    for side in (-1, 1):
        volume[((y - 165) / 75) ** 2 + ((x - 224 - side * 70) / 52) ** 2 + ((z - 140) / 120) ** 2 < 1] = -850
    couch = (np.abs(x - 224) < 200) & (y > 274) & (y < 310)
    volume[couch & ~chest & ((y < 281) | (y > 303) | (np.abs(x - 224) > 193))] = couch_hu
    if headrest:
        volume[(y > 255) & (y < 275) & (np.abs(np.abs(x - 224) - 90) < 40) & (z > 200) & ~chest] = couch_hu
    if arms:
        for side in (-1, 1):
            volume[((y - 170) / 22) ** 2 + ((x - 224 - side * 194) / 36) ** 2 < 1] = 40
    return volume


@pytest.mark.parametrize(
    "scene", [{}, {"couch_hu": 150}, {"couch_hu": 150, "headrest": True}, {"couch_hu": -100, "arms": True}]
)
def test_a_couch_a_headrest_and_arms_that_touch_do_not_grow_the_box_of_the_body(scene):
    volume = lying_patient(**scene)
    found = crop.body_box(volume, (1.0, 0.0), SPACING)
    expected = [(0, 280), (170 - 108.5, 170 + 108.5), (224 - 158.5, 224 + 158.5)]
    for (first, end), (start, stop), mm in zip(found, expected, SPACING):
        assert abs(first * mm - start) <= 10
        assert abs(end * mm - stop) <= 10


def test_the_body_includes_its_lungs_but_neither_the_couch_nor_the_air_around_it():
    volume = lying_patient(couch_hu=150, arms=True)
    mask = crop.body_mask(volume, SPACING)
    lungs = volume == -850
    assert mask[lungs].mean() > 0.99
    assert not mask[volume == -1000].any()
    assert (mask & lungs).sum() / mask.sum() == pytest.approx(lungs.sum() / lying_patient_volume(), rel=0.05)


def lying_patient_volume():
    """Number of voxels of the chest with its lungs."""
    return int((lying_patient() > -1000).sum())
