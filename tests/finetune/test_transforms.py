import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai import transforms as mt

from mg3d.finetune import dataset as dataset_module
from mg3d.finetune import transforms as t
from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.dataset import CaseDataset, EpochSampler, class_balanced, in_order, shuffled, worker_order
from mg3d.finetune.images import read_image

SHAPE_XYZ = (7, 9, 11)


def write_nifti(path, *, flip_x=False, voxel=(2, 3, 4), spacing=(0.7, 0.8, 2.5)):
    """Axes x to the left, y to posterior, z to superior (LPS), or x to the right; 100 at one voxel, given in LPS order."""
    array = np.zeros(SHAPE_XYZ, np.int16)
    array[voxel] = 100
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    if flip_x:
        array = array[::-1]
        affine[0, 0] *= -1
        affine[0, 3] = -(SHAPE_XYZ[0] - 1) * spacing[0]
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_meta_image(path, *, voxel=(2, 3, 4)):
    array = np.zeros(SHAPE_XYZ[::-1], np.int16)
    array[voxel[::-1]] = 100
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 2.5))
    sitk.WriteImage(image, str(path))
    return path


def sample_of(path, *steps):
    case = FinetuneCase(case_id="c", patient_id="p", image=path)
    return mt.Compose([t.ReadCase(masks=False), t.window(0, 100), *steps])(case)


@pytest.mark.parametrize("name", ["a.nii.gz", "flipped.nii.gz", "a.mha", "a.mhd", "a.nrrd"])
def test_a_known_voxel_ends_at_z_y_x_for_every_file_type(tmp_path, name):
    path = tmp_path / name
    write = write_meta_image if name.endswith(("mha", "mhd", "nrrd")) else write_nifti
    write(path, **({"flip_x": True} if "flipped" in name else {}))
    image = sample_of(path)["image"]
    assert tuple(image.shape) == (1, 11, 9, 7)
    assert torch.nonzero(image).tolist() == [[0, 4, 3, 2]]


def test_arrays_are_taken_as_z_y_x(tmp_path):
    array = np.zeros((11, 9, 7), np.uint8)
    array[4, 3, 2] = 100
    np.save(tmp_path / "a.npy", array)
    assert torch.nonzero(sample_of(tmp_path / "a.npy")["image"]).tolist() == [[0, 4, 3, 2]]


@pytest.mark.parametrize(
    ("step", "shape"),
    [
        (t.spacing((1.25, 0.8, 1.4)), (21, 9, 4)),
        (t.crop_or_pad((-1, 4, 12)), (11, 4, 12)),
        (t.resize((8, 6, 5)), (8, 6, 5)),
        (t.crop_superior(5), (5, 9, 7)),
    ],
)
def test_sizes_are_along_z_y_x(tmp_path, step, shape):
    assert tuple(sample_of(write_nifti(tmp_path / "a.nii.gz"), step)["image"].shape) == (1, *shape)


def test_crop_superior_selects_the_superior_slices(tmp_path):
    image = sample_of(write_nifti(tmp_path / "a.nii.gz", voxel=(2, 3, 10)), t.crop_superior(5))["image"]
    assert torch.nonzero(image).tolist() == [[0, 4, 3, 2]]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read as a scan"),
        (lambda path: nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.float32), np.eye(4)), path), r"shape \(3, 4, 5, 2\)"),
        (lambda path: nib.save(nib.Nifti1Image(np.full((3, 4, 5), np.nan), np.eye(4)), path), "60 voxels that are NaN or Inf"),
    ],
)
def test_a_file_that_is_not_a_volume_is_refused(tmp_path, write, message):
    write(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "a.nii.gz")


def dataset(tmp_path, *, seed=0):
    files = [write_nifti(tmp_path / f"{n}.nii.gz", voxel=(n, 3, 4)) for n in range(5)]
    cases = [FinetuneCase(case_id=str(n), patient_id=str(n), image=file) for n, file in enumerate(files)]
    preprocess = mt.Compose([t.ReadCase(masks=False), t.window(0, 100)])
    random = mt.Compose([*t.flips(0.5, 0.5, 0.5), mt.RandGaussianNoised("image", prob=1.0)])
    return CaseDataset(cases, preprocess, random=random, seed=seed, cache_bytes=1e9)


def test_draws_depend_on_seed_and_draw_index_only(tmp_path):
    one, other = dataset(tmp_path), dataset(tmp_path)
    for draw_index in (3, 1, 8):
        one[draw_index]
    assert torch.equal(one[8]["image"], other[8]["image"])
    assert not torch.equal(one[8]["image"], one[3]["image"])  # the same case in the next epoch
    assert not torch.equal(one[8]["image"], dataset(tmp_path, seed=1)[8]["image"])


def test_cached_samples_are_not_changed_by_augmentation(tmp_path):
    data = dataset(tmp_path)
    data[2]
    before = data.cached[2]["image"].clone()
    data[2], data[7]
    assert torch.equal(data.cached[2]["image"], before)


def test_the_cache_is_bounded_and_says_what_it_holds(tmp_path):
    """Each case has 7 x 9 x 11 voxels of 4 bytes: 2,772 bytes."""
    data = dataset(tmp_path)
    data.cache_bytes, reads, preprocess = 3 * 2772 + 100, [], data.preprocess
    data.preprocess = lambda case: reads.append(case.case_id) or preprocess(case)
    assert data.describe_cache(2).endswith("whose cache holds 60% of them; cache_gb=... sets its size")
    for draw_index in [*range(5), *range(5)]:
        data[draw_index]
    assert reads == ["0", "1", "2", "3", "4", "3", "4"]
    assert dataset(tmp_path).describe_cache(2) == ""


@pytest.mark.parametrize(("count", "batch_size", "workers"), [(23, 4, 2), (24, 4, 3), (5, 8, 2), (23, 4, 0)])
def test_workers_get_contiguous_samples(count, batch_size, workers):
    order = worker_order(count, batch_size=batch_size, workers=workers)
    assert sorted(order) == list(range(count))
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    parts = [batches[worker :: max(workers, 1)] for worker in range(max(workers, 1))]
    jumps = [sum(second[0] != first[-1] + 1 for first, second in itertools.pairwise(part)) for part in parts]
    assert sum(jumps) <= 1  # at the incomplete batch


def test_unreadable_cases_are_collected_instead_of_raised(tmp_path):
    data = dataset(tmp_path)
    (tmp_path / "3.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3\.nii\.gz cannot be read"):
        data[3]
    data.collect_errors = True
    ((name, reason),) = data[3]["errors"]
    assert (name, "cannot be read" in reason) == ("3", True)


def test_flips_mirror_the_axis_of_their_position(tmp_path):
    sample = sample_of(write_nifti(tmp_path / "a.nii.gz"))
    for axis, chances in enumerate(np.eye(3)):
        flipped = mt.Compose(t.flips(*chances))(dict(sample))["image"]
        assert torch.equal(flipped, sample["image"].flip(1 + axis))


def test_ranks_share_an_epoch_and_have_equal_lengths(monkeypatch):
    sampler, indices = EpochSampler(shuffled(7), count=7, seed=3), []
    sampler.set_epoch(4)
    monkeypatch.setattr(dataset_module, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(dataset_module, "rank", lambda rank=rank: rank)
        indices.append(list(sampler))
    assert [len(result) for result in indices] == [4, 4] == [len(sampler)] * 2
    assert {index % 7 for result in indices for index in result} == set(range(7))
    assert {index // 7 for result in indices for index in result} == {4}


def test_another_epoch_has_another_order_and_evaluation_has_none():
    sampler = EpochSampler(shuffled(20), count=20)
    first = list(sampler)
    sampler.set_epoch(1)
    assert [index - 20 for index in sampler] != first
    assert list(EpochSampler(in_order(5), count=5)) == [0, 1, 2, 3, 4]


def test_class_balanced_draws_take_every_class_equally_often():
    classes = np.array([[0]] * 90 + [[1]] * 10)
    drawn = class_balanced(classes)(torch.Generator().manual_seed(0))
    assert 0.35 < classes[drawn].mean() < 0.65


def test_balanced_draws_of_several_labels_take_each_label_equally_often_whatever_their_combinations():
    """18 labels have 2^18 combinations: a rare combination of common labels must not be drawn as often as a common label."""
    labels = np.zeros((1000, 3), int)
    labels[:600, 0] = labels[590:700, 1] = labels[[3], 2] = 1  # 600 and 110 positives, and one case with labels 0 and 2
    drawn = torch.cat([class_balanced(labels)(torch.Generator().manual_seed(seed)) for seed in range(5)]).numpy()
    chosen = np.array([1 / 600, 1 / 110, 1.0]) / 4  # probability of each positive case through each label
    expected = (labels * chosen).sum(1) + (labels.sum(1) == 0) / 300 / 4
    for rows in (slice(0, 3), slice(3, 4), slice(590, 600), slice(600, 700), slice(700, 1000)):
        assert np.isin(drawn, np.arange(1000)[rows]).mean() == pytest.approx(expected[rows].sum(), abs=0.02)
