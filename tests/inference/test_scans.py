"""Scans of any format reach the model's grid as in the preparation, and maps return to the geometry of the file."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from small_dicom import write_series
from small_inference import save_scan, with_lesion
from small_raw import LPS, SHAPE, SPACING, chest

from mg3d.inference.scan import Preprocessing, Scan, as_nifti, file_record, read_scan, scan_of_array, write_nifti
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.voxels import make_volume

GRID = (16, 11, 14)
RECIPES = {
    "fraction": Recipe(shape=GRID),
    "body": Recipe(shape=GRID, crop="body"),
    "mm": Recipe(shape=GRID, crop="mm", crop_mm=(140.0, 50.0, 80.0)),
}
PREPROCESSING = Preprocessing(RECIPES["fraction"], (-1000.0, 3000.0))
LESION = (15, 12, 9)
"""z, y, x of the upright chest."""
TURN = np.radians(0.9)
TILT = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1.0]])


def oblique(affine):
    tilted = affine.copy()
    tilted[:3, :3] = TILT @ affine[:3, :3]
    tilted[:3, 3] = (11.0, -7.0, 140.0)
    return tilted


def nifti_file(folder, hu, axes):
    """The same chest with its axes in another order and turned; `axes` as nibabel writes them."""
    image = nib.Nifti1Image(hu.transpose(2, 1, 0), oblique(LPS))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def mha_file(folder, hu, ending=".mha"):
    image = SimpleITK.GetImageFromArray(hu)
    image.SetSpacing(SPACING[::-1])
    image.SetDirection(TILT.ravel())
    image.SetOrigin((4.0, -9.0, 33.0))
    SimpleITK.WriteImage(image, str(folder / f"scan{ending}"))
    return folder / f"scan{ending}"


FILES = {
    "RAS": lambda folder, hu: nifti_file(folder, hu, "RAS"),
    "LPS": lambda folder, hu: nifti_file(folder, hu, "LPS"),
    "SAL": lambda folder, hu: nifti_file(folder, hu, "SAL"),
    "PIR": lambda folder, hu: nifti_file(folder, hu, "PIR"),
    "mha": mha_file,
    "mhd": lambda folder, hu: mha_file(folder, hu, ".mhd"),
    "dicom": lambda folder, hu: write_series(folder / "series", hu),
}


def brightest(array):
    return np.unravel_index(array.argmax(), array.shape)


@pytest.mark.parametrize("crop", RECIPES)
@pytest.mark.parametrize("kind", FILES)
def test_a_lesion_in_the_grid_maps_back_to_the_lesion_in_the_file(tmp_path, kind, crop):
    path = FILES[kind](tmp_path, with_lesion(LESION))
    scan = read_scan(path, Preprocessing(RECIPES[crop], (-1000.0, 3000.0)))
    cells = np.zeros(GRID, np.float32)
    cells[brightest(scan.volume)] = 1.0
    upright = scan.upright(cells)
    cell_voxels = [(end - start) / side for (start, end), side in zip(scan.box, GRID)]
    middle = np.argwhere(upright > 0.5 * upright.max()).mean(0)
    assert (np.abs(middle - LESION) <= np.array(cell_voxels) / 2 + 1).all()
    image = scan.in_file(upright)
    if kind in ("RAS", "LPS", "SAL", "PIR"):  # voxel by voxel the array of the file
        stored = nib.load(path)
        assert image.shape == stored.shape
        np.testing.assert_allclose(image.affine, stored.affine, atol=1e-4)
        position = np.argwhere(image.get_fdata() > 0.5 * upright.max()).mean(0)
        lesion = np.argwhere(stored.get_fdata() == 2500).mean(0)
        distance_mm = np.linalg.norm(stored.affine[:3, :3] @ (position - lesion))
        assert distance_mm <= np.linalg.norm(np.array(cell_voxels) / 2 * SPACING) + max(SPACING)


@pytest.mark.parametrize("kind", FILES)
def test_a_position_in_mm_is_that_of_the_file(tmp_path, kind):
    path = FILES[kind](tmp_path, with_lesion(LESION))
    scan = read_scan(path, PREPROCESSING)
    if kind == "dicom":
        expected = np.array([31.0 - 9 * 2.5, 43.0 - 12 * 3.0, -207.0 + 15 * 5.0])  # LPS to RAS: x and y change their sign
    elif kind in ("mha", "mhd"):
        image = SimpleITK.ReadImage(str(path))
        expected = np.array([-1, -1, 1]) * image.TransformIndexToPhysicalPoint((9, 12, 15))
    else:
        expected = oblique(LPS) @ (9, 12, 15, 1)
    np.testing.assert_allclose(scan.position_mm(LESION), expected[:3], atol=1e-3)


@pytest.mark.parametrize("kind", FILES)
def test_all_formats_of_one_chest_give_the_volume_of_the_array(tmp_path, kind):
    scan = read_scan(FILES[kind](tmp_path, chest(2)), PREPROCESSING)
    np.testing.assert_array_equal(scan.volume, scan_of_array(chest(2), PREPROCESSING, spacing_mm=SPACING).volume)


@pytest.mark.parametrize("crop", RECIPES)
def test_the_volume_equals_the_windowed_volume_of_the_preparation(tmp_path, crop):
    path = save_scan(tmp_path / "scan.nii.gz", seed=4)
    stored, _ = make_volume(file_record(path, "nifti"), tmp_path, RECIPES[crop])
    scan = read_scan(path, Preprocessing(RECIPES[crop], (-700.0, 300.0)))
    np.testing.assert_allclose(scan.volume, ((stored + 700.0) / 1000.0).clip(0, 1), atol=1e-6)


def test_a_scan_is_preprocessed_with_the_recipe_of_the_checkpoint(tmp_path):
    path = save_scan(tmp_path / "scan.nii.gz", seed=4)
    recipe = Recipe(shape=GRID, crop="body", resize="trilinear", dtype="uint8", uint8_window=(-900.0, 400.0))
    config = {"shape": list(GRID), "window_hu": [-700.0, 300.0], "recipe": recipe.provenance("ct_rate")}
    found = Preprocessing.from_config(config)
    assert (found.recipe, found.note) == (recipe, "")
    stored, _ = make_volume(file_record(path, "nifti"), tmp_path, recipe)
    assert stored.dtype == np.uint8
    np.testing.assert_allclose(
        read_scan(path, found).volume, ((stored / 255 * 1300.0 - 900.0 + 700.0) / 1000.0).clip(0, 1), atol=1e-5
    )


def test_unknown_preprocessing_is_reported():
    config = {"shape": list(GRID), "window_hu": [-700.0, 300.0]}
    usual = Preprocessing.from_config(config)
    assert usual.recipe == Recipe(shape=GRID)
    assert "does not record how its training volumes were prepared" in usual.note
    assert usual.note.endswith("the central 88% x 66% x 88% of z, y, x")
    newer = RECIPES["mm"].provenance("custom")
    other = Preprocessing.from_config(config | {"recipe": newer | {"limits": {"slices": 3}}})
    assert other.recipe == RECIPES["mm"]
    assert other.note.endswith("another version of these steps: limits")
    strange = Preprocessing.from_config(config | {"recipe": newer | {"crop": {"kind": "by eye"}}})
    assert strange.recipe == usual.recipe
    assert "by eye" in strange.note


@pytest.mark.parametrize("name", ["scan.nii.gz", "deeper/SCAN.NII.GZ", "series"])
def test_a_folder_with_one_scan_is_read_as_that_scan(tmp_path, name):
    if name == "series":
        write_series(tmp_path / name, chest(4))
        write_series(tmp_path / "scout", chest()[:3], SeriesInstanceUID="1.2.3.9")
    else:
        save_scan(tmp_path / name, seed=4)
    expected = scan_of_array(chest(4), PREPROCESSING, spacing_mm=SPACING).volume
    np.testing.assert_array_equal(read_scan(tmp_path, PREPROCESSING).volume, expected)


@pytest.mark.parametrize("flat", [True, False])
def test_a_folder_with_several_scans_lists_them_instead_of_reading_one(tmp_path, flat):
    for number in (1, 2):
        folder = tmp_path / ("" if flat else f"p{number}")
        tags = {"SeriesInstanceUID": f"1.2.{number}", "PatientID": f"P{number}"}
        write_series(folder, chest(number)[: 20 + number], start=f"S{number}-", **tags)
    save_scan(tmp_path / "c.nii.gz")
    with pytest.raises(ValueError, match="has 3 scans; name one of them") as caught:
        read_scan(tmp_path, PREPROCESSING)
    names = [("" if flat else f"p{number}/") + f"S{number}-0000.dcm ({20 + number} slices)" for number in (1, 2)]
    assert all(name in str(caught.value) for name in ["c.nii.gz", *names])
    volume = read_scan(tmp_path / names[1].split()[0], PREPROCESSING).volume
    np.testing.assert_array_equal(volume, scan_of_array(chest(2)[:22], PREPROCESSING, spacing_mm=SPACING).volume)


def test_a_coarse_map_is_interpolated_to_hand_computed_values():
    scan = Scan(np.zeros((4, 2, 2), np.float32), (6, 2, 4), ((1, 5), (0, 2), (0, 4)), LPS, SPACING)
    cells = np.zeros((2, 1, 2), np.float32)
    cells[1, 0, 0] = 8.0
    found = scan.upright(cells, (2, 2, 1))
    # along z cells cover voxels 1-2 and 3-4, with centres at 1.5 and 3.5; along x 0-1 and 2-3
    np.testing.assert_allclose(found[:, 0, 0], [0, 0, 2, 6, 8, 0])
    np.testing.assert_allclose(found[4, 1], [8, 6, 2, 0])


def test_npz_arrays_are_read_by_their_name(tmp_path):
    np.savez(tmp_path / "clip.npz", arr_0=(chest(1).transpose(0, 2, 1) / 1000).clip(-1, 1).astype(np.float32))
    np.savez(tmp_path / "rad.npz", ct=chest(1).clip(-1000, 1000)[::-1].astype(np.int16))
    expected = scan_of_array(chest(1).clip(-1000, 1000), PREPROCESSING).volume
    for name in ("clip.npz", "rad.npz"):
        np.testing.assert_allclose(read_scan(tmp_path / name, PREPROCESSING).volume, expected, atol=3e-4)


@pytest.mark.parametrize("kind", FILES)
def test_any_scan_converts_to_nifti_with_its_hu_and_geometry(tmp_path, kind):
    hu = with_lesion(LESION)
    path = FILES[kind](tmp_path, hu)
    image, scan = as_nifti(path), read_scan(path, PREPROCESSING)
    np.testing.assert_array_equal(image.get_fdata(), scan.in_file(hu).get_fdata())
    position = image.affine[:3] @ [*np.argwhere(image.get_fdata() == 2500).mean(0), 1]
    np.testing.assert_allclose(position, scan.position_mm(LESION), atol=1e-3)


NO_DATA_FILE = "expected a line `ElementDataFile = NAME` in the header"
BAD = {
    "text.txt": (b"words", "is not in a supported format; expected .nii"),
    "cut.nii.gz": (b"\x1f\x8b\x08\x00", "is truncated or damaged"),
    "head.nii": (b"1" * 400, "the header cannot be read"),
    "other.npz": (b"PK", "the .npz file is damaged"),
    "empty.mha": (b"", NO_DATA_FILE),
    "text.mha": (b"Bring the scan of Tuesday.\n", NO_DATA_FILE),
    "nameless.mhd": (b"NDims = 3\nElementDataFile =  \n", NO_DATA_FILE),
    "colon.mhd": (b"NDims = 3\nElementDataFile: ../secret.raw\nElementDataFile = LOCAL\n", NO_DATA_FILE),
    "blank.mhd": (b"NDims = 3\n elementdatafile = ../secret.raw\nElementDataFile = LOCAL\n", NO_DATA_FILE),
    "away.mhd": (b"NDims = 3\nElementDataFile = ../secret.raw\n", "voxels are in another folder"),
    "list.mhd": (b"NDims = 3\nElementDataFile = LIST\na\nb\n", "voxels are in another folder or in several files"),
    "broken.mha": (b"NDims = 3\nElementSpacing = 1 1 1\nElementDataFile = LOCAL\n", "not a readable MetaImage or NRRD file"),
    "slice.dcm": (bytes(128) + b"DICM", "no SeriesInstanceUID"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_not_scans_are_refused_in_one_line(tmp_path, name):
    content, expected = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=expected.replace(".", r"\.")) as caught:
        read_scan(tmp_path / name, PREPROCESSING)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("array", "vector"), [(np.zeros((4, 5, 6, 7)), False), (np.zeros((5, 6, 7, 2)), True)])
def test_a_metaimage_with_other_axes_or_several_channels_is_refused(tmp_path, array, vector):
    image = SimpleITK.GetImageFromArray(array.astype(np.int16), isVector=vector)
    SimpleITK.WriteImage(image, str(tmp_path / "scan.mha"))
    with pytest.raises(ValueError, match="not a 3D array of scalars"):
        read_scan(tmp_path / "scan.mha", PREPROCESSING)


def test_missing_files_and_unusable_arrays_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_scan(tmp_path / "nothing.nii", PREPROCESSING)
    with pytest.raises(ValueError, match="no DICOM file in the folder"):
        read_scan(tmp_path, PREPROCESSING)
    with pytest.raises(ValueError, match=r"found an array of shape \[2, 3\]"):
        scan_of_array(np.zeros((2, 3)), PREPROCESSING)
    with pytest.raises(ValueError, match="all voxels are equal"):
        scan_of_array(np.zeros(SHAPE), PREPROCESSING)
    with pytest.raises(ValueError, match="air is not near -1000 HU"):
        scan_of_array(chest(0) + 1024, PREPROCESSING)


@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_a_map_is_written_atomically(tmp_path, name):
    scan = scan_of_array(chest(0), PREPROCESSING, spacing_mm=SPACING)
    image = scan.in_file(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE))
    write_nifti(tmp_path / name, image)
    again = nib.load(tmp_path / name)
    np.testing.assert_array_equal(again.get_fdata(), image.get_fdata())
    np.testing.assert_allclose(again.header.get_zooms(), SPACING[::-1])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match=r"expected the suffix \.nii"):
        write_nifti(Path(tmp_path / "map.png"), image)
