import numpy as np
import pytest
import torch

from mg3d.evaluation.grounding import centre_map, finding_rows, method_rows, score_maps
from mg3d.evaluation.tables import Bootstrap
from mg3d.glossary import LABELS

BOOTSTRAP = Bootstrap(20, 0)


def test_pointing_game_mass_and_dice_equal_hand_computed_values():
    mask = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    mask[0, :, :2, :2] = True  # 8 of 32 voxels, in 2 of the 8 cells of 2 x 2 x 2
    inside, outside = torch.zeros(2, 1, 2, 2, 2)
    inside[0, 0, 0, 0], outside[0, 1, 1, 1] = 1.0, 1.0
    found = score_maps(torch.cat([inside, outside]), mask.expand(2, -1, -1, -1), thresholds=(0.5,))
    assert found.hit.tolist() == [True, False]
    assert found.chance.tolist() == [0.25, 0.25]
    assert found.mask_fraction.tolist() == [0.25, 0.25]
    assert found.mass[0] > 0.5 > found.mass[1]
    assert found.dice[1, 0] == 0


def test_a_map_equal_to_the_mask_has_dice_one_and_a_uniform_map_the_mask_fraction_as_mass():
    mask = torch.zeros(2, 4, 3, 5, dtype=torch.bool)
    mask[:, 1:3, 1, 2:] = True
    found = score_maps(torch.stack([mask[0].float(), torch.ones(4, 3, 5)]), mask)
    assert found.dice[0].tolist() == [1] * 9
    assert found.mass.tolist() == pytest.approx([1, 0.1])
    assert found.dice[1].tolist() == pytest.approx([2 * 6 / 66] * 9)
    centre_hit = np.array([True, False])
    rows = finding_rows(found, np.array([LABELS[0], LABELS[3]]), np.arange(2), centre_hit=centre_hit, bootstrap=BOOTSTRAP)
    assert [row["finding"] for row in rows] == [LABELS[0], LABELS[3], "all"]
    assert [row["pointing at the centre"] for row in rows] == [1, 0, 0.5]
    assert rows[2]["dice"]["value"] == pytest.approx((1 + 2 * 6 / 66) / 2)


def test_the_centre_map_is_a_baseline_in_the_table_of_methods():
    centre = centre_map((3, 4, 5))
    assert centre.shape == (3, 4, 5)
    assert centre[1, 1, 2] == centre[1, 2, 2] == centre.max() == pytest.approx(1 / 1.25)
    assert centre[0, 0, 0] == centre.min() == pytest.approx(1 / (1 + 1 + 2.25 + 4))
    mask = centre > 0.4
    scores = {"centre": score_maps(centre[None], mask[None]), "uniform": score_maps(torch.ones(1, 3, 4, 5), mask[None])}
    rows = method_rows(scores, np.arange(1), BOOTSTRAP)
    assert [(row["map"], row["maps"], row["pointing game"]["value"]) for row in rows] == [("centre", 1, 1), ("uniform", 1, 0)]
    assert (rows[0]["dice"]["value"], rows[0]["threshold"]) == (1, 0.4)


def test_empty_masks_and_maps_are_refused():
    with pytest.raises(ValueError, match="mask is empty"):
        score_maps(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="all zero"):
        score_maps(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2, dtype=torch.bool))
