import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import logit

from mg3d.evaluation.cards import find_card
from mg3d.evaluation.measure import (
    MEAN,
    RELIABILITY,
    Scores,
    decided_tables,
    dev_part,
    finding_rows,
    logits_by_wording,
    wording_rows,
)
from mg3d.evaluation.results import shown
from mg3d.evaluation.retrieval import ALIKE, directions, jaccard_rows, recall_rows
from mg3d.glossary import ENSEMBLE, LABELS, PROMPTS, prompts
from mg3d.metrics.classification import auroc

CARD = dataclasses.replace(find_card("phantom"), n_bootstrap=20, bins=2, wording="there_is", wordings=("there_is", "ct_clip"))
SETTINGS = {"n_bootstrap": 20, "seed": 0}


def known_scores(cases=60):
    """Labels by parity; logits of a model that is right in the first finding and knows nothing of the others."""
    labels = np.tile((np.arange(cases) % 2)[:, None], 18).astype(np.int8)
    logits = np.random.default_rng(0).normal(size=(cases, 18))
    logits[:, 0] = np.where(labels[:, 0] == 1, 2.0, -1.0)
    return Scores({"there_is": logits, "ct_clip": -logits}, labels, np.array([f"p{number}" for number in range(cases)]))


def test_the_ensemble_is_the_mean_direction_of_its_members():
    generator = torch.Generator().manual_seed(0)
    wordings = (*ENSEMBLE, "original")
    embedded = torch.nn.functional.normalize(torch.randn(len(wordings), 18, 2, 6, generator=generator), dim=-1)
    volumes = torch.nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=-1)
    found = logits_by_wording(volumes, embedded, 7.0, wordings)
    assert {*found} == {*wordings, "ensemble"}
    mean = embedded[:-1].mean(0)
    mean = mean / mean.norm(dim=-1, keepdim=True)
    expected = 7 * (volumes[2] @ mean[5, 0] - volumes[2] @ mean[5, 1])
    assert found["ensemble"][2, 5] == pytest.approx(float(expected), abs=1e-5)


def test_prompts_are_those_of_ct_clip_and_of_the_original():
    assert prompts("Pleural effusion", wording="ct_clip") == ("Pleural effusion is present.", "Pleural effusion is not present.")
    assert prompts("Pleural effusion", wording="original") == ("Pleural effusion.", "not Pleural effusion.")
    assert {*ENSEMBLE} < {*PROMPTS}


def test_one_positive_has_a_number_and_no_interval():
    scores = known_scores()
    scores.labels[:, 0] = 0
    scores.labels[1, 0] = 1
    scores.by_wording["there_is"][1, 0] = 9.0
    row = finding_rows(CARD, scores)[0]
    assert row["auroc"]["value"] == 1
    assert np.isnan([row["auroc"]["low"], row["auroc"]["high"]]).all()
    assert shown(row["auroc"]) == "1.000 [too few positives (1)]"


def test_findings_have_their_own_numbers_and_the_range_over_prompts():
    scores = known_scores()
    scores.labels[:10, 1] = -1
    rows = finding_rows(CARD, scores)
    assert [row["finding"] for row in rows] == [*LABELS, MEAN]
    assert rows[0]["auroc"]["value"] == 1
    assert rows[0]["auroc over prompts"] == "0.000 to 1.000"
    assert rows[1]["cases"] == 50
    known = slice(10, None)
    expected = auroc(scores.labels[known, 1], scores.by_wording["there_is"][known, 1])
    assert rows[1]["auroc"]["value"] == pytest.approx(expected, abs=1e-6)
    assert wording_rows(CARD, scores)[-1] == {"prompts": "over 2 wordings", "auroc": wording_rows(CARD, scores)[-1]["auroc"]}
    assert wording_rows(CARD, scores)[-1]["auroc"].startswith("0.500 ± ")  # a model and its opposite


def test_thresholds_come_from_the_dev_part_and_decide_the_rest():
    scores = known_scores()
    tables = decided_tables(CARD, scores)
    (rows,) = [rows for name, rows in tables.items() if name.startswith("Decisions")]
    assert rows[0]["threshold"] == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert [rows[0][name]["value"] for name in ("f1", "sensitivity", "specificity")] == [1, 1, 1]
    dev = dev_part(scores.patients, CARD.dev_share)
    shifted = scores.by_wording["there_is"].copy()
    shifted[~dev] -= 4  # the dev part's threshold does not follow
    other = decided_tables(CARD, scores._replace(by_wording={"there_is": shifted, "ct_clip": shifted}))
    (rows,) = [rows for name, rows in other.items() if name.startswith("Decisions")]
    assert rows[0]["sensitivity"]["value"] == 0


def test_a_temperature_mends_overconfidence_and_the_table_says_so():
    random = np.random.default_rng(1)
    chance = random.uniform(0.05, 0.95, (400, 18))
    labels = (random.random(chance.shape) < chance).astype(np.int8)
    scores = Scores({"there_is": 4 * logit(chance)}, labels, np.array([f"p{number}" for number in range(400)]))
    tables = decided_tables(CARD, scores)
    before, after = tables["Calibration, all findings"]
    assert after["temperature"] == pytest.approx(4, rel=0.1)
    assert after["calibration error"]["value"] < 0.02 < 0.1 < before["calibration error"]["value"]
    assert after["brier"]["value"] < before["brier"]["value"]
    low, high = tables[RELIABILITY]
    rest = ~dev_part(scores.patients, CARD.dev_share)
    assert low["cases"] + high["cases"] == rest.sum() * 18
    below = logit(chance[rest]) <= 0
    assert low["frequency"]["value"] == pytest.approx(labels[rest][below].mean(), abs=1e-6)


def test_without_known_labels_nothing_is_decided():
    scores = known_scores()
    assert decided_tables(CARD, scores._replace(labels=np.full_like(scores.labels, -1))) == {}


def few():
    """Four studies; 0 and 1 have one text, 2 and 3 one label set; the similarity puts 3's report before 2's own."""
    volumes = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0.6, 0.8], [0, 0, 1.0]])
    reports = np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    labels = np.array([[1, 0], [0, 0], [1, 1], [1, 1]])
    return volumes, reports, labels


def test_alike_reports_are_right_only_where_it_is_said():
    volumes, reports, labels = few()
    parts = {part.name: part for part in directions(volumes, reports, report_keys=["a", "a", "b", "c"], labels=labels)}
    rows, ranks = recall_rows(list(parts.values()), np.arange(4), ks=(1, 2, 3), **SETTINGS)
    assert ranks["volume to report"].tolist() == [1, 1, 2, 1]
    assert ranks[f"volume to report{ALIKE}"].tolist() == [1, 1, 1, 1]
    assert parts["report to volume"].queries.tolist() == [0, 2, 3]
    found = {(row["direction"], row["k"]): row for row in rows}
    assert found["volume to report", 1]["recall"]["value"] == 0.75
    assert found["volume to report", 1]["chance"] == pytest.approx(1 / 3)
    assert ("volume to report", 3) not in found  # all of the gallery
    assert found["volume to report" + ALIKE, 1]["chance"] == pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 2 / 3) / 4)


def test_unknown_labels_make_nothing_alike():
    volumes, reports, labels = few()
    labels = np.where(labels == 1, -1, labels)
    first, _, third, _ = directions(volumes, reports, report_keys=["a", "a", "b", "c"], labels=labels)
    assert (first.right == third.right).all()


def test_like_volumes_are_counted_without_the_query_and_without_its_patient():
    volumes, _, labels = few()
    rows = {
        (row["gallery"], row["k"]): row for row in jaccard_rows(volumes, labels, np.array([0, 0, 1, 1]), ks=(1, 2, 9), **SETTINGS)
    }
    # The gallery is 0, 2 and 3. Nearest: 0 -> 2 (tie with 3, the earlier), 1 -> 0, 2 -> 3, 3 -> 2; Jaccard 1/2, 0, 1, 1.
    assert rows["the query removed", 1]["label jaccard"]["value"] == pytest.approx(2.5 / 4)
    # Without the patient: 0 -> 2, 1 -> 2, 2 -> 0, 3 -> 0; Jaccard 1/2, 0, 1/2, 1/2.
    assert rows["the query's patient removed", 1]["label jaccard"]["value"] == pytest.approx(1.5 / 4)
    assert ("the query removed", 9) not in rows
