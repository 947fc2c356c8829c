import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mg3d.evaluation.baselines import logistic_scores, pooled_volume
from mg3d.evaluation.matching import pair_shares
from mg3d.evaluation.reconstruction import ReconstructionError
from mg3d.evaluation.retrieval import retrieval_table
from mg3d.evaluation.zero_shot import zero_shot_scores, zero_shot_table


def test_zero_shot_is_the_softmax_over_a_pair_of_prompts():
    volumes, prompts = F.normalize(torch.randn(4, 5), dim=-1), F.normalize(torch.randn(3, 2, 5), dim=-1)
    scores = zero_shot_scores(volumes, prompts, 7.0)
    gap = 7.0 * (volumes[2] @ prompts[1, 0] - volumes[2] @ prompts[1, 1])
    assert scores.shape == (4, 3)
    assert scores[2, 1] == pytest.approx(torch.sigmoid(gap).item(), abs=1e-6)
    flipped = zero_shot_scores(volumes, prompts.flip(1), 7.0)
    np.testing.assert_allclose(flipped, 1 - scores, atol=1e-6)


def test_the_table_has_an_interval_around_every_number():
    generator = np.random.default_rng(0)
    present = generator.integers(0, 2, (80, 2))
    scores = present + generator.normal(size=(80, 2))
    rows = zero_shot_table(scores, present, visible=present, patients=np.arange(80), names=("one", "two"))
    assert [row["finding"] for row in rows] == ["one", "two"]
    assert all(row["low"] < row["auroc"] < row["high"] for row in rows)
    assert all(row["auroc"] == row["auroc_visible"] for row in rows)


def test_equal_reports_are_one_item_of_the_gallery():
    embedded = np.eye(4)
    rows = retrieval_table(embedded, embedded, report_keys=["a", "b", "a", "c"], patients=np.arange(4))
    forward, back = rows
    assert (forward["gallery"], forward["queries"], back["gallery"], back["queries"]) == (3, 4, 4, 3)
    assert back["recall_at_1"] == 1.0
    assert back["chance_at_1"] == pytest.approx((0.5 + 0.25 + 0.25) / 3)


def test_a_linear_rule_is_learned_and_unknown_labels_are_left_out():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(200, 6))
    labels = np.stack([features[:, 0] > 0, features[:, 0] > 0, np.zeros(200)], 1).astype(np.int8)
    labels[100:, 1] = -1
    scores = logistic_scores(features[:150], labels[:150], features[150:])
    assert np.corrcoef(scores[:, 0], features[150:, 0])[0, 1] > 0.8
    assert np.corrcoef(scores[:, 1], features[150:, 0])[0, 1] > 0.8
    assert (scores[:, 2] == 0).all()


def test_pooling_takes_block_means_along_every_axis():
    volume = np.arange(16 * 12 * 24, dtype=np.float32).reshape(1, 16, 12, 24)
    pooled = pooled_volume(volume).reshape(8, 6, 8)
    assert pooled[3, 1, 5] == pytest.approx(volume[0, 6:8, 2:4, 15:18].mean())


def test_errors_are_means_over_hidden_voxels_and_hidden_body():
    target = torch.tensor([0.0, 0.5, 1.0, 0.5]).reshape(1, 1, 1, 2, 2)
    hidden = torch.tensor([True, True, True, False]).reshape(1, 1, 1, 2, 2)
    error = ReconstructionError(torch.full((1, 1, 2, 2), 0.5))
    error.update(torch.zeros_like(target), target, hidden)
    error.update(target, target, hidden)
    result = error.result()
    assert result["hidden"] == pytest.approx((0.25 + 1.0) / 6)
    assert result["hidden_mean_image"] == pytest.approx((0.25 + 0.25) / 3)
    assert result["hidden_body"] == pytest.approx(1.25 / 4)
    assert result["hidden_body_mean_image"] == pytest.approx(0.125)


def test_pair_shares_equal_a_loop_over_pairs():
    generator = torch.Generator().manual_seed(5)
    text = torch.randn(30, 3, generator=generator)
    polarity = torch.randint(0, 2, (30,), generator=generator).to(torch.int8) * 2 - 1
    patient = torch.randint(0, 7, (30,), generator=generator)
    meaning = [None if place % 5 == 0 else "abc"[place % 3] for place in range(30)]
    counts = dict.fromkeys(("pairs", "same", "different", "judged", "right", "equal"), 0)
    for i in range(30):
        for j in range(i):
            if patient[i] == patient[j]:
                continue
            cosine, agree = F.cosine_similarity(text[i], text[j], dim=0), polarity[i] == polarity[j]
            same, known = bool(cosine >= 0.8 and agree), meaning[i] is not None and meaning[j] is not None
            counts["pairs"] += 1
            counts["same"] += same
            counts["different"] += bool(cosine <= 0.3 and agree)
            counts["judged"] += same and known
            counts["right"] += same and known and meaning[i] == meaning[j]
            counts["equal"] += known and meaning[i] == meaning[j]
    shares = pair_shares(text, polarity=polarity, patient=patient, meaning=meaning, same_above=0.8, differ_below=0.3)
    assert shares["pairs"] == counts["pairs"]
    assert shares["same"] == pytest.approx(counts["same"] / counts["pairs"])
    assert shares["different"] == pytest.approx(counts["different"] / counts["pairs"])
    assert shares["same"] + shares["different"] + shares["ignored"] == pytest.approx(1)
    assert shares["precision_same"] == pytest.approx(counts["right"] / counts["judged"])
    assert shares["recall_same"] == pytest.approx(counts["right"] / counts["equal"])
