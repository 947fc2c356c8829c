import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import logit
from torch.nn import functional as F

from mg3d.evaluation.card_result import RELIABILITY
from mg3d.evaluation.cards import CARDS
from mg3d.evaluation.tables import Bootstrap, format_cell, format_tables
from mg3d.evaluation.thresholds_and_calibration import decision_and_calibration_tables, development_mask
from mg3d.evaluation.zero_shot import (
    MEAN,
    ZeroShotScores,
    classification_rows,
    embed_wordings,
    zero_shot_logits,
    zero_shot_scores,
    zero_shot_tables,
)
from mg3d.glossary import ENSEMBLE, LABELS, PROMPTS, prompts
from mg3d.metrics.classification import auroc

CARD = dataclasses.replace(CARDS["phantom"], n_bootstrap=20, bins=2, wording="there_is", wordings=("there_is", "ct_clip"))


def unit_vectors(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_a_score_is_the_softmax_over_its_prompt_pair():
    volumes, pairs = unit_vectors(4, 6), unit_vectors(3, 2, 6, seed=1)
    scores = zero_shot_scores(volumes, pairs, 5.0)
    assert scores.shape == (4, 3)
    for study in range(4):
        for finding in range(3):
            present, absent = (np.exp(5.0 * float(volumes[study] @ pairs[finding, side])) for side in (0, 1))
            assert scores[study, finding] == pytest.approx(present / (present + absent), abs=1e-6)


def test_a_large_logit_scale_does_not_tie_clear_cases():
    angles = torch.linspace(0.1, 0.5, 9)
    volumes = torch.stack([angles.cos(), angles.sin()], 1)
    scores = zero_shot_scores(volumes, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), 30.0)
    assert (np.diff(scores[:, 0]) < 0).all()


def test_the_ensemble_is_the_mean_direction_of_its_members():
    wordings = (*ENSEMBLE, "original")
    embedded, volumes = unit_vectors(len(wordings), 18, 2, 6), unit_vectors(4, 6, seed=1)
    vectors = {
        text: embedded[index, finding, side]
        for index, wording in enumerate(wordings)
        for finding, label in enumerate(LABELS)
        for side, text in enumerate(prompts(label, wording=wording))
    }
    encoder = SimpleNamespace(embed_texts=lambda reports: torch.stack([vectors[report.report] for report in reports]))
    found = embed_wordings(encoder, wordings)
    assert {*found} == {*wordings, "ensemble"}
    mean = embedded[:-1].mean(0)
    mean = mean / mean.norm(dim=-1, keepdim=True)
    expected = 7 * (volumes[2] @ mean[5, 0] - volumes[2] @ mean[5, 1])
    assert zero_shot_logits(volumes, found["ensemble"], 7.0)[2, 5] == pytest.approx(float(expected), abs=1e-5)


def test_prompts_are_those_of_ct_clip_and_of_the_original():
    assert prompts("Pleural effusion", wording="ct_clip") == ("Pleural effusion is present.", "Pleural effusion is not present.")
    assert prompts("Pleural effusion", wording="original") == ("Pleural effusion.", "not Pleural effusion.")
    assert {*ENSEMBLE} < {*PROMPTS}


def known_scores(cases=60):
    """Labels by parity; logits that are perfect for the first finding and random for the others."""
    labels = np.tile((np.arange(cases) % 2)[:, None], 18).astype(np.int8)
    logits = np.random.default_rng(0).normal(size=(cases, 18))
    logits[:, 0] = np.where(labels[:, 0] == 1, 2.0, -1.0)
    return ZeroShotScores({"there_is": logits, "ct_clip": -logits}, labels, np.array([f"p{number}" for number in range(cases)]))


def test_rows_by_finding_have_auroc_prevalence_and_the_range_over_prompts():
    scores = known_scores()
    scores.labels[:10, 1] = -1
    tables = zero_shot_tables(CARD, scores)
    rows = tables["Zero-shot findings"]
    assert [row["finding"] for row in rows] == [*LABELS, MEAN]
    assert rows[0]["auroc"]["value"] == 1
    assert rows[0]["auroc over prompts"] == "0.000 to 1.000"
    assert (rows[1]["cases"], rows[1]["prevalence"]) == (50, 0.5)
    known = slice(10, None)
    expected = auroc(scores.labels[known, 1], scores.logits["there_is"][known, 1])
    assert rows[1]["auroc"]["value"] == pytest.approx(expected, abs=1e-6)
    assert rows[1]["auroc"]["low"] < expected < rows[1]["auroc"]["high"]
    assert [row["prompts"] for row in tables["Zero-shot by prompts"]] == [
        "there_is (main)", "ct_clip", "mean ± SD over 2 wordings",
    ]  # fmt: skip
    assert tables["Zero-shot by prompts"][-1]["auroc"].startswith("0.500 ± ")  # a model and its opposite


def test_a_single_positive_has_a_value_and_no_interval():
    scores = known_scores()
    scores.labels[:, 0] = 0
    scores.labels[1, 0] = 1
    scores.logits["there_is"][1, 0] = 9.0
    row = classification_rows(scores.labels, scores.logits["there_is"], scores.patients, Bootstrap(20, 0))[0]
    assert row["auroc"]["value"] == 1
    assert np.isnan([row["auroc"]["low"], row["auroc"]["high"]]).all()
    assert format_cell(row["auroc"]) == "1.000 [too few positives (1)]"
    assert "1.000 [too few positives (1)]" in format_tables("", {"findings": [row]})  # brackets are no markup


def decision_rows(tables):
    (rows,) = [rows for name, rows in tables.items() if name.startswith("Decisions at the best f1")]
    return rows


def test_thresholds_are_chosen_on_development_patients_and_applied_to_the_others():
    scores = known_scores()
    rows = decision_rows(decision_and_calibration_tables(CARD, scores))
    assert rows[0]["threshold"] == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert [rows[0][name]["value"] for name in ("f1", "sensitivity", "specificity")] == [1, 1, 1]
    dev = development_mask(scores.patients, CARD.dev_fraction)
    shifted = scores.logits["there_is"].copy()
    shifted[~dev] -= 4  # the threshold of the development patients does not follow
    rows = decision_rows(decision_and_calibration_tables(CARD, scores._replace(logits={"there_is": shifted})))
    assert rows[0]["sensitivity"]["value"] == 0


def test_temperature_scaling_corrects_overconfidence():
    random = np.random.default_rng(1)
    probability = random.uniform(0.05, 0.95, (400, 18))
    labels = (random.random(probability.shape) < probability).astype(np.int8)
    scores = ZeroShotScores({"there_is": 4 * logit(probability)}, labels, np.array([f"p{number}" for number in range(400)]))
    tables = decision_and_calibration_tables(CARD, scores)
    before, after = tables["Calibration, all findings"]
    assert after["temperature"] == pytest.approx(4, rel=0.1)
    assert after["calibration error"]["value"] < 0.02 < 0.1 < before["calibration error"]["value"]
    assert after["brier"]["value"] < before["brier"]["value"]
    low, high = tables[RELIABILITY]
    test = ~development_mask(scores.patients, CARD.dev_fraction)
    assert low["cases"] + high["cases"] == test.sum() * 18
    below = logit(probability[test]) <= 0
    assert low["frequency"]["value"] == pytest.approx(labels[test][below].mean(), abs=1e-6)


def test_without_known_labels_there_is_no_decision():
    scores = known_scores()
    assert decision_and_calibration_tables(CARD, scores._replace(labels=np.full_like(scores.labels, -1))) == {}


def test_development_patients_are_whole_and_do_not_depend_on_the_other_patients():
    patients = np.array([f"ct_rate/valid_{number // 2}" for number in range(2000)])
    dev = development_mask(patients, 0.2)
    assert (dev[::2] == dev[1::2]).all()
    assert dev.mean() == pytest.approx(0.2, abs=0.04)
    assert (development_mask(patients[::-1][:500], 0.2) == dev[::-1][:500]).all()
