import numpy as np
import pytest
from small_raw import chest

from mg3d.preparation.hounsfield import air_peak, choose_hu_rescale
from mg3d.preparation.quarantine import Refusal


def test_values_in_hu_are_not_rescaled_again():
    assert choose_hu_rescale(chest(), (1.0, -1024.0)) == ("already_hu", 1.0, 0.0)
    assert choose_hu_rescale(chest(), (1.0, -8192.0)).source == "already_hu"


@pytest.mark.parametrize("intercept", [-1024, -8192])
def test_scanner_values_take_the_intercept_of_the_table(intercept):
    assert choose_hu_rescale(chest().astype(np.int32) - intercept, (1.0, float(intercept))) == ("metadata_table", 1.0, intercept)


@pytest.mark.parametrize("padding", [-8192, -3024, -2048, -2000])
def test_padding_outside_the_field_of_view_is_ignored(padding):
    volume = chest()
    volume[:, :6] = padding
    volume[:, -3:] = padding
    assert choose_hu_rescale(volume, (1.0, -1024.0)).source == "already_hu"
    raw = volume.astype(np.int32) + 1024
    assert choose_hu_rescale(raw, (1.0, -1024.0)).source == "metadata_table"


@pytest.mark.parametrize("padding", [None, -2048, -2000])
def test_a_doubled_intercept_is_refused_with_any_padding(padding):
    volume = chest()
    if padding:
        volume[:, :6] = padding
    for table in (None, (1.0, -1024.0)):
        with pytest.raises(Refusal, match="hu_ambiguous"):
            choose_hu_rescale(volume - 1024, table)


def test_padding_of_scanner_values_that_looks_like_air_is_not_air():
    volume = chest()
    volume[:, :6] = -2048
    assert choose_hu_rescale(volume + 1024, (1.0, -1024.0)).source == "metadata_table"  # stored padding: -1024; stored air: 24


def test_padding_of_a_resampled_volume_is_ignored():
    volume = np.repeat(np.repeat(chest(), 4, axis=1), 4, axis=2)
    volume[:, :20] = -2048
    volume[:, 20] = np.linspace(-2000, -1050, volume.shape[2])  # interpolated from padding to air
    assert choose_hu_rescale(volume, None).source == "already_hu"


def test_air_peak_is_the_mode_of_the_lowest_voxels():
    values = np.array([-990.0] * 3 + [-1010.0] * 5 + [40.0] * 15 + [-8192.0] * 50)
    assert air_peak(values) == -1010


def test_air_away_from_minus_1000_hu_is_ambiguous():
    for stored, table in ((chest() - 1024, (1.0, -1024.0)), (chest() + 500, None), (chest() + 1024, (float("nan"), -1024.0))):
        with pytest.raises(Refusal) as caught:
            choose_hu_rescale(stored, table)
        assert caught.value.code == "hu_ambiguous"


def test_constant_volumes_and_infinite_voxels_are_refused():
    with pytest.raises(Refusal, match="constant_image"):
        choose_hu_rescale(np.full((4, 5, 6), -1000), None)
    with pytest.raises(Refusal, match="hu_ambiguous"):
        choose_hu_rescale(np.where(chest() > 100, np.inf, chest()), None)


def test_a_sampled_large_volume_gets_the_same_rescale():
    assert choose_hu_rescale(np.tile(chest(), (4, 8, 8)), (1.0, -1024.0)).source == "already_hu"


def head(air=-1000):
    """HU [z, y, x] of a shell of bone around a brain, without lung or fat between air and tissue."""
    rng = np.random.default_rng(3)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in (26, 22, 24)), indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2)
    volume = np.full(radius.shape, air)
    volume[radius < 0.9] = rng.normal(1000, 200, radius.shape).astype(int)[radius < 0.9]
    volume[radius < 0.75] = rng.normal(40, 8, radius.shape).astype(int)[radius < 0.75]
    return volume


@pytest.mark.parametrize("intercept", [-1024.0, -8192.0])
def test_noise_free_air_around_a_head_is_not_padding(intercept):
    assert choose_hu_rescale(head(), (1.0, intercept)).source == "already_hu"
    assert choose_hu_rescale(head().astype(np.int32) - int(intercept), (1.0, intercept)).source == "metadata_table"


def test_known_padding_stored_at_minus_1000_is_not_air():
    volume = chest()
    volume[:, :6] = -2000
    assert choose_hu_rescale(volume + 1000, (1.0, -1000.0)).source == "metadata_table"  # stored padding: -1000; stored air: 0
