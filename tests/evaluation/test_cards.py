import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_card import WINDOW, small_card, write

from mg3d.datasets.evaluation_sets import RULES
from mg3d.evaluation.cards import CARDS, find_card, partial_mark
from mg3d.evaluation.cases import Cases, text_hash
from mg3d.glossary import LABELS, PROMPTS
from mg3d.metrics.thresholds import RULES as THRESHOLD_RULES
from mg3d.phantom.generate import VALID, PhantomSettings, kernels, plan
from mg3d.phantom.sampling import sample_findings


def facts_of(folder, card):
    return Cases(folder, card, window_hu=WINDOW).facts()


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_every_card_names_what_there_is(card):
    assert RULES[card.rule].expected in (None, card.volumes) or card.name == "phantom"
    assert {*card.wordings} <= {*PROMPTS}
    assert card.wording in {"ensemble", *card.wordings}
    assert card.threshold_rule in THRESHOLD_RULES


def test_the_field_s_counts_stand_in_the_cards():
    card = find_card("ct_rate")
    assert (card.volumes, card.studies, card.patients) == (3_039, 1_564, 1_304)
    assert find_card("rad_chestct").volumes == 3_630


def test_the_phantom_s_hashes_are_those_of_its_default_set():
    rows = {}
    for study in plan(Path(), PhantomSettings()):
        if study.group == VALID:
            found, _ = sample_findings(np.random.default_rng(study.words), tempered=True)
            for number in range(1, 1 + len(kernels(study))):
                rows[f"ct_rate/{study.name}_{number}"] = [int(found[label]) for label in LABELS]
    card = find_card("phantom")
    assert len(rows) == card.volumes
    assert text_hash(rows) == card.ids_sha256
    assert text_hash(f"{name} {row}" for name, row in rows.items()) == card.labels_sha256


def test_whole_data_have_no_mark(tmp_path):
    card = small_card()
    facts = facts_of(write(tmp_path), card)
    pinned = dataclasses.replace(card, ids_sha256=facts["ids_sha256"], labels_sha256=facts["labels_sha256"])
    assert partial_mark(pinned, facts, partial=False) == partial_mark(pinned, facts, partial=True) == ""


def test_a_half_downloaded_set_is_refused_or_marked(tmp_path):
    card = small_card(ids_sha256="0" * 64)
    facts = facts_of(write(tmp_path, patients=2), card)
    with pytest.raises(ValueError, match="8 volumes instead of 12; 4 studies instead of 6; 2 patients instead of 3"):
        partial_mark(card, facts, partial=False)
    assert partial_mark(card, facts, partial=True) == "PARTIAL 8/12"


def test_changed_labels_are_refused_or_marked(tmp_path):
    card = small_card()
    card = dataclasses.replace(card, labels_sha256=facts_of(write(tmp_path), card)["labels_sha256"])
    facts = facts_of(write(tmp_path, first=1), card)
    with pytest.raises(ValueError, match="labels with the hash"):
        partial_mark(card, facts, partial=False)
    assert partial_mark(card, facts, partial=True).startswith("PARTIAL 12/12 (labels with the hash")


def test_labels_of_another_source_and_another_crop_are_refused(tmp_path):
    card = small_card(label_source="corrected", crop="box of the largest body")
    with pytest.raises(ValueError, match="labels by test instead of corrected; volumes cut by 'not told'"):
        partial_mark(card, facts_of(write(tmp_path), card), partial=False)


def test_more_volumes_than_the_card_lists_are_other_data(tmp_path):
    card = small_card(volumes=11)
    with pytest.raises(ValueError, match="other data"):
        partial_mark(card, facts_of(write(tmp_path), card), partial=True)


def test_a_folder_without_a_listed_volume_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds none of the 3,630 volumes"):
        Cases(write(tmp_path), find_card("rad_chestct"), window_hu=WINDOW)


def test_cases_come_in_the_list_s_order_with_their_own_labels_reports_and_voxels(tmp_path):
    cases = Cases(write(tmp_path), small_card(), window_hu=WINDOW)
    assert cases.ids[:3] == ["ct_rate/train_0_0_0", "ct_rate/train_0_0_1", "ct_rate/train_0_1_0"]
    assert cases.first.tolist() == [0, 2, 4, 6, 8, 10]
    assert cases.labels[4].tolist() == [(1 + label) % 2 for label in range(18)]
    assert "in study 101" in cases.reports()[3].report
    first, second = cases.batches([1, 7, 2], size=2)
    assert first.shape == (2, 1, 16, 12, 8)
    assert second.shape == (1, 1, 16, 12, 8)
    assert float(first[1].mean()) == pytest.approx(7 / 2000)  # stored as -1000 + its row
