import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mg3d.evaluation.probes import mirror_rows, negation_rows, side_rows, sided_prompts, swap_sides
from mg3d.evaluation.stress import AS_IT_IS, CHANGES, changed_outputs, changes, stress_rows
from mg3d.glossary import LABELS

SETTINGS = {"n_bootstrap": 20, "seed": 0}


def ramp():
    """[1, 1, 4, 3, 6], a number in each place."""
    return torch.arange(72.0).reshape(1, 1, 4, 3, 6)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_the_grid_and_only_the_first_keeps_the_numbers(name):
    volume = torch.arange(120.0).reshape(1, 1, 12, 2, 5)
    changed = CHANGES[name](volume)
    assert changed.shape == volume.shape
    assert torch.equal(changed, volume) == (name == AS_IT_IS)


def test_flips_and_slice_orders_move_what_they_say():
    volume = ramp()[0, 0]
    found = {name: CHANGES[name](ramp())[0, 0] for name in CHANGES}
    assert torch.equal(found["left and right exchanged"][1, 2], volume[1, 2].flip(0))
    assert torch.equal(found["front and back exchanged"][1, 0], volume[1, 2])
    assert torch.equal(found["head and feet exchanged (slices reversed)"][0], volume[3])
    assert torch.equal(found["slices interleaved (even, then odd)"][:, 0, 0], volume[[0, 2, 1, 3], 0, 0])
    assert torch.equal(found["half turn in the axial plane"], volume.flip(1, 2))
    assert torch.equal(found["upper quarter cut off"][:3], volume[:3])
    assert not found["upper quarter cut off"][3].any()


def test_a_quarter_turn_of_a_square_moves_the_front_to_a_side():
    square = torch.zeros(1, 1, 2, 4, 4)
    square[..., 0, :] = 1
    assert torch.equal(CHANGES["quarter turn in the axial plane"](square)[0, 0, 0].sum(0), torch.tensor([4.0, 0, 0, 0]))


def test_slices_by_name_come_as_text_sorts_them():
    volume = torch.arange(12.0).reshape(1, 1, 12, 1, 1)
    found = CHANGES["slices in the order of names (1, 10, 11, 2)"](volume)
    assert found.flatten().tolist() == [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8]


def test_a_spacing_told_twice_too_large_shows_the_middle_half():
    volume = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 3, 3)
    enlarged = CHANGES["z spacing told twice too large"](volume)[0, 0, :, 1, 1]
    assert enlarged.tolist() == pytest.approx([1.75 + 0.5 * step for step in range(8)], abs=1e-4)
    shrunk = CHANGES["z spacing told half of the true"](volume + 1)[0, 0, :, 1, 1]
    assert shrunk[[0, -1]].tolist() == [0, 0]
    assert (shrunk[2:6] > 0).all()


def test_an_offset_is_in_hu_of_the_window_and_left_out_without_one():
    assert changes((-1000, 1000))["-100 HU"](ramp())[0, 0, 0, 0, 1] == pytest.approx(1 - 0.05)
    assert not any("HU" in name for name in changes(None))


def test_what_is_judged_is_cut_to_the_window_after_the_change():
    made = {AS_IT_IS: CHANGES[AS_IT_IS], "up": lambda volumes: volumes + 0.5}
    batches = lambda: iter([torch.tensor([-1.0, 0.25]).reshape(2, 1, 1, 1, 1), torch.full((1, 1, 1, 1, 1), 0.75)])  # noqa: E731
    found = changed_outputs(lambda volumes: volumes.flatten(1).numpy(), batches, made)
    assert found[AS_IT_IS].ravel().tolist() == [0, 0.25, 0.75]
    assert found["up"].ravel().tolist() == [0, 0.75, 1.0]


def test_what_is_lost_is_the_difference_of_the_two_numbers():
    labels = np.array([[0], [0], [1], [1]])
    scores = {AS_IT_IS: np.array([[1.0], [2], [3], [4]]), "worse": np.array([[1.0], [3], [2], [4]])}
    ranks = {AS_IT_IS: np.array([1, 1, 1, 30]), "worse": np.array([1, 20, 20, 30])}
    first, second = stress_rows(scores, labels, np.arange(4), ranks=ranks, **SETTINGS)
    assert first["auroc"]["value"] == 1.0
    assert (second["auroc"]["value"], second["lost"]["value"]) == (0.75, 0.25)
    assert second["lost of it"]["value"] == 0.5


def test_sides_are_exchanged_as_words_and_back():
    text = "Left lower lobe; RIGHT hilum, right-sided and bright. Leftover."
    assert swap_sides(text) == "Right lower lobe; LEFT hilum, left-sided and bright. Leftover."
    assert swap_sides(swap_sides(text)) == text
    assert sided_prompts()[2 * LABELS.index("Pleural effusion")] == "There is pleural effusion on the left."


def test_a_model_that_does_not_read_no_is_caught():
    labels = np.tile([[1], [0], [1], [0]], 18)
    volumes = F.normalize(torch.tensor([[1.0, 0.2], [0.2, 1.0], [1.0, 0.1], [0.3, 1.0]]), dim=1)
    reads = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).expand(18, 2, 2)
    deaf = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).flip(0).expand(18, 2, 2)
    good = negation_rows(volumes, reads, labels, np.arange(4), **SETTINGS)[-1]
    bad = negation_rows(volumes, deaf, labels, np.arange(4), **SETTINGS)[-1]
    shares = ("here, nearer to X", "absent, nearer to no X")
    assert [good[name]["value"] for name in shares] == [1, 1]
    assert [bad[name]["value"] for name in shares] == [0, 0]
    assert bad["cosine of X and no X"] == pytest.approx(0.6)
    assert (good["AUROC of X alone"]["value"], good["AUROC of the pair"]["value"]) == (1, 1)


def test_mirrored_volumes_tell_a_model_that_knows_sides_from_one_that_does_not():
    left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    volumes, reports = torch.cat([left, right, left]), torch.cat([left, right, left])
    turned = torch.cat([right, left, right])
    knows = mirror_rows(volumes, turned, reports, turned, np.arange(3), **SETTINGS)
    assert [row["right"]["value"] for row in knows] == [1, 1, 1]
    blind = mirror_rows(volumes, volumes, reports, turned, np.arange(3), **SETTINGS)
    assert [row["right"]["value"] for row in blind] == [1, 0, 0]


def test_the_true_side_of_a_mirrored_volume_is_the_other_one():
    left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    prompts = torch.stack([left, right], 1).expand(18, 2, 2)
    sides = np.full((4, 18), -1, np.int8)
    sides[:, 3] = [1, 0, 1, -1]
    volumes, mirrored = torch.cat([left, right, left, right]), torch.cat([right, left, right, left])
    (row,) = side_rows(volumes, mirrored, prompts, sides, np.arange(4), **SETTINGS)
    assert (row["finding"], row["left"], row["right"]) == (LABELS[3], 2, 1)
    assert (row["AUROC, volumes"]["value"], row["AUROC, mirrored volumes"]["value"]) == (1, 1)
    (blind,) = side_rows(volumes, volumes, prompts, sides, np.arange(4), **SETTINGS)
    assert blind["AUROC, mirrored volumes"]["value"] == 0
