import numpy as np
import pytest
import torch

from mg3d.evaluation.content import content_rows, read_reports, truth_content
from mg3d.evaluation.explorer import (
    Sentences,
    all_pairs,
    batch_row,
    examples,
    histogram_rows,
    meaning_codes,
    precision_rows,
    threshold_rows,
)
from mg3d.evaluation.grounding import compared_rows, dice_rows, ground, grounding_rows, middle_map
from mg3d.evaluation.truth import mask_path, meanings_of, read_masks, sides_of
from mg3d.glossary import LABELS
from mg3d.phantom.case import make_case
from mg3d.phantom.generate import PhantomSettings, draw, generate, plan, read_truth
from mg3d.sentence_spans import report_units
from mg3d.settings.schema import CROP

SETTINGS = {"n_bootstrap": 20, "seed": 0}


def test_pointing_mass_and_dice_are_those_computed_by_hand():
    mask = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    mask[0, :, :2, :2] = True  # 8 of 32 voxels, in 2 of the 8 cells of 2 x 2 x 2
    inside, outside = torch.zeros(2, 1, 2, 2, 2)
    inside[0, 0, 0, 0], outside[0, 1, 1, 1] = 1.0, 1.0
    found = ground(torch.cat([inside, outside]), mask.expand(2, -1, -1, -1), thresholds=(0.5,))
    assert found.hit.tolist() == [True, False]
    assert found.chance.tolist() == [0.25, 0.25]
    assert found.mask.tolist() == [0.25, 0.25]
    assert found.mass[0] > 0.5 > found.mass[1]
    assert found.dice[1, 0] == 0


def test_a_map_that_is_the_mask_has_dice_one_and_an_even_map_the_mask_s_share():
    mask = torch.zeros(2, 4, 3, 5, dtype=torch.bool)
    mask[:, 1:3, 1, 2:] = True
    found = ground(torch.stack([mask[0].float(), torch.ones(4, 3, 5)]), mask, thresholds=(0.5, 0.9))
    assert found.dice[0].tolist() == [1, 1]
    assert found.mass.tolist() == pytest.approx([1, 0.1])
    assert found.dice[1].tolist() == pytest.approx([2 * 6 / 66] * 2)
    rows = grounding_rows(found, np.array([0, 3]), np.arange(2), LABELS, middle=np.array([True, False]), **SETTINGS)
    assert [row["finding"] for row in rows] == [LABELS[0], LABELS[3], "all"]
    assert [row["pointing at the middle"] for row in rows] == [1, 0, 0.5]
    rows = dice_rows({"a": found, "b": found}, np.arange(2), (0.5, 0.9), **SETTINGS)
    assert [row["threshold, of the map's maximum"] for row in rows] == [0.5, 0.9]
    assert rows[0]["a"] == rows[0]["b"]
    assert rows[0]["a"]["value"] == pytest.approx((1 + 2 * 6 / 66) / 2)


def test_maps_that_know_nothing_stand_beside_the_others():
    middle = middle_map((3, 4, 5))
    assert middle.shape == (3, 4, 5)
    assert middle[1, 1, 2] == middle[1, 2, 2] == middle.max() == pytest.approx(1 / 1.25)
    assert middle[0, 0, 0] == middle.min() == pytest.approx(1 / (1 + 1 + 2.25 + 4))
    mask = middle > 0.4
    scores = {"middle": ground(middle[None], mask[None]), "even": ground(torch.ones(1, 3, 4, 5), mask[None])}
    rows = compared_rows(scores, np.arange(1), **SETTINGS)
    assert [(row["map"], row["maps"], row["pointing game"]["value"]) for row in rows] == [("middle", 1, 1), ("even", 1, 0)]
    assert (rows[0]["dice"]["value"], rows[0]["at"]) == (1, 0.4)


def test_empty_masks_and_maps_are_refused():
    with pytest.raises(ValueError, match="mask is empty"):
        ground(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="zeros alone"):
        ground(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2, dtype=torch.bool))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    settings = PhantomSettings(train_patients=0, valid_patients=3, ctrg_cases=0, grid=40, second_scans=0)
    generate(root, settings, workers=1, masks=True)
    return root, list(plan(root, settings))


def test_masks_lie_where_the_case_has_them_on_the_model_s_grid(phantom):
    root, studies = phantom
    drawn = draw(studies[0]).mask
    edges = [round(side * (1 - keep) / 2) for side, keep in zip(drawn.shape, CROP, strict=True)]
    cut = drawn[tuple(slice(edge, side - edge) for edge, side in zip(edges, drawn.shape, strict=True))]
    masks = read_masks(mask_path(root, f"ct_rate/{studies[0].name}_1"), cut.shape)
    assert masks.shape == (18, *cut.shape)
    for place in range(18):
        assert (masks[place].numpy() == (cut == place + 1)).all()
    assert masks.any()


def test_the_phantom_s_own_reports_are_read_as_its_truth_says():
    truths = [make_case((7, 1, patient, 0), voxels_in_plane=24, style="ctrate", tempered=True) for patient in range(40)]
    told = [f"{case.report.findings}\n{case.report.impression}" for case in truths]
    (true, constant) = content_rows(
        {"true": told, "constant": ["The heart is of normal size."] * 40}, [c.truth() for c in truths], np.arange(40), **SETTINGS
    )
    assert true["precision"]["value"] > 0.97
    assert true["recall"]["value"] > 0.95
    assert true["side"]["value"] == 1.0
    assert true["size error, mm"]["value"] <= 1.5
    assert (constant["recall"]["value"], constant["sides told"]) == (0, 0)


def test_a_report_is_read_for_finding_side_and_size():
    report = "A 12 mm nodule lies in the left upper lobe. There is no pleural effusion. Cardiomegaly is present."
    found = read_reports([report, "Hazy increase of lung density on both sides."])
    nodule, opacity = LABELS.index("Lung nodule"), LABELS.index("Lung opacity")
    assert [LABELS[place] for place in np.flatnonzero(found.present[0])] == ["Cardiomegaly", "Lung nodule"]
    assert (found.side[0, nodule], found.size_mm[0, nodule]) == (1, 12)
    assert (found.present[1, opacity], found.side[1, opacity]) == (1, 3)


def test_a_wrong_side_and_size_are_told():
    truth = {"findings": [{"label": "Lung nodule", "side": "left", "size_mm": 10.0}]}
    rows = content_rows({"one": ["A 14 mm nodule lies in the right upper lobe."]}, [truth], np.arange(1), **SETTINGS)
    assert (rows[0]["f1"]["value"], rows[0]["side"]["value"], rows[0]["size error, mm"]["value"]) == (1, 0, 4)
    assert truth_content([truth]).side[0, LABELS.index("Lung nodule")] == 1


def test_sides_and_meanings_come_from_the_truth(phantom):
    truths = [read_truth(study) for study in phantom[1]]
    sides = sides_of(truths)
    for row, truth in zip(sides, truths, strict=True):
        known = {f["label"]: f["side"] for f in truth["findings"] if f["side"] in {"left", "right"}}
        assert {LABELS[place]: ["right", "left"][side] for place, side in enumerate(row) if side >= 0} == known
    report, units = report_units(truths[0]["report"]["findings"], truths[0]["report"]["impression"])
    found = meanings_of(truths[0], report, [(unit.start, unit.end) for unit in units if unit.kind == 1])
    said = {f"{c['label']}|{c['polarity']}|{c['location']}" for c in truths[0]["clauses"] if c["label"]}
    assert {name for name in found if name} <= said
    assert sum(name is not None for name in found) > len(found) / 3


def few_sentences():
    """Five sentences of four patients; cosines to the first: .8, .6, 1 (its own patient), 0 (a denial)."""
    vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [2.0, 0.0], [0.0, 1.0]])
    return Sentences(
        vectors,
        torch.tensor([1, 1, 1, 1, -1], dtype=torch.int8),
        torch.tensor([0, 1, 2, 0, 3]),
        meaning_codes(["a", "a", "b", None, "b"]),
    )


def test_pairs_are_of_different_patients_and_one_polarity():
    pairs = all_pairs(few_sentences())
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    assert pairs.cosine.tolist() == pytest.approx([0.8, 0.6, 0.96, 0.8, 0.6])
    assert pairs.equal.tolist() == [True, False, False, False, False]
    assert pairs.known.tolist() == [True, True, True, False, False]


def test_thresholds_are_judged_by_the_known_pairs():
    (low, high) = threshold_rows(all_pairs(few_sentences()), (0.7, 0.9))
    assert (low["pairs at or above"], low["precision of same"], low["recall of same"]) == (0.6, 0.5, 1)
    assert (high["precision of same"], high["recall of same"], high["false negatives at or below"]) == (0, 0, 0.5)
    assert sum(row["same"] + row["different"] + row["not known"] for row in histogram_rows(all_pairs(few_sentences()))) == 5


def test_examples_name_the_pairs_about_the_thresholds():
    rows = examples(all_pairs(few_sentences()), ["zero", "one", "two", "three", "four"], same_above=0.9, differ_below=0.65)
    found = {(row["called"], row["first"], row["second"]) for row in rows}
    assert ("same, barely", "one", "two") in found
    assert ("same, though known to differ", "one", "two") in found
    assert ("ignored, almost the same", "zero", "one") in found
    assert ("different, barely", "zero", "two") in found


def test_precision_counts_the_nearest_of_other_patients_and_batches_the_wrong_pairs():
    (row,) = precision_rows(few_sentences(), ks=(1,), **SETTINGS)
    # Asked are 0 and 1 (a), 2 and 4 (b): the nearest to 0 is 1, to 1 is 2, to 2 is 1, to 4 is 2.
    assert (row["sentences"], row["precision"]["value"]) == (4, 0.5)
    assert row["chance"] == pytest.approx(1 / 3)
    (batch,) = batch_row(few_sentences(), patients=5, same_above=0.9, differ_below=0.8, **SETTINGS)
    assert batch["batches"] == 1
    assert batch["false negatives"]["value"] == 0.5
    assert batch["false positives"]["value"] == 1
