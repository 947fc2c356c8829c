import numpy as np
import pytest
import torch

from mg3d.evaluation.sentence_pairs import Sentences, matching_summary, meaning_codes, sentence_pairs, threshold_rows


def slow_summary(vectors, polarity, patient, meaning, *, same_above, differ_below):
    """`matching_summary` by a loop over pairs."""
    count = dict.fromkeys(("pairs", "same", "different", "judged", "correct", "equal", "found"), 0)
    for first in range(len(vectors)):
        for second in range(first):
            if patient[first] == patient[second]:
                continue
            cosine = float(vectors[first] @ vectors[second] / vectors[first].norm() / vectors[second].norm())
            agree = polarity[first] == polarity[second]
            same = agree and cosine >= same_above
            known = meaning[first] is not None and meaning[second] is not None
            equal = known and meaning[first] == meaning[second]
            for name, value in {
                "pairs": True, "same": same, "different": agree and cosine <= differ_below, "judged": same and known,
                "correct": same and equal, "equal": equal,
            }.items():  # fmt: skip
                count[name] += bool(value)
    pairs, same, different = count["pairs"], count["same"], count["different"]
    return {
        "pairs": pairs,
        "same": same / pairs,
        "different": different / pairs,
        "ignored": (pairs - same - different) / pairs,
        "precision_same": count["correct"] / count["judged"],
        "recall_same": count["correct"] / count["equal"],
    }


def random_sentences(count, *, seed=0):
    random = np.random.default_rng(seed)
    kind = random.integers(0, 4, count)
    vectors = torch.from_numpy(np.eye(4, 5)[kind] + 0.35 * random.normal(size=(count, 5)))
    polarity = torch.from_numpy(random.choice([-1, 1], count).astype(np.int8))
    patient = torch.from_numpy(random.integers(0, 6, count))
    return vectors, polarity, patient, [None if random.random() < 0.2 else f"{k}|{p}" for k, p in zip(kind, polarity.tolist())]


def test_the_summary_agrees_with_a_loop_over_pairs():
    *parts, meaning = random_sentences(45)
    thresholds = {"same_above": 0.8, "differ_below": 0.3}
    expected = slow_summary(*parts, meaning, **thresholds)
    assert 0.02 < expected["same"] < 0.5
    assert expected["precision_same"] < 1
    assert matching_summary(sentence_pairs(Sentences(*parts, meaning_codes(meaning))), **thresholds) == pytest.approx(expected)


def test_a_single_patient_has_no_pair():
    vectors, polarity, _, meaning = random_sentences(8)
    pairs = sentence_pairs(Sentences(vectors, polarity, torch.zeros(8, dtype=torch.int64), meaning_codes(meaning)))
    result = matching_summary(pairs, same_above=0.9, differ_below=0.6)
    assert result["pairs"] == result["same"] == result["ignored"] == 0
    assert np.isnan(result["precision_same"])


def test_thresholds_are_judged_by_pairs_of_known_meaning_and_equal_polarity():
    """Five sentences of four patients; cosines to the first: .8, .6, 1 (same patient), 0 (a negation)."""
    pairs = sentence_pairs(
        Sentences(
            torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [2.0, 0.0], [0.0, 1.0]]),
            torch.tensor([1, 1, 1, 1, -1], dtype=torch.int8),
            torch.tensor([0, 1, 2, 0, 3]),
            meaning_codes(["a", "a", "b", None, "b"]),
        )
    )
    assert pairs.cosine[pairs.same_polarity].tolist() == pytest.approx([0.8, 0.6, 0.96, 0.8, 0.6])
    low, high = threshold_rows(pairs, (0.7, 0.9))
    assert (low["pairs at or above"], low["precision of same"], low["recall of same"]) == (0.6, 0.5, 1)
    assert (high["precision of same"], high["recall of same"], high["false negatives at or below"]) == (0, 0, 0.5)
