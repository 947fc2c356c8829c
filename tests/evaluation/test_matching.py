import numpy as np
import pytest
import torch

from mg3d.evaluation import matching
from mg3d.evaluation.matching import pair_shares


def slow_shares(text, polarity, patient, meaning, *, same_above, differ_below):
    """The same by a loop over pairs."""
    count = dict.fromkeys(("pairs", "same", "different", "judged", "right", "equal"), 0)
    for first in range(len(text)):
        for second in range(first):
            if patient[first] == patient[second]:
                continue
            cosine = float(text[first] @ text[second] / text[first].norm() / text[second].norm())
            agree = polarity[first] == polarity[second]
            same = agree and cosine >= same_above
            known = meaning[first] is not None and meaning[second] is not None
            count["pairs"] += 1
            count["same"] += bool(same)
            count["different"] += bool(agree and cosine <= differ_below)
            count["judged"] += bool(same and known)
            count["right"] += bool(same and known and meaning[first] == meaning[second])
            count["equal"] += bool(known and meaning[first] == meaning[second])
    pairs, same, different = count["pairs"], count["same"], count["different"]
    return {
        "pairs": pairs,
        "same": same / pairs,
        "different": different / pairs,
        "ignored": (pairs - same - different) / pairs,
        "precision_same": count["right"] / count["judged"],
        "recall_same": count["right"] / count["equal"],
    }


def sentences(count, *, seed=0):
    random = np.random.default_rng(seed)
    kind = random.integers(0, 4, count)
    text = torch.from_numpy(np.eye(4, 5)[kind] + 0.35 * random.normal(size=(count, 5)))
    polarity = torch.from_numpy(random.choice([-1, 1], count).astype(np.int8))
    patient = torch.from_numpy(random.integers(0, 6, count))
    meaning = [None if random.random() < 0.2 else f"label {k}|{p}|left" for k, p in zip(kind, polarity.tolist())]
    return text, polarity, patient, meaning


@pytest.mark.parametrize("rows_at_once", [512, 7])
def test_shares_precision_and_recall_agree_with_a_loop_over_pairs(monkeypatch, rows_at_once):
    monkeypatch.setattr(matching, "_ROWS_AT_ONCE", rows_at_once)
    text, polarity, patient, meaning = sentences(45)
    thresholds = {"same_above": 0.8, "differ_below": 0.3}
    result = pair_shares(text, polarity=polarity, patient=patient, meaning=meaning, **thresholds)
    expected = slow_shares(text, polarity, patient, meaning, **thresholds)
    assert 0.02 < expected["same"] < 0.5
    assert expected["precision_same"] < 1
    assert result == pytest.approx(expected)


def test_vectors_that_say_it_all_are_matched_without_a_fault():
    text = torch.eye(3, 4)[[0, 1, 2, 0, 1, 2]]
    patient, polarity = torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(6, dtype=torch.int8)
    result = pair_shares(text, polarity=polarity, patient=patient, meaning=list("abcabc"), same_above=0.9, differ_below=0.6)
    assert result["precision_same"] == result["recall_same"] == 1.0
    assert (result["pairs"], result["same"]) == (9, pytest.approx(3 / 9))


def test_one_patient_alone_gives_no_pair():
    text, polarity, _, meaning = sentences(8)
    one = torch.zeros(8, dtype=torch.int64)
    result = pair_shares(text, polarity=polarity, patient=one, meaning=meaning, same_above=0.9, differ_below=0.6)
    assert result["pairs"] == result["same"] == result["ignored"] == 0
    assert np.isnan(result["precision_same"])


def test_meanings_of_other_sentences_are_refused():
    text, polarity, patient, meaning = sentences(8)
    with pytest.raises(ValueError, match="8 vectors, 8 polarities, 8 patients and 7 meanings"):
        pair_shares(text, polarity=polarity, patient=patient, meaning=meaning[1:], same_above=0.9, differ_below=0.6)
