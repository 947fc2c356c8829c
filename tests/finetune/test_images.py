"""Files of every type as arrays with their geometry, and files that are refused."""

import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mg3d.finetune.images import read_volume, slice_files
from mg3d.preparation.readers.npz import read_rad_chestct
from mg3d.preparation.records import VolumeRecord

SHAPE = (7, 6, 5)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
UPRIGHT = np.diag([-0.8, -0.9, 2.5, 1.0])




def sheared(degrees):
    affine = UPRIGHT.copy()
    affine[1, 2] = np.tan(np.radians(degrees)) * affine[2, 2]
    return affine


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.diag([4000.0, 4000, 4000, 1]), "4000 x 4000 x 4000 mm"),
        (np.diag([0.004, 0.004, 0.004, 1]), "0.004 x 0.004 x 0.004 mm"),
        (sheared(8), "8.0 degrees of shear, 1 allowed"),
    ],
)
def test_an_impossible_grid_is_refused_with_the_file_and_the_number(tmp_path, affine, words):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(VOXELS, affine), path)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


def test_an_sform_of_zeros_gives_way_to_the_qform(tmp_path):
    image = nib.Nifti1Image(VOXELS, None)
    image.set_qform(UPRIGHT, code=1)
    image.header["sform_code"] = 1
    for name in ("srow_x", "srow_y", "srow_z"):
        image.header[name] = 0
    (tmp_path / "scan.nii").write_bytes(image.header.binaryblock + bytes(4) + VOXELS.tobytes(order="F"))
    _, affine = read_volume(tmp_path / "scan.nii")
    np.testing.assert_allclose(affine, UPRIGHT, atol=1e-5)


def test_a_rotated_grid_keeps_its_affine(tmp_path):
    angle = np.radians(30)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ UPRIGHT[:3, :3]
    nib.save(nib.Nifti1Image(VOXELS, affine), tmp_path / "scan.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "scan.nii")[1], affine, atol=1e-5)


def test_rad_chestct_has_the_orientation_and_spacing_of_the_preparation(tmp_path):
    hu = np.full((24, 8, 9), -1000, np.int16)
    hu[2:-4, 2:-3, 3:-2] = 40
    np.savez(tmp_path / "scan.npz", ct=hu)
    record = VolumeRecord(
        volume_id="scan", study_id="", patient_id="", dataset="rad_chestct", official_split="", split="test", reconstruction=1,
        findings=None, impression=None, files=("scan.npz",), source="", reader="rad_chestct",
    )  # fmt: skip
    prepared = read_rad_chestct(record, tmp_path)
    voxels, affine = read_volume(tmp_path / "scan.npz")
    assert np.array_equal(voxels, prepared.voxels)
    assert nib.aff2axcodes(affine) == ("S", "P", "L")
    assert tuple(nib.affines.voxel_sizes(affine)) == pytest.approx(prepared.spacing_mm)


def test_one_of_several_arrays_is_not_chosen_silently(tmp_path):
    np.savez(tmp_path / "scan.npz", image=VOXELS, mask=VOXELS)
    with pytest.raises(ValueError, match="it has the arrays image, mask; expected one"):
        read_volume(tmp_path / "scan.npz")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_slices_keep_values_above_255(tmp_path, dtype):
    slices = (np.arange(3 * 4 * 5).reshape(3, 4, 5) * (4 if dtype == np.uint8 else 1000)).astype(dtype)
    for index, plane in enumerate(slices):
        Image.fromarray(plane).save(tmp_path / f"{index}.png")
    assert np.array_equal(read_volume(slice_files(tmp_path.iterdir()))[0], slices)
