import numpy as np
import pytest
import torch

from mg3d.evaluation.stress_test import CORRUPTIONS, UNCHANGED, corruptions, stress_rows
from mg3d.evaluation.tables import Bootstrap


def ramp():
    """[1, 1, 4, 3, 6], a different value in every voxel."""
    return torch.arange(72.0).reshape(1, 1, 4, 3, 6)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_the_shape_and_only_unchanged_keeps_the_values(name):
    volume = torch.arange(120.0).reshape(1, 1, 12, 2, 5)
    changed = CORRUPTIONS[name](volume)
    assert changed.shape == volume.shape
    assert torch.equal(changed, volume) == (name == UNCHANGED)


def test_flips_and_slice_orders_move_the_voxels_they_name():
    volume = ramp()[0, 0]
    found = {name: corruption(ramp())[0, 0] for name, corruption in CORRUPTIONS.items()}
    assert torch.equal(found["left-right flip"][1, 2], volume[1, 2].flip(0))
    assert torch.equal(found["anterior-posterior flip"][1, 0], volume[1, 2])
    assert torch.equal(found["superior-inferior flip (slices reversed)"][0], volume[3])
    assert torch.equal(found["slices interleaved (even, then odd)"][:, 0, 0], volume[[0, 2, 1, 3], 0, 0])
    assert torch.equal(found["180° axial rotation"], volume.flip(1, 2))
    assert torch.equal(found["upper quarter missing"][:3], volume[:3])
    assert not found["upper quarter missing"][3].any()
    twelve = torch.arange(12.0).reshape(1, 1, 12, 1, 1)
    by_text = CORRUPTIONS["slices sorted as text (1, 10, 11, 2)"](twelve)
    assert by_text.flatten().tolist() == [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8]


def test_a_quarter_turn_moves_the_front_of_a_square_to_a_side():
    square = torch.zeros(1, 1, 2, 4, 4)
    square[..., 0, :] = 1
    assert torch.equal(CORRUPTIONS["90° axial rotation"](square)[0, 0, 0].sum(0), torch.tensor([4.0, 0, 0, 0]))


def test_a_doubled_spacing_shows_the_central_half():
    volume = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 3, 3)
    enlarged = CORRUPTIONS["z spacing 2 x too large"](volume)[0, 0, :, 1, 1]
    assert enlarged.tolist() == pytest.approx([1.75 + 0.5 * step for step in range(8)], abs=1e-4)
    shrunk = CORRUPTIONS["z spacing 2 x too small"](volume + 1)[0, 0, :, 1, 1]
    assert shrunk[[0, -1]].tolist() == [0, 0]
    assert (shrunk[2:6] > 0).all()


def test_offsets_are_in_hu_of_the_window_and_left_out_without_one():
    assert corruptions((-1000, 1000))["-100 HU"](ramp())[0, 0, 0, 0, 1] == pytest.approx(1 - 0.05)
    assert not any("HU" in name for name in corruptions(None))


def test_the_drop_is_the_difference_to_unchanged():
    labels = np.array([[0], [0], [1], [1]])
    scores = {UNCHANGED: np.array([[1.0], [2], [3], [4]]), "worse": np.array([[1.0], [3], [2], [4]])}
    ranks = {UNCHANGED: np.array([1, 1, 1, 30]), "worse": np.array([1, 20, 20, 30])}
    first, second = stress_rows(scores, labels, np.arange(4), ranks=ranks, bootstrap=Bootstrap(20, 0))
    assert first["auroc"]["value"] == 1.0
    assert (second["auroc"]["value"], second["drop"]["value"]) == (0.75, 0.25)
    assert second["drop of recall"]["value"] == 0.5
