import nibabel as nib
import numpy as np
import pytest
import torch
from monai import transforms as mt
from monai.data import MetaTensor

from mg3d.finetune.cases import Case
from mg3d.finetune.images import read_image
from mg3d.finetune.kinds.base import Plain
from mg3d.finetune.pipeline import (
    CaseDataset,
    ReadCase,
    TicketSampler,
    balanced,
    fixed_steps,
    in_order,
    random_steps,
    shuffled,
)
from mg3d.finetune.task import Augment, Preprocess

SHAPE_XYZ = (7, 9, 11)


def write_nifti(path, *, flip_x=False, place=(2, 3, 4), spacing=(0.7, 0.8, 2.5)):
    """Axes x to the left, y to the back, z to the top (LPS), or x to the right; 100 at one voxel, told in LPS order."""
    array = np.zeros(SHAPE_XYZ, np.int16)
    array[place] = 100
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    if flip_x:
        array = array[::-1]
        affine[0, 0] *= -1
        affine[0, 3] = -(SHAPE_XYZ[0] - 1) * spacing[0]
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_meta(path, *, place=(2, 3, 4)):
    import SimpleITK as sitk

    array = np.zeros(SHAPE_XYZ[::-1], np.int16)
    array[place[::-1]] = 100
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 2.5))
    sitk.WriteImage(image, str(path))
    return path


def sample_of(path, **steps):
    case = Case(case_id="c", patient_id="p", image=path)
    return mt.Compose([ReadCase(masks=False), *fixed_steps(Preprocess(window=(0, 100), **steps), keys=["image"])])(case)


@pytest.mark.parametrize("name", ["a.nii.gz", "flipped.nii.gz", "a.mha", "a.mhd"])
def test_a_known_voxel_ends_at_z_y_x_whatever_the_file(tmp_path, name):
    path = tmp_path / name
    write = write_meta if name.endswith(("mha", "mhd")) else write_nifti
    write(path, **({"flip_x": True} if "flipped" in name else {}))
    image = sample_of(path)["image"]
    assert tuple(image.shape) == (1, 11, 9, 7)
    assert torch.nonzero(image).tolist() == [[0, 4, 3, 2]]


def test_slices_and_arrays_are_taken_as_z_y_x(tmp_path):
    array = np.zeros((11, 9, 7), np.uint8)
    array[4, 3, 2] = 100
    np.save(tmp_path / "a.npy", array)
    assert torch.nonzero(sample_of(tmp_path / "a.npy")["image"]).tolist() == [[0, 4, 3, 2]]


def test_original_axes_are_the_files_in_ras(tmp_path):
    case = Case(case_id="c", patient_id="p", image=write_nifti(tmp_path / "a.nii.gz"))
    steps = fixed_steps(Preprocess(window=(0, 100), size=(22, 9, 7)), keys=["image"], axes="RAS")
    image = mt.Compose([ReadCase(masks=False), *steps])(case)["image"]
    assert tuple(image.shape) == (1, 7, 9, 22)
    assert np.unravel_index(int(image.argmax()), image.shape)[1:3] == (7 - 1 - 2, 9 - 1 - 3)


def test_spacing_is_along_z_y_x(tmp_path):
    image = sample_of(write_nifti(tmp_path / "a.nii.gz"), spacing_mm=(1.25, 0.8, 1.4))["image"]
    assert tuple(image.shape) == (1, 21, 9, 4)


def test_the_window_is_clipped(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_nifti(path)
    case = Case(case_id="c", patient_id="p", image=path)
    steps = fixed_steps(Preprocess(window=(-50, 50)), keys=["image"])
    image = mt.Compose([ReadCase(masks=False), *steps])(case)["image"]
    assert sorted(set(image.flatten().tolist())) == [0.5, 1.0]


def test_the_upper_slices_are_kept(tmp_path):
    image = sample_of(write_nifti(tmp_path / "a.nii.gz", place=(2, 3, 10)), extent=(5, 9, 7), extent_top=True)["image"]
    assert torch.nonzero(image).tolist() == [[0, 4, 3, 2]]


def test_a_share_of_the_centre_is_kept(tmp_path):
    assert tuple(sample_of(write_nifti(tmp_path / "a.nii.gz"), keep=(0.5, 1.0, 0.6))["image"].shape) == (1, 6, 9, 4)


def test_a_mask_on_another_grid_is_refused(tmp_path):
    write_nifti(tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "m.nii.gz", spacing=(0.7, 0.8, 2.0))
    case = Case(case_id="c7", patient_id="p", image=tmp_path / "a.nii.gz", mask=tmp_path / "m.nii.gz")
    with pytest.raises(ValueError, match="c7: the mask"):
        ReadCase(masks=True)(case)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read as a scan"),
        (lambda path: nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.float32), np.eye(4)), path), r"shape \(3, 4, 5, 2\)"),
    ],
)
def test_a_file_that_is_no_volume_is_named(tmp_path, write, told):
    write(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=told):
        read_image(tmp_path / "a.nii.gz")


def dataset(tmp_path, *, seed=0):
    files = [write_nifti(tmp_path / f"{n}.nii.gz", place=(n, 3, 4)) for n in range(5)]
    cases = [Case(case_id=str(n), patient_id=str(n), image=file) for n, file in enumerate(files)]
    fixed = mt.Compose([ReadCase(masks=False), *fixed_steps(Preprocess(window=(0, 100)), keys=["image"])])
    random = mt.Compose(random_steps(Augment(flip=(0.5, 0.5, 0.5), noise=1.0), keys=["image"]))
    return CaseDataset(cases, fixed, random=random, seed=seed, keep=True)


def test_what_is_drawn_depends_on_seed_and_ticket_alone(tmp_path):
    one, other = dataset(tmp_path), dataset(tmp_path)
    for ticket in (3, 1, 8):
        one[ticket]
    assert torch.equal(one[8]["image"], other[8]["image"])
    assert not torch.equal(one[8]["image"], one[3]["image"])  # the same case in the next epoch
    assert not torch.equal(one[8]["image"], dataset(tmp_path, seed=1)[8]["image"])


def test_kept_samples_are_not_changed_by_random_steps(tmp_path):
    data = dataset(tmp_path)
    before = data._fixed(2)["image"].clone()
    data[2], data[7]
    assert torch.equal(data._fixed(2)["image"], before)


def test_flips_take_the_axis_they_name(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz")
    sample = sample_of(path)
    for place, chance in enumerate(np.eye(3)):
        flipped = mt.Compose(random_steps(Augment(flip=tuple(chance)), keys=["image"]))(dict(sample))["image"]
        assert torch.equal(flipped, sample["image"].flip(1 + place))


def test_ranks_share_an_epoch_and_have_equal_lengths():
    samplers = [TicketSampler(shuffled(7), count=7, seed=3, rank=rank, ranks=2) for rank in range(2)]
    for sampler in samplers:
        sampler.set_epoch(4)
    tickets = [list(sampler) for sampler in samplers]
    assert [len(found) for found in tickets] == [4, 4] == [len(sampler) for sampler in samplers]
    assert {ticket % 7 for found in tickets for ticket in found} == set(range(7))
    assert {ticket // 7 for found in tickets for ticket in found} == {4}


def test_another_epoch_has_another_order_and_evaluation_has_none():
    sampler = TicketSampler(shuffled(20), count=20)
    first = list(sampler)
    sampler.set_epoch(1)
    assert [ticket - 20 for ticket in sampler] != first
    assert list(TicketSampler(in_order(5), count=5)) == [0, 1, 2, 3, 4]


def test_balanced_draws_take_every_class_equally_often():
    classes = ["a"] * 90 + ["b"] * 10
    drawn = balanced(classes)(np.random.default_rng(0))
    share = np.mean([classes[place] == "b" for place in drawn])
    assert 0.35 < share < 0.65


def test_what_reaches_a_network_has_no_history(tmp_path):
    sample = sample_of(write_nifti(tmp_path / "a.nii.gz"))
    assert type(sample["image"]) is MetaTensor
    assert type(Plain(["image"])(sample)["image"]) is torch.Tensor
