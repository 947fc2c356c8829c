"""Masks go from the file to the network and back to the file's own voxels, and are judged there."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from mg3d.finetune import usable
from mg3d.finetune.cases import Case
from mg3d.finetune.fit import predict_cases
from mg3d.finetune.kinds.segmentation import LOSSES, Segmentation
from mg3d.finetune.masks import refuse_bad_masks, refuse_empty_masks
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Augment, Preprocess, Task

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
        self.structures, self.nothing = structures, nn.Parameter(torch.zeros(1))

    def forward(self, volume):
        logits = [0 * volume + 0.5, volume] if self.structures == 1 else [0 * volume + 0.5, volume, 3 * volume - 1.8]
        return 40 * torch.cat(logits, 1)


def task_of(outputs=("lesion",), **changes):
    steps = Preprocess(window=(0.0, 1.0), patch=(8, 8, 8), **changes)
    return Task(folder="MSD", title="", kind="segmentation", read_cases=None, outputs=outputs, metric="dice", preprocess=steps)


def write_case(folder, affine, mask, name="one"):
    image = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image((mask > 0).astype(np.float32) * np.where(mask == 2, 1.0, 0.8).astype(np.float32), affine), image)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / f"{name}_mask.nii.gz")
    return Case(case_id=name, patient_id=name, image=image, mask=folder / f"{name}_mask.nii.gz")


def few_voxels():
    mask = np.zeros(SHAPE, np.uint8)
    for place in ((2, 17, 9), (16, 3, 1), (16, 4, 1), (9, 11, 5)):
        mask[place] = 1
    return mask


@pytest.mark.parametrize("axes", ["ours", "original"])
@pytest.mark.parametrize("name", AFFINES)
def test_single_voxels_come_back_to_their_places_in_the_file(name, axes, tmp_path):
    case = write_case(tmp_path, AFFINES[name], few_voxels())
    kind = Segmentation(
        task_of(foreground=True), FinetuneSettings(axes=axes, flips=axes == "ours", num_workers=0, log_dir=str(tmp_path))
    )
    table = predict_cases(kind, Echo(), [case], name="val", masks=tmp_path / "masks")
    written = nib.load(tmp_path / "masks" / "one.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), few_voxels())
    np.testing.assert_allclose(written.affine, AFFINES[name], atol=1e-5)
    assert table.loc[0, ["dice/lesion", "nsd/lesion", "hd95/lesion"]].tolist() == [1.0, 1.0, 0.0]
    assert table.loc[0, "volume_ml/lesion"] == pytest.approx(4 * 4.5 / 1000)


@pytest.mark.parametrize("name", AFFINES)
def test_a_resampled_mask_comes_back_to_its_place(name, tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:10, 10:20, 2:9] = 1
    case = write_case(tmp_path, AFFINES[name], mask)
    kind = Segmentation(task_of(spacing_mm=(2.0, 0.9, 1.1)), FinetuneSettings(num_workers=0, log_dir=str(tmp_path)))
    table = predict_cases(kind, Echo(), [case], name="val", masks=tmp_path / "masks")
    written = np.asarray(nib.load(tmp_path / "masks" / "one.nii.gz").dataobj)
    assert table.loc[0, "dice/lesion"] > 0.9
    np.testing.assert_allclose(np.argwhere(written).mean(0), np.argwhere(mask).mean(0), atol=0.2)


def test_several_structures_keep_their_values(tmp_path):
    mask = 2 * few_voxels()
    mask[3:9, 2:8, 2:5] = 1
    case = write_case(tmp_path, AFFINES["slices first"], mask)
    kind = Segmentation(task_of(("one", "two")), FinetuneSettings(num_workers=0, log_dir=str(tmp_path)))
    table = predict_cases(kind, Echo(2), [case], name="val", masks=tmp_path / "masks")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "masks" / "one.nii.gz").dataobj), mask)
    assert table.loc[0, ["dice/one", "dice/two"]].tolist() == [1.0, 1.0]


def test_worker_processes_keep_the_way_back(tmp_path):
    cases = [write_case(tmp_path, AFFINES[name], few_voxels(), name=name) for name in ("LPS", "oblique")]
    kind = Segmentation(task_of(), FinetuneSettings(num_workers=1, log_dir=str(tmp_path)))
    assert predict_cases(kind, Echo(), cases, name="val", masks=None)["dice/lesion"].tolist() == [1.0, 1.0]


def test_a_case_without_truth_is_measured_and_not_scored(tmp_path):
    case = dataclasses.replace(write_case(tmp_path, AFFINES["LPS"], few_voxels()), mask=None)
    kind = Segmentation(task_of(), FinetuneSettings(num_workers=0, log_dir=str(tmp_path)))
    table = predict_cases(kind, Echo(), [case], name="val", masks=tmp_path)
    assert set(table) == {"case_id", "patient_id", "volume_ml/lesion"}
    assert kind.statistics(table) == {}


def test_validation_measures_dice_alone(tmp_path):
    case = write_case(tmp_path, AFFINES["LPS"], few_voxels())
    kind = Segmentation(task_of(), FinetuneSettings(num_workers=0, log_dir=str(tmp_path)))
    kind.rows = lambda network, batch, masks=None: kind.validation_rows(network, batch)
    table = predict_cases(kind, Echo(), [case], name="val", masks=None)
    assert table.loc[0, "dice/lesion"] == 1.0
    assert not any(name.startswith(("nsd", "hd95")) for name in table)


def test_training_patches_keep_image_and_mask_together_and_hold_foreground(tmp_path):
    mask = np.zeros((30, 34, 38), np.uint8)
    mask[3:5, 12:15, 20:26] = 1
    case = write_case(tmp_path, AFFINES["slices first"], mask)
    task = dataclasses.replace(
        task_of(crops=6, positive_share=1.0), augment=Augment(flip=(0.5, 0.5, 0.5), rot90=0.5),
    )  # fmt: skip
    data, _ = Segmentation(task, FinetuneSettings(log_dir=str(tmp_path))).training_data([case])
    patches = data[0]
    assert [tuple(patch["image"].shape) for patch in patches] == [(1, 8, 8, 8)] * 6
    for patch in patches:
        assert patch["mask"].any()
        assert torch.equal(patch["image"] > 0.5, patch["mask"] > 0.5)
    again = data[0]
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(patches, again, strict=True))


def test_patches_by_structure_show_small_ones_as_often(tmp_path):
    mask = np.zeros((30, 34, 38), np.uint8)
    mask[2:16, 2:16, 2:30] = 1
    mask[25, 30, 35] = 2
    case = write_case(tmp_path, AFFINES["RAS"], mask)
    shares = []
    for by_structure in (False, True):
        task = task_of(("one", "two"), crops=20, positive_share=1.0, by_structure=by_structure)
        data, _ = Segmentation(task, FinetuneSettings(log_dir=str(tmp_path), augment=False)).training_data([case])
        shares.append(np.mean([bool((patch["mask"] == 2).any()) for patch in data[0]]))
    assert shares[0] < 0.2
    assert 0.25 < shares[1] < 0.75


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
    found = LOSSES["dice_ce_squared"](include_background=True)(logits, truth).item()
    assert found == pytest.approx(np.mean(squares) + entropy, abs=1e-5)


def test_means_leave_out_cases_without_the_structure():
    kind = Segmentation(task_of(("one", "two")), FinetuneSettings())
    table = pd.DataFrame({"dice/one": [0.5, 0.7], "dice/two": [np.nan, 0.2], "hd95/one": [1.0, 3.0], "hd95/two": [np.nan] * 2})
    found = kind.statistics(table)
    assert found["dice/one"] == pytest.approx(0.6)
    assert found["dice"] == pytest.approx(0.4)
    assert found["hd95"] == pytest.approx(2.0)
    assert np.isnan(found["hd95/two"])
    assert [int(kind.rests_on(table, name).sum()) for name in ("dice", "dice/two", "hd95/two")] == [2, 1, 0]


def test_figures_show_every_case_and_the_extremes(tmp_path):
    cases = [write_case(tmp_path, AFFINES[name], few_voxels(), name=name) for name in ("LPS", "oblique")]
    kind = Segmentation(task_of(), FinetuneSettings(num_workers=0, log_dir=str(tmp_path)))
    table = predict_cases(kind, Echo(), cases, name="val", masks=tmp_path / "masks")
    titles = [title for title, _ in kind.figures(table)]
    assert titles[0] == "Dice of each case"
    assert len(titles) == 5
    assert titles[1].startswith("Best: ")
    assert titles[1].endswith("Dice 1.000, predicted")


def test_masks_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    cases = [write_case(tmp_path, AFFINES["RAS"], few_voxels(), name=name) for name in "ab"]
    read, kept = [], usable._read
    monkeypatch.setattr(usable, "_read", lambda case, channel: read.append(case.case_id) or kept(case, channel))
    memory = tmp_path / "deep" / "files.json"
    for _ in range(2):
        refuse_bad_masks(cases, usable.survey(cases, memory), structures=1)
    assert sorted(read) == ["a", "b"]
    write_case(tmp_path, AFFINES["RAS"], 3 * few_voxels(), name="b")
    found = usable.survey(cases, memory)
    with pytest.raises(ValueError, match=r"1 of 2 masks hold values that are not declared, such as b: \[0, 3\]; .* from 0 to 1"):
        refuse_bad_masks(cases, found, structures=1)
    assert read[2:] == ["b"]
    assert json.loads(memory.read_text())


def test_bad_masks_are_refused_in_one_sentence(tmp_path):
    good = write_case(tmp_path, AFFINES["RAS"], few_voxels(), name="good")

    def refuse(*cases):
        refuse_bad_masks(cases, usable.survey(cases, tmp_path / "files.json"), structures=1)

    def refuse_empty(*cases):
        refuse_empty_masks(usable.survey(cases, tmp_path / "files.json"), ["lesion"])

    with pytest.raises(ValueError, match=r"1 of 2 cases have no mask, such as \['x'\]"):
        refuse(good, Case(case_id="x", patient_id="x", image=good.image))
    moved = write_case(tmp_path, AFFINES["LPS"], few_voxels(), name="moved")
    with pytest.raises(ValueError, match="not on their scan's grid, such as that of moved"):
        refuse(good, dataclasses.replace(moved, mask=good.mask))
    fractions = dataclasses.replace(good, mask=good.image)
    with pytest.raises(ValueError, match="hold values that are not declared"):
        refuse(fractions)
    empty = write_case(tmp_path, AFFINES["RAS"], 0 * few_voxels(), name="empty")
    with pytest.raises(ValueError, match="none of the 1 training cases has a voxel of lesion"):
        refuse_empty(empty)
    refuse_empty(empty, good)


def test_a_task_without_a_way_back_is_refused():
    with pytest.raises(ValueError, match="cannot undo keep"):
        Segmentation(task_of(keep=(0.5, 0.5, 0.5)), FinetuneSettings())
    with pytest.raises(ValueError, match="loss 'iou' is not known"):
        Segmentation(dataclasses.replace(task_of(), loss="iou"), FinetuneSettings())


def test_patches_follow_the_order_of_the_axes(tmp_path):
    case = write_case(tmp_path, AFFINES["oblique"], few_voxels())
    task = dataclasses.replace(task_of(), preprocess=Preprocess(window=(0.0, 1.0), patch=(4, 6, 8)))
    for axes, shape in (("ours", (1, 4, 6, 8)), ("original", (1, 8, 6, 4))):
        data, _ = Segmentation(task, FinetuneSettings(log_dir=str(tmp_path), axes=axes)).training_data([case])
        assert {tuple(patch["image"].shape) for patch in data[0]} == {shape}


def test_the_task_says_whether_the_loss_counts_the_background():
    logits, truth = torch.randn(1, 2, 3, 4, 5), torch.ones(1, 1, 3, 4, 5)
    found = [
        Segmentation(dataclasses.replace(task_of(), background=background), FinetuneSettings()).criterion(logits, truth)
        for background in (True, False)
    ]
    wanted = [LOSSES["dice"](include_background=background)(logits, truth) for background in (True, False)]
    assert found == wanted
    assert found[0] != found[1]
