import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mg3d.evaluation.zero_shot import macro_interval, zero_shot_scores, zero_shot_table
from mg3d.metrics.classification import auroc, macro_auroc


def directions(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_a_score_is_the_softmax_over_its_own_prompt_pair():
    volumes, prompts = directions(4, 6), directions(3, 2, 6, seed=1)
    scores = zero_shot_scores(volumes, prompts, 5.0)
    assert scores.shape == (4, 3)
    for study in range(4):
        for finding in range(3):
            here, absent = (np.exp(5.0 * float(volumes[study] @ prompts[finding, side])) for side in (0, 1))
            assert scores[study, finding] == pytest.approx(here / (here + absent), abs=1e-6)


def test_swapping_the_prompts_turns_every_auroc_over():
    volumes, prompts = directions(30, 8), directions(4, 2, 8, seed=1)
    labels = np.random.default_rng(0).integers(0, 2, (30, 4))
    scores, swapped = (zero_shot_scores(volumes, pair, 10.0) for pair in (prompts, prompts.flip(1)))
    for place in range(4):
        assert auroc(labels[:, place], scores[:, place]) == pytest.approx(1 - auroc(labels[:, place], swapped[:, place]))


def test_a_sharp_temperature_does_not_tie_clear_cases():
    angles = torch.linspace(0.1, 0.5, 9)
    volumes = torch.stack([angles.cos(), angles.sin()], 1)
    scores = zero_shot_scores(volumes, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), 30.0)
    assert (np.diff(scores[:, 0]) < 0).all()


def test_the_table_has_prevalence_auroc_and_interval_of_what_is_known():
    random = np.random.default_rng(2)
    present = random.integers(0, 2, (60, 2)).astype(np.int8)
    present[:15, 1] = -1
    scores = 0.8 * (present == 1) + random.random((60, 2))
    visible = present * (random.random((60, 2)) < 0.7)
    patients = np.repeat(np.arange(30), 2)
    rows = zero_shot_table(scores, present, visible=visible, patients=patients, names=("Hernia", "Nodule"))
    assert [row["finding"] for row in rows] == ["Hernia", "Nodule"]
    assert rows[1]["prevalence"] == pytest.approx((present[15:, 1] == 1).mean())
    for place, row in enumerate(rows):
        assert row["auroc"] == auroc(present[:, place], scores[:, place])
        assert row["auroc_visible"] == auroc(visible[:, place], scores[:, place])
        assert 0.5 < row["low"] < row["auroc"] < row["high"] <= 1.0


def test_without_truth_the_table_says_nothing_of_visibility():
    present = np.array([[0], [1], [1], [0]])
    rows = zero_shot_table(np.arange(4.0)[:, None], present, visible=None, patients=np.arange(4), names=["Hernia"])
    assert "auroc_visible" not in rows[0]


def test_the_macro_interval_holds_the_macro_and_shrinks_with_more_findings():
    random = np.random.default_rng(3)
    present = random.integers(0, 2, (80, 12))
    scores = present + random.normal(size=present.shape)
    widths = []
    for of in (range(1), range(12)):
        low, high = macro_interval(scores, present, of=of, patients=np.arange(80))
        assert low < macro_auroc(present, scores, of=of) < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]
