import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_card import WINDOW, small_card, write

from mg3d.datasets.evaluation_sets import EVALUATION_SETS
from mg3d.evaluation.card_data import CardData, hash_lines
from mg3d.evaluation.cards import CARDS, check_card_data
from mg3d.glossary import LABELS, PROMPTS
from mg3d.metrics.thresholds import RULES as THRESHOLD_RULES
from mg3d.phantom.generate import VALID, PhantomSettings, kernels, plan
from mg3d.phantom.sampling import sample_findings


def facts_of(folder, card):
    return CardData(folder, card, window_hu=WINDOW).facts()


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_cards_refer_to_existing_rules_and_prompts(card):
    assert EVALUATION_SETS[card.rule].expected_size in (None, card.volumes) or card.name == "phantom"
    assert {*card.wordings} <= {*PROMPTS}
    assert card.wording in {"ensemble", *card.wordings}
    assert card.threshold_rule in THRESHOLD_RULES


def test_cards_have_the_published_counts():
    card = CARDS["ct_rate"]
    assert (card.volumes, card.studies, card.patients) == (3_039, 1_564, 1_304)
    assert CARDS["rad_chestct"].volumes == 3_630


def test_hashes_of_the_phantom_card_match_its_default_set():
    rows = {}
    for study in plan(Path(), PhantomSettings()):
        if study.group == VALID:
            found, _ = sample_findings(np.random.default_rng(study.seed_words), tempered=True)
            for number in range(1, 1 + len(kernels(study))):
                rows[f"ct_rate/{study.name}_{number}"] = [int(found[label]) for label in LABELS]
    card = CARDS["phantom"]
    assert len(rows) == card.volumes
    assert hash_lines(rows) == card.ids_sha256
    assert hash_lines(f"{name} {row}" for name, row in rows.items()) == card.labels_sha256


def test_complete_data_have_no_mark(tmp_path):
    card = small_card()
    facts = facts_of(write(tmp_path), card)
    pinned = dataclasses.replace(card, ids_sha256=facts["ids_sha256"], labels_sha256=facts["labels_sha256"])
    assert check_card_data(pinned, facts, allow_partial=False) == check_card_data(pinned, facts, allow_partial=True) == ""


@pytest.mark.parametrize(
    ("data", "card", "refusal", "mark"),
    [
        ({"patients": 2}, {"ids_sha256": "0" * 64}, "8 volumes instead of 12; 4 studies instead of 6", "PARTIAL 8/12"),
        ({}, {"labels_sha256": "0" * 64}, "labels with hash", "PARTIAL 12/12 (labels with hash"),
        ({}, {"label_source": "corrected"}, "labels from test instead of corrected", "PARTIAL 12/12 (labels from test"),
        ({}, {"crop": "body"}, "crop 'unknown' instead of 'body'", "PARTIAL 12/12 (crop 'unknown'"),
    ],
)
def test_data_that_differ_from_the_card_are_refused_or_marked(tmp_path, data, card, refusal, mark):
    card = small_card(**card)
    facts = facts_of(write(tmp_path, **data), card)
    with pytest.raises(ValueError, match=refusal):
        check_card_data(card, facts, allow_partial=False)
    assert check_card_data(card, facts, allow_partial=True).startswith(mark)


def test_more_volumes_than_the_card_lists_are_always_refused(tmp_path):
    facts = facts_of(write(tmp_path), small_card())
    with pytest.raises(ValueError, match="found 12 volumes, but card phantom v1 lists 11"):
        check_card_data(small_card(volumes=11), facts, allow_partial=True)


def test_a_folder_without_a_listed_volume_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has none of the 3,630 volumes"):
        CardData(write(tmp_path), CARDS["rad_chestct"], window_hu=WINDOW)


def test_volumes_keep_their_labels_reports_and_voxels_in_the_order_of_the_list(tmp_path):
    data = CardData(write(tmp_path), small_card(), window_hu=WINDOW)
    assert data.volume_ids[:3] == ["ct_rate/train_0_0_0", "ct_rate/train_0_0_1", "ct_rate/train_0_1_0"]
    assert data.first_volumes.tolist() == [0, 2, 4, 6, 8, 10]
    assert data.labels[4].tolist() == [(1 + label) % 2 for label in range(18)]
    assert "in study 101" in data.reports()[3].report
    first, second = data.batches([1, 7, 2], size=2)
    assert first.shape == (2, 1, 16, 12, 8)
    assert second.shape == (1, 1, 16, 12, 8)
    assert float(first[1].mean()) == pytest.approx(7 / 2000)  # stored as -1000 + its row
