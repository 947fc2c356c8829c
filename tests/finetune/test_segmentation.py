"""Masks go from the file to the network and back to the file's own voxels, and are scored there."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from mg3d.finetune import data_check
from mg3d.finetune import transforms as t
from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.data_check import check_structures, inspect_files, mask_error
from mg3d.finetune.images import write_mask
from mg3d.finetune.loop import predict
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.segmentation import LOSSES, Segmentation, keep_largest_components

SHAPE = (19, 23, 11)
AFFINES = {
    "RAS": np.diag([1.5, 1.0, 3.0, 1.0]),
    "LPS": np.diag([-1.5, -1.0, 3.0, 1.0]),
    "slices first": np.array([[0, 0, -1.0, 9], [0, 1.5, 0, -4], [3.0, 0, 0, 7], [0, 0, 0, 1]]),
    "oblique": np.array([[1.5, 0, 0, 5], [0, -1.0, 0, -6], [0, 0, 3.0, 7], [0, 0, 0, 1]]),
}
AFFINES["oblique"][:3, :3] = Rotation.from_euler("xyz", [12, -20, 31], degrees=True).as_matrix() @ AFFINES["oblique"][:3, :3]


class Echo(nn.Module):
    """Takes voxels above half of the window for the structure (or, with two, those above 0.9 for the second)."""

    def __init__(self, structures=1):
        super().__init__()
        self.structures, self.nothing, self.encoder = structures, nn.Parameter(torch.zeros(1)), nn.Identity()

    def forward(self, volume):
        logits = [0 * volume + 0.5, volume] if self.structures == 1 else [0 * volume + 0.5, volume, 3 * volume - 1.8]
        return 40 * torch.cat(logits, 1)


def segmentation(
    *steps, outputs=("lesion",), patch_size=(8, 8, 8), count=2, augment=(), balanced_classes=0, settings=None, **options
):
    crop = t.foreground_patches(patch_size, count, balanced_classes=balanced_classes)
    return Segmentation(
        settings or FinetuneSettings(num_workers=0, accelerator="cpu"), outputs=outputs, patch_size=patch_size,
        preprocess=[*steps, t.window(0.0, 1.0), t.pad(patch_size)], crop=[crop], augment=augment, **options,
    )  # fmt: skip


def write_case(folder, affine, mask, name="one"):
    image = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image((mask > 0).astype(np.float32) * np.where(mask == 2, 1.0, 0.8).astype(np.float32), affine), image)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / f"{name}_mask.nii.gz")
    return FinetuneCase(case_id=name, patient_id=name, image=image, mask=folder / f"{name}_mask.nii.gz")


def few_voxels():
    mask = np.zeros(SHAPE, np.uint8)
    for voxel in ((2, 17, 9), (16, 3, 1), (16, 4, 1), (9, 11, 5)):
        mask[voxel] = 1
    return mask


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("name", AFFINES)
def test_single_voxels_return_to_their_position_in_the_file(name, tta, tmp_path):
    case = write_case(tmp_path, AFFINES[name], few_voxels())
    settings = FinetuneSettings(tta=tta, num_workers=0, accelerator="cpu")
    task_type = segmentation(t.window(0.0, 1.0), t.crop_foreground(), settings=settings)
    table = predict(task_type, Echo(), [case], mask_folder=tmp_path / "masks")
    written = nib.load(tmp_path / "masks" / "one.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), few_voxels())
    np.testing.assert_allclose(written.affine, AFFINES[name], atol=1e-5)
    assert table.loc[0, ["dice/lesion", "nsd/lesion", "hd95/lesion"]].tolist() == [1.0, 1.0, 0.0]
    assert table.loc[0, "volume_ml/lesion"] == pytest.approx(4 * 4.5 / 1000)


@pytest.mark.parametrize("name", AFFINES)
def test_a_resampled_mask_returns_to_its_position(name, tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:10, 10:20, 2:9] = 1
    case = write_case(tmp_path, AFFINES[name], mask)
    table = predict(segmentation(t.spacing((2.0, 0.9, 1.1))), Echo(), [case], mask_folder=tmp_path / "masks")
    written = np.asarray(nib.load(tmp_path / "masks" / "one.nii.gz").dataobj)
    assert table.loc[0, "dice/lesion"] > 0.9
    np.testing.assert_allclose(np.argwhere(written).mean(0), np.argwhere(mask).mean(0), atol=0.2)


def test_several_structures_keep_their_values(tmp_path):
    mask = 2 * few_voxels()
    mask[3:9, 2:8, 2:5] = 1
    case = write_case(tmp_path, AFFINES["slices first"], mask)
    table = predict(segmentation(outputs=("one", "two")), Echo(2), [case], mask_folder=tmp_path / "masks")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "masks" / "one.nii.gz").dataobj), mask)
    assert table.loc[0, ["dice/one", "dice/two"]].tolist() == [1.0, 1.0]


def test_worker_processes_keep_the_transform_history(tmp_path):
    cases = [write_case(tmp_path, AFFINES[name], few_voxels(), name=name) for name in ("LPS", "oblique")]
    task_type = segmentation(settings=FinetuneSettings(num_workers=1, accelerator="cpu"))
    assert predict(task_type, Echo(), cases, mask_folder=None)["dice/lesion"].tolist() == [1.0, 1.0]


def test_a_case_without_a_reference_is_measured_and_not_scored(tmp_path):
    case = dataclasses.replace(write_case(tmp_path, AFFINES["LPS"], few_voxels()), mask=None)
    task_type = segmentation()
    table = predict(task_type, Echo(), [case], mask_folder=tmp_path)
    assert set(table) == {"case_id", "patient_id", "volume_ml/lesion"}
    assert task_type.statistics(table) == {}


def test_validation_measures_only_dice(tmp_path):
    case = write_case(tmp_path, AFFINES["LPS"], few_voxels())
    task_type = segmentation()
    task_type.rows = lambda network, batch, mask_folder=None: task_type.validation_rows(network, batch)
    table = predict(task_type, Echo(), [case], mask_folder=None)
    assert table.loc[0, "dice/lesion"] == 1.0
    assert not any(name.startswith(("nsd", "hd95")) for name in table)


def test_training_patches_keep_image_and_mask_together_and_hold_foreground(tmp_path):
    mask = np.zeros((30, 34, 38), np.uint8)
    mask[3:5, 12:15, 20:26] = 1
    case = write_case(tmp_path, AFFINES["slices first"], mask)
    task_type = segmentation(count=6, augment=[*t.flips(0.5, 0.5, 0.5), t.rotate_90(0.5)])
    data, _ = task_type.training_data([case])
    patches = data[0]
    assert [tuple(patch["image"].shape) for patch in patches] == [(1, 8, 8, 8)] * 6
    assert sum(bool(patch["mask"].any()) for patch in patches) > 1
    for patch in patches:
        assert torch.equal(patch["image"] > 0.5, patch["mask"] > 0.5)
    again = data[0]
    assert all(torch.equal(first["image"], second["image"]) for first, second in zip(patches, again, strict=True))


def test_class_balanced_patches_contain_small_structures_more_often(tmp_path):
    mask = np.zeros((30, 34, 38), np.uint8)
    mask[2:16, 2:16, 2:30] = 1
    mask[25, 30, 35] = 2
    case = write_case(tmp_path, AFFINES["RAS"], mask)
    fractions = []
    for balanced_classes in (0, 2):
        settings = FinetuneSettings(augment=False)
        task_type = segmentation(outputs=("one", "two"), count=40, balanced_classes=balanced_classes, settings=settings)
        data, _ = task_type.training_data([case])
        fractions.append(np.mean([bool((patch["mask"] == 2).any()) for patch in data[0]]))
    assert fractions[0] < 0.12
    assert 0.12 < fractions[1] < 0.5


def test_only_the_largest_component_of_each_structure_is_kept():
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[0, 0, :3], labels[4, 5, 5:], labels[2, 2, 2:4], labels[3, 3, 4] = 1, 1, 2, 2  # the last one touches by a corner
    expected = labels.copy()
    expected[4, 5, 5:] = expected[3, 3, 4] = 0
    assert np.array_equal(keep_largest_components(labels), expected)
    assert not keep_largest_components(0 * labels).any()


def test_gaussian_windows_trust_their_centres():
    """Two windows of 8 that overlap by 4, predicting 0 and 1: half way between their centres both count equally."""
    calls = iter([0.0, 1.0])

    class Constant(nn.Module):
        def forward(self, volume):
            value = torch.full_like(volume[:1], next(calls)), torch.full_like(volume[:1], next(calls))
            return torch.cat([torch.zeros_like(volume), torch.cat(value)], 1)

    task_type = segmentation(settings=FinetuneSettings(overlap=0.5, window_weighting="gaussian"))
    probability = task_type._sliding_windows(Constant(), torch.zeros(1, 1, 12, 8, 8))[0, 1, :, 4, 4]
    assert torch.all(probability[:4] == probability[0])
    assert torch.all(torch.diff(probability[4:8]) > 0)
    assert float(probability[5] + probability[6]) == pytest.approx(float(probability[0] + probability[11]), abs=0.02)


def test_losses_are_the_formulas():
    """Two classes, two voxels: probabilities (0.8, 0.4) of the structure, which is in the first voxel alone."""
    logits = torch.log(torch.tensor([[[0.2, 0.6], [0.8, 0.4]]])).reshape(1, 2, 1, 1, 2)
    truth = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    outside = 1 - 2 * 0.6 / (0.8 + 1)
    inside = 1 - 2 * 0.8 / (1.2 + 1)
    entropy = -(np.log(0.8) + np.log(0.6)) / 2
    assert LOSSES["dice"](include_background=True)(logits, truth).item() == pytest.approx((outside + inside) / 2, abs=1e-4)
    assert LOSSES["dice_ce"](include_background=False)(logits, truth).item() == pytest.approx(inside + entropy, abs=1e-4)
    squares = [1 - 2 * 0.6 / (0.2**2 + 0.6**2 + 1), 1 - 2 * 0.8 / (0.8**2 + 0.4**2 + 1)]
    result = LOSSES["dice_ce_squared"](include_background=True)(logits, truth).item()
    assert result == pytest.approx(np.mean(squares) + entropy, abs=1e-5)


def test_means_exclude_cases_without_the_structure():
    task_type = segmentation(outputs=("one", "two"))
    table = pd.DataFrame({"dice/one": [0.5, 0.7], "dice/two": [np.nan, 0.2], "hd95/one": [1.0, 3.0], "hd95/two": [np.nan] * 2})
    result = task_type.statistics(table)
    assert result["dice/one"] == pytest.approx(0.6)
    assert result["dice"] == pytest.approx(0.4)
    assert result["hd95"] == pytest.approx(2.0)
    assert np.isnan(result["hd95/two"])
    assert [int(task_type.support_mask(table, name).sum()) for name in ("dice", "dice/two", "hd95/two")] == [2, 1, 0]


def test_figures_show_every_case_and_the_extremes(tmp_path):
    cases = [write_case(tmp_path, AFFINES[name], few_voxels(), name=name) for name in ("LPS", "oblique")]
    task_type = segmentation()
    titles = [title for title, _ in task_type.figures(predict(task_type, Echo(), cases, mask_folder=tmp_path / "masks"))]
    assert titles[0] == "Dice of each case"
    assert len(titles) == 5
    assert titles[1].startswith("Best: ")
    assert titles[1].endswith("Dice 1.000, predicted")


def test_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    cases = [write_case(tmp_path, AFFINES["RAS"], few_voxels(), name=name) for name in "ab"]
    read, inspect = [], data_check._inspect
    monkeypatch.setattr(data_check, "_inspect", lambda case, channel: read.append(case.case_id) or inspect(case, channel))
    cache = tmp_path / "deep" / "files.json"
    for _ in range(2):
        assert not any(mask_error(file, structures=1) for file in inspect_files(cases, cache).values())
    assert sorted(read) == ["a", "b"]
    write_case(tmp_path, AFFINES["RAS"], 3 * few_voxels(), name="b")
    errors = {name: mask_error(file, structures=1) for name, file in inspect_files(cases, cache).items()}
    assert errors == {"a": "", "b": "the mask has undeclared values, [0, 3]; expected integers from 0 to 1"}
    assert read[2:] == ["b"]
    assert json.loads(cache.read_text())


def test_bad_masks_have_a_reason_and_absent_structures_are_refused(tmp_path):
    good = write_case(tmp_path, AFFINES["RAS"], few_voxels(), name="good")
    moved = write_case(tmp_path, AFFINES["LPS"], few_voxels(), name="moved")
    empty = write_case(tmp_path, AFFINES["RAS"], 0 * few_voxels(), name="empty")

    def inspect(*cases):
        return inspect_files(cases, tmp_path / "files.json")

    bad = {
        "it has no mask": FinetuneCase(case_id="x", patient_id="x", image=good.image),
        "not on the grid of its scan": dataclasses.replace(moved, case_id="x", mask=good.mask),
        "the mask has undeclared values": dataclasses.replace(good, case_id="x", mask=good.image),
    }
    for message, case in bad.items():
        assert message in mask_error(inspect(case)["x"], structures=1)
    with pytest.raises(ValueError, match="none of the 1 training cases has a voxel of lesion"):
        check_structures([empty], inspect(empty), ["lesion"])
    check_structures([empty, good], inspect(empty, good), ["lesion"])


@pytest.mark.parametrize("shear", [0.0, 0.2])
def test_the_qform_of_a_written_mask_never_contradicts_its_sform(tmp_path, shear):
    affine = AFFINES["LPS"].copy()
    affine[1, 2] = shear * affine[2, 2]
    write_mask(tmp_path / "mask.nii.gz", np.zeros((4, 5, 6)), affine)
    image = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(image.get_sform(), affine, atol=1e-5)
    qform = image.get_qform(coded=True)[0]
    assert qform is None if shear else np.allclose(qform, affine, atol=1e-4)
