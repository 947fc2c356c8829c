import nibabel as nib
import numpy as np
import pytest
import torch
from small_raw import LPS, SHAPE, SPACING, chest, write_nifti

from mg3d.preparation import geometry
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.nifti import read_nifti
from mg3d.preparation.records import TableGeometry

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def labelled():
    """[z, y, x] LPS, every voxel with another value."""
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


@pytest.mark.parametrize("affine", [None, np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])])
def test_blank_header_takes_orientation_and_spacing_from_the_table(tmp_path, affine):
    stored = labelled().transpose(2, 1, 0).astype(np.float64)
    write_nifti(tmp_path / "volume.nii.gz", stored, np.eye(4) if affine is None else affine, blank=affine is None)
    array, found = read_nifti(tmp_path / "volume.nii.gz")
    assert found is None
    volume, spacing = geometry.to_lps(array, geometry.table_affine(TableGeometry(SHAPE, SPACING, UPRIGHT, 1, -1024)))
    np.testing.assert_array_equal(volume, labelled())
    assert spacing == pytest.approx(SPACING)
    turned = TableGeometry(SHAPE, SPACING, (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0), 1, -1024)
    np.testing.assert_array_equal(geometry.to_lps(array, geometry.table_affine(turned))[0], labelled()[:, ::-1, ::-1])


def test_axes_point_to_superior_posterior_and_left(tmp_path):
    """A single voxel at a world position: 40 mm left, 30 mm back, 100 mm up of the grid's center."""
    affine = np.array([[3.0, 0, 0, -90], [0, 3.0, 0, -90], [0, 0, 5.0, -200], [0, 0, 0, 1]])
    stored = np.zeros((60, 58, 80), np.int16)
    world_ras = np.array([-40.0, -30.0, 100.0, 1])
    stored[tuple(np.rint(np.linalg.inv(affine) @ world_ras).astype(int)[:3])] = 1
    volume, _ = geometry.to_lps(stored, affine)
    z, y, x = np.argwhere(volume == 1)[0]
    assert z == 60
    assert y == pytest.approx(58 - 1 - 20)
    assert x == pytest.approx(60 - 1 - 17, abs=1)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAI", "SPL", "AIR"])
def test_a_volume_stored_in_any_orientation_is_read_as_one_array(tmp_path, codes):
    """Letters name the direction of the stored axes, as in nibabel."""
    axis_of = {"R": 2, "L": 2, "A": 1, "P": 1, "S": 0, "I": 0}
    stored = labelled().transpose([axis_of[code] for code in codes])
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, code in enumerate(codes):
        stored = stored if code in "LPS" else np.flip(stored, column)
        world = 2 - axis_of[code]  # R, A, S are the first, second and third row
        affine[world, column] = (5.0, 3.0, 2.0)[axis_of[code]] * (1 if code in "RAS" else -1)
    write_nifti(tmp_path / "volume.nii.gz", stored, affine)
    volume, spacing = geometry.to_lps(*read_nifti(tmp_path / "volume.nii.gz"))
    np.testing.assert_array_equal(volume, labelled())
    assert spacing == pytest.approx((5.0, 3.0, 2.0))


def test_header_scaling_is_applied(tmp_path):
    image = nib.Nifti1Image(chest().transpose(2, 1, 0), LPS)
    image.header.set_slope_inter(2, -1024)
    image.to_filename(tmp_path / "volume.nii.gz")
    expected = np.asarray(nib.load(tmp_path / "volume.nii.gz").dataobj)
    np.testing.assert_allclose(read_nifti(tmp_path / "volume.nii.gz")[0], expected, atol=1e-3)


def test_the_crop_of_a_512_matrix_is_that_of_the_original_code():
    volume = np.broadcast_to(np.arange(512)[:, None], (100, 512, 512))
    cropped, _ = geometry.cut(volume, geometry.center_box(volume.shape))
    assert cropped.shape == (88, 336, 448)
    assert cropped[0, 0, 0] == 88
    assert cropped[0, -1, 0] == 512 - 88 - 1


def slow_axis(values, after):
    """Antialiased linear resize of one axis, one sample at a time."""
    before = len(values)
    scale = before / after
    result = []
    for k in range(after):
        center, width = (k + 0.5) * scale, max(scale, 1.0)
        pairs = [(max(0.0, 1 - abs(j + 0.5 - center) / width), values[j]) for j in range(before)]
        result.append(sum(w * v for w, v in pairs) / sum(w for w, _ in pairs))
    return np.array(result)


def test_resize_equals_a_slow_loop():
    volume = chest()[:, ::-1]
    expected = volume.astype(np.float64).clip(-900, 500) * 1.0
    for axis, after in enumerate((8, 30, 17)):
        expected = np.apply_along_axis(slow_axis, axis, expected, after)
    found = geometry.resize(volume, (8, 30, 17), limits=(-900, 500))
    assert found.shape == (8, 30, 17)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


def test_resize_weights_agree_with_torch_in_two_dimensions():
    plane = torch.rand(1, 1, 37, 50, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(plane, size=(12, 80), mode="bilinear", antialias=True)
    found = geometry.resize_weights(37, 12) @ plane[0, 0] @ geometry.resize_weights(50, 80).T
    torch.testing.assert_close(found, expected[0, 0], atol=1e-5, rtol=0)


def test_resize_scales_before_it_clips():
    volume = np.array([0.0, 4000.0]).reshape(1, 1, 2)
    found = geometry.resize(volume, (1, 1, 1), scale=(1.0, -1024.0), limits=(-1024, 1000))
    assert found.item() == pytest.approx((-1024 + 1000) / 2)


@pytest.mark.parametrize(
    ("affine", "depth", "code"),
    [
        (np.diag([3, 3, np.nan, 1]), 30, "nan_spacing"),
        (np.diag([3, 3, 0.035, 1]), 30, "spacing_out_of_range"),
        (np.diag([3, 3, 5, 1.0]), 19, "too_few_slices"),
        (np.diag([3, 3, 10, 1.0]), 151, "too_long"),
    ],
)
def test_impossible_grids_are_refused(affine, depth, code):
    with pytest.raises(Refusal) as caught:
        geometry.to_lps(np.zeros((4, 5, depth)), affine)
    assert caught.value.code == code


@pytest.mark.parametrize("shape", [(8, 30, 17), (26, 5, 60), (1, 22, 3)])
def test_trilinear_resize_equals_torch(shape):
    volume = chest()[:, ::-1]
    found = geometry.resize(volume, shape, limits=(-900, 500), kernel="trilinear")
    clipped = torch.from_numpy(volume.astype(np.float32)).clamp(-900, 500)
    theirs = torch.nn.functional.interpolate(clipped[None, None], size=shape, mode="trilinear", align_corners=False)
    torch.testing.assert_close(found, theirs[0, 0], atol=2e-3, rtol=0)


def test_trilinear_resize_equals_a_loop_over_the_eight_neighbors_of_each_voxel():
    volume, shape = chest().astype(np.float64).clip(-900, 500), (8, 30, 17)
    expected = np.zeros(shape)
    for target in np.ndindex(shape):
        positions = [max(0.0, (t + 0.5) * n / m - 0.5) for t, n, m in zip(target, volume.shape, shape)]
        for corner in np.ndindex(2, 2, 2):
            neighbor, weight = [], 1.0
            for position, upper, length in zip(positions, corner, volume.shape):
                neighbor.append(min(int(position) + upper, length - 1))
                weight *= position % 1 if upper else 1 - position % 1
            expected[target] += weight * volume[tuple(neighbor)]
    found = geometry.resize(chest(), shape, limits=(-900, 500), kernel="trilinear")
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("kernel", ["antialias", "trilinear"])
def test_padding_equals_a_volume_padded_with_air(kernel):
    padding = ((3, 0), (0, 5), (2, 7))
    scale, limits = (1.0, -1024.0), (-1024, 1500)
    stored = chest() + 1024
    padded = np.pad(stored, padding, constant_values=24)
    expected = geometry.resize(padded, (9, 31, 14), scale=scale, limits=limits, kernel=kernel)
    found = geometry.resize(stored, (9, 31, 14), scale=scale, limits=limits, kernel=kernel, padding=padding)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def body_in_air():
    """[40, 60, 50] with a body in [10:31, 20:49, 8:41], a small dense object elsewhere, and lung inside the body."""
    volume = np.full((40, 60, 50), -1000, np.int16)
    volume[10:31, 20:49, 8:41] = 40
    volume[15:25, 25:40, 12:30] = -850
    volume[0:6, 0:8, 44:50] = 1500
    return volume


@pytest.mark.parametrize(("spacing", "coarse"), [((5.0, 4.5, 6.0), (1, 1, 1)), ((2.0, 1.0, 1.3), (2, 4, 3))])
def test_the_body_is_the_largest_component_to_within_a_coarse_voxel(spacing, coarse):
    found = geometry.body_box(body_in_air() + 1024, (1.0, -1024.0), spacing)
    for (first, end), (start, stop), step in zip(found, ((10, 31), (20, 49), (8, 41)), coarse):
        assert start <= first < start + step
        assert stop - step < end <= stop


def test_the_margin_of_a_body_crop_is_clipped_to_the_volume():
    volume = body_in_air()
    cropped, padding = geometry.cut(volume, geometry.margin_box(volume, (1.0, 0.0), (5.0, 4.5, 6.0), 50.0))
    assert padding == ((0, 0), (0, 0), (0, 0))
    assert np.shares_memory(cropped, volume)
    # 10, 11 and 8 voxels of margin: 0:41 of 40, 9:60 of 60, 0:49 of 50
    np.testing.assert_array_equal(cropped, volume[0:40, 9:60, 0:49])


def test_a_crop_in_mm_is_a_box_around_the_center_of_the_body():
    volume = body_in_air()
    part, padding = geometry.cut(volume, geometry.mm_box(volume, (1.0, 0.0), (5.0, 4.5, 6.0), (250.0, 45.0, 360.0)))
    # 50, 10 and 60 voxels around 20.5, 34.5, 24.5: from -5 to 45, 29 to 39, -6 to 54
    np.testing.assert_array_equal(part, volume[0:40, 29:39, 0:50])
    assert padding == ((5, 5), (0, 0), (6, 4))


@pytest.mark.parametrize(("volume", "spacing", "code"), [(-700, (5.0, 4.5, 6.0), "no_body"), (0, None, "nan_spacing")])
def test_a_crop_without_body_or_spacing_is_refused(volume, spacing, code):
    with pytest.raises(Refusal) as caught:
        geometry.body_box(np.full((30, 20, 25), volume), (1.0, 0.0), spacing)
    assert caught.value.code == code


def rotation(degrees, axis):
    """A rotation around axis 0, 1 or 2."""
    turned = np.eye(4)
    first, second = [other for other in range(3) if other != axis]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned[[first, first, second, second], [first, second, first, second]] = cosine, -sine, sine, cosine
    return turned


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL"])
def test_an_oblique_grid_is_refused_with_its_angle(codes, axis):
    change = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (24, 25, 30))
    grid = np.diag([3.0, 2.0, 5.0, 1.0]) @ change
    for degrees in (-4.5, 4.5):
        volume, _ = geometry.to_lps(np.zeros((24, 25, 30)), rotation(degrees, axis) @ grid)
        assert volume.shape == geometry.to_lps(np.zeros((24, 25, 30)), grid)[0].shape
    with pytest.raises(Refusal) as caught:
        geometry.to_lps(np.zeros((24, 25, 30)), rotation(7.3, axis) @ grid)
    assert (caught.value.code, caught.value.detail.split(",")[0]) == ("oblique", "7.3 degrees")


@pytest.mark.parametrize(("pair", "degrees"), [((0, 1), 2.0), ((1, 2), -15.0), ((0, 2), 45.0)])
def test_a_sheared_grid_is_refused_with_its_angle(pair, degrees):
    """A tilted gantry shifts each slice sideways: z runs along (0, tan, 1)."""
    affine = np.diag([3.0, 3.0, 5.0, 1.0])
    affine[pair] = affine[pair[1], pair[1]] * np.tan(np.radians(degrees))
    with pytest.raises(Refusal) as caught:
        geometry.to_lps(np.zeros((24, 25, 30)), affine)
    assert (caught.value.code, caught.value.detail.split(",")[0]) == ("gantry_tilt", f"{abs(degrees):.1f} degrees of shear")
