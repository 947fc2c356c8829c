import numpy as np
import pytest
import torch

from mg3d.evaluation.sentence_pairs import sentence_pairs, threshold_rows


def slow_row(vectors, threshold, *, polarities, patients, meanings):
    """One row of `threshold_rows` by a loop over pairs."""
    pairs = []
    for first in range(len(vectors)):
        for second in range(first):
            if patients[first] == patients[second] or polarities[first] != polarities[second]:
                continue
            cosine = float(vectors[first] @ vectors[second] / vectors[first].norm() / vectors[second].norm())
            known = meanings[first] is not None and meanings[second] is not None
            pairs.append((cosine, known, known and meanings[first] == meanings[second]))
    equal_above = [equal for cosine, known, equal in pairs if known and cosine >= threshold]
    equal_below = [equal for cosine, known, equal in pairs if known and cosine <= threshold]
    return {
        "threshold": threshold,
        "pairs at or above": np.mean([cosine >= threshold for cosine, _, _ in pairs]),
        "precision of same": np.mean(equal_above),
        "recall of same": np.mean([cosine >= threshold for cosine, _, equal in pairs if equal]),
        "false negatives at or below": np.mean(equal_below),
    }


def random_sentences(count):
    random = np.random.default_rng(0)
    kind = random.integers(0, 4, count)
    vectors = torch.from_numpy(np.eye(4, 5)[kind] + 0.35 * random.normal(size=(count, 5)))
    polarities, patients = random.choice([-1, 1], count), random.integers(0, 6, count)
    meanings = [None if random.random() < 0.2 else f"{k}|{p}" for k, p in zip(kind, polarities)]
    return vectors, {"polarities": polarities, "patients": patients, "meanings": meanings}


@pytest.mark.parametrize("threshold", [0.3, 0.8])
def test_a_row_agrees_with_a_loop_over_pairs(threshold):
    vectors, facts = random_sentences(45)
    expected = slow_row(vectors, threshold, **facts)
    assert 0.02 < expected["precision of same"] < 1
    assert 0 < expected["false negatives at or below"] < 1
    (row,) = threshold_rows(sentence_pairs(vectors, **facts), [threshold])
    assert row == pytest.approx(expected)


def test_a_single_patient_has_no_pair():
    vectors, facts = random_sentences(8)
    (row,) = threshold_rows(sentence_pairs(vectors, **facts | {"patients": np.zeros(8)}), [0.9])
    assert row == pytest.approx({"threshold": 0.9, "pairs at or above": np.nan}, nan_ok=True)


def test_without_meanings_only_the_fraction_of_pairs_is_reported():
    vectors, facts = random_sentences(45)
    known, unknown = (threshold_rows(sentence_pairs(vectors, **facts | more), [0.3]) for more in ({}, {"meanings": [None] * 45}))
    assert unknown == [{name: known[0][name] for name in ("threshold", "pairs at or above")}]
