import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation
from small_raw import LPS, SHAPE, SPACING, chest, write_nifti

from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import HuRescale
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.nifti import is_identity, read_nifti
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import TableGeometry
from mg3d.preparation.voxels import preprocess

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def labelled():
    """[z, y, x] LPS, every voxel with another value."""
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


@pytest.mark.parametrize("affine", [None, np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])])
def test_blank_header_takes_orientation_and_spacing_from_the_table(tmp_path, affine):
    stored = labelled().transpose(2, 1, 0).astype(np.float64)
    write_nifti(tmp_path / "volume.nii.gz", stored, np.eye(4) if affine is None else affine, blank=affine is None)
    array, found = read_nifti(tmp_path / "volume.nii.gz")
    assert found is None or is_identity(found)
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


def random_affine(rng):
    """Any order and direction of the axes, anisotropic; half are turned by up to 55 degrees, half sheared by up to 50 degrees.

    Returns the affine, whether it is upright to 1 degree, and whether the axes can be told apart and are sheared by less than 45.
    """
    axes = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    turn, shear = (float(rng.uniform(1.1, limit) * rng.integers(2)) for limit in (55, 50))
    vector = rng.normal(size=3)
    axes = Rotation.from_rotvec(np.radians(turn) * vector / np.linalg.norm(vector)).as_matrix() @ axes
    first, second = rng.permutation(3)[:2]
    axes[:, first] += np.tan(np.radians(shear)) * axes[:, second]
    affine = np.eye(4)
    affine[:3, :3] = axes / np.linalg.norm(axes, axis=0) * rng.uniform(0.5, 6.0, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    cosines = np.sort(np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)), axis=0)
    are_apart = len({int(axis) for axis in np.abs(affine[:3, :3]).argmax(0)}) == 3
    return affine, not turn and not shear, are_apart and np.sort(cosines[2])[1] > np.sqrt(0.5) and shear < 45


def sitk_image(stored, affine):
    lps = geometry.LPS_TO_RAS @ affine
    image = SimpleITK.GetImageFromArray(stored.transpose(2, 1, 0))
    image.SetSpacing(np.linalg.norm(lps[:3, :3], axis=0).tolist())
    image.SetDirection((lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize("seed", range(200))
def test_any_accepted_grid_has_the_voxels_of_simpleitk_and_the_positions_of_its_affine(seed):
    """Noise, and HU that increase by 10 per mm along one direction, so that 5 HU are 0.5 mm; both interpolated linearly."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.permutation([24, 27, 31]))
    affine, is_upright, is_readable = random_affine(rng)
    noise, slope = rng.integers(-1000, 1500, shape).astype(np.int16), rng.normal(size=3)
    slope *= 10 / np.linalg.norm(slope)
    world = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    if not is_readable:
        with pytest.raises(Refusal, match=r"(oblique|gantry_tilt).* degrees"):
            geometry.raw_volume(noise, affine, HuRescale("already_hu", 1.0, 0.0))
        return
    raw = geometry.raw_volume(noise, affine, HuRescale("already_hu", 1.0, 0.0))
    ramp = geometry.raw_volume((world @ slope).astype(np.float32), affine, HuRescale("already_hu", 1.0, 0.0))
    assert is_upright is not any(change.code in {"oblique", "gantry_tilt"} for change in raw.changes)
    to_world = geometry.lps_affine(raw.affine, raw.voxels.shape)
    np.testing.assert_allclose(to_world[:3, :3], np.diag([-1, -1, 1] * np.array(raw.spacing_mm[::-1])), atol=1e-9)
    grid = sitk_image(raw.voxels.transpose(2, 1, 0), to_world)
    theirs = SimpleITK.Resample(sitk_image(noise, affine), grid, SimpleITK.Transform(), SimpleITK.sitkLinear, -1024.0)
    z, y, x = np.indices(raw.voxels.shape)
    position = np.stack([x, y, z], -1) @ to_world[:3, :3].T + to_world[:3, 3]
    voxel = (position - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    inside = ((voxel > 0.01) & (voxel < np.array(shape) - 1.01)).all(-1)
    outside = ((voxel < -0.6) | (voxel > np.array(shape) - 0.4)).any(-1)
    assert inside.mean() > 0.05
    assert np.abs(raw.voxels.astype(int) - SimpleITK.GetArrayFromImage(theirs))[inside].max() <= 1
    assert (raw.voxels[outside] == -1024).all()
    assert np.abs(ramp.voxels - position @ slope)[inside].max() < 5


def rotation(degrees, axis):
    """A rotation around axis 0, 1 or 2."""
    turned = np.eye(4)
    first, second = [other for other in range(3) if other != axis]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned[[first, first, second, second], [first, second, first, second]] = cosine, -sine, sine, cosine
    return turned


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL"])
def test_a_rotated_grid_is_resampled_above_1_degree_with_its_angle(codes, axis):
    change = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (24, 25, 30))
    grid, stored = np.diag([3.0, 2.0, 5.0, 1.0]) @ change, np.zeros((24, 25, 30), np.int16)
    for degrees, changes in ((-0.9, []), (7.3, ["resampled from a rotated grid (7.3 degrees)"])):
        raw = geometry.raw_volume(stored, rotation(degrees, axis) @ grid, HuRescale("already_hu", 1.0, 0.0))
        assert raw.voxels.shape == geometry.to_lps(stored, grid)[0].shape
        assert [str(change) for change in raw.changes] == changes
    with pytest.raises(Refusal, match=r"7\.3 degrees, 1 allowed"):
        geometry.to_lps(stored, rotation(7.3, axis) @ grid)


@pytest.mark.parametrize(("pair", "degrees"), [((0, 1), 2.0), ((1, 2), -15.0), ((0, 2), 44.0)])
def test_a_sheared_grid_is_resampled_with_its_angle(pair, degrees):
    """A tilted gantry shifts each slice sideways: z runs along (0, tan, 1)."""
    affine = np.diag([3.0, 3.0, 5.0, 1.0])
    affine[pair] = affine[pair[1], pair[1]] * np.tan(np.radians(degrees))
    raw = geometry.raw_volume(np.zeros((24, 25, 30), np.int16), affine, HuRescale("already_hu", 1.0, 0.0))
    assert raw.changes == (("gantry_tilt", f"{abs(degrees):.1f} degrees"),)
    assert raw.spacing_mm == pytest.approx((5.0, 3.0, 3.0))


DEGENERATE = {
    "gantry_tilt": [(0, 0, 1), (0, 1, 0), (0, 1, 1.1)],
    "oblique": np.array([(1, 1, 1), (1, -1, 0), (1, 1, -2)]) / np.sqrt([[3], [2], [6]]),
}
COPLANAR = [(1, 0, 0), (np.cos(2.1), np.sin(2.1), 0), (np.cos(1.05), np.sin(1.05), 0.1)]


@pytest.mark.parametrize(("code", "axes"), [*DEGENERATE.items(), ("gantry_tilt", COPLANAR)])
def test_degenerate_grids_are_refused_with_their_angle(code, axes):
    affine = np.eye(4)
    affine[:3, :3] = np.transpose(axes) * 2
    with pytest.raises(Refusal, match=r"\d degrees") as caught:
        geometry.raw_volume(np.zeros((24, 25, 30), np.int16), affine, HuRescale("already_hu", 1.0, 0.0))
    assert caught.value.code == code


def test_a_turned_and_sheared_grid_keeps_voxel_size_and_positions_where_two_patient_axes_are_nearest_to_one_voxel_axis():
    affine = np.eye(4)
    affine[:3, :3] = 2 * np.array([[-0.687, -0.686, -0.605], [-0.092, -0.494, 0.790], [-0.721, 0.533, 0.097]])
    world = np.stack(np.meshgrid(*map(np.arange, (24, 25, 30)), indexing="ij"), -1) @ affine[:3, :3].T
    raw = geometry.raw_volume((world @ (1, 2, 3)).astype(np.float32), affine, HuRescale("already_hu", 1.0, 0.0))
    assert np.prod(raw.spacing_mm) == pytest.approx(abs(np.linalg.det(affine)))
    to_world = geometry.lps_affine(raw.affine, raw.voxels.shape)
    z, y, x = np.meshgrid(*map(np.arange, raw.voxels.shape), indexing="ij")
    expected = (np.stack([x, y, z], -1) @ to_world[:3, :3].T + to_world[:3, 3]) @ (1, 2, 3)
    inside = raw.voxels > -1000
    assert inside.mean() > 0.2
    np.testing.assert_allclose(raw.voxels[inside], expected[inside], atol=0.05)


def test_one_body_turned_and_sheared_gives_the_volume_of_the_upright_file():
    """Correlation of the prepared volumes, with 3 mm voxels and the crop of the paper."""
    prepared = {}
    for name, axes in TURNED.items():
        affine = np.eye(4)
        affine[:3, :3] = axes @ np.diag([-3.0, -3.0, 3.0])
        affine[:3, 3] = -affine[:3, :3] @ (np.array([70, 66, 74]) - 1) / 2
        stored = blobs(np.stack(np.meshgrid(*map(np.arange, (70, 66, 74)), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3])
        prepared[name] = preprocess(
            geometry.raw_volume(stored, affine, HuRescale("already_hu", 1.0, 0.0)), Recipe(shape=(32, 24, 32)), "custom"
        )[0]
    for name, volume in prepared.items():
        assert np.corrcoef(volume.ravel(), prepared["upright"].ravel())[0, 1] > 0.98, name


def blobs(world_mm):
    """An ellipsoid of tissue with two lungs of different size, int16 HU, at positions RAS [..., 3] in mm."""

    def ellipsoid(center, radii):
        return (((world_mm - center) / radii) ** 2).sum(-1) < 1

    hu = np.where(ellipsoid((0, 0, 0), (90, 65, 85)), 40, -1000)
    return np.where(ellipsoid((-40, 0, 5), (32, 40, 60)) | ellipsoid((42, 5, -5), (25, 35, 45)), -850, hu).astype(np.int16)


def sheared(degrees):
    axes = np.eye(3)
    axes[1, 2] = np.tan(np.radians(degrees))
    return axes


TURNED = {"upright": np.eye(3)}
TURNED |= {f"rotated {degrees}": rotation(degrees, axis)[:3, :3] for axis, degrees in enumerate((12, 25, 30))}
TURNED |= {"rotated 44": rotation(44, 0)[:3, :3], **{f"sheared {degrees}": sheared(degrees) for degrees in (8, 20, 40)}}
