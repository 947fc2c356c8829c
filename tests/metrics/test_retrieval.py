import numpy as np
import pytest

from mg3d.metrics.retrieval import chance_recall_at, first_rank, nearest_jaccards, recall_at


def slow_rank(similarity, relevant):
    """Walk through the sorted gallery; irrelevant items come first among ties."""
    ranks = []
    for row, right in zip(similarity, relevant):
        order = sorted(range(len(row)), key=lambda item: (-row[item], right[item]))
        ranks.append(1 + next(index for index, item in enumerate(order) if right[item]))
    return ranks


def drawn_relevance(random, queries, gallery):
    relevant = random.random((queries, gallery)) < 0.2
    relevant[np.arange(queries), random.integers(0, gallery, queries)] = True
    return relevant


@pytest.mark.parametrize("seed", range(5))
def test_first_rank_matches_a_walk_through_the_sorted_gallery(seed):
    random = np.random.default_rng(seed)
    relevant = drawn_relevance(random, 13, 9)
    similarity = random.integers(0, 5, (13, 9)).astype(float)
    assert first_rank(similarity, relevant).tolist() == slow_rank(similarity, relevant)


def test_recall_by_hand():
    assert recall_at(np.array([1, 3, 2, 11]), (1, 2, 10)) == {1: 0.25, 2: 0.5, 10: 0.75}


def test_a_constant_similarity_scores_nothing():
    assert recall_at(first_rank(np.ones((12, 12)), np.eye(12, dtype=bool)), (1, 5, 10)) == {1: 0.0, 5: 0.0, 10: 0.0}


@pytest.mark.parametrize(
    ("value", "relevant", "message"),
    [(1.0, [[True, False], [False, False]], "no relevant item"), (np.nan, [[True, False], [False, True]], "nan")],
)
def test_undefined_ranks_are_refused(value, relevant, message):
    with pytest.raises(ValueError, match=message):
        first_rank(np.full((2, 2), value), np.array(relevant))


def test_chance_is_the_mean_recall_of_random_rankings():
    random = np.random.default_rng(3)
    relevant = drawn_relevance(random, 6, 11)
    orders = [recall_at(first_rank(random.random(relevant.shape), relevant), (1, 3, 5)) for _ in range(4000)]
    chance = chance_recall_at(relevant, (1, 3, 5))
    for k, value in chance.items():
        assert np.mean([order[k] for order in orders]) == pytest.approx(value, abs=0.012)


def test_chance_by_hand():
    one_of_ten = np.eye(3, 10, dtype=bool)
    assert chance_recall_at(one_of_ten, (1, 5)) == pytest.approx({1: 0.1, 5: 0.5})
    two_of_four = np.array([[True, True, False, False]])
    assert chance_recall_at(two_of_four, (1, 2, 3, 20)) == pytest.approx({1: 0.5, 2: 1 - 1 / 6, 3: 1.0, 20: 1.0})


# Volumes a, b, c and d with findings 01, 12, 0 and none.
FINDINGS = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
SIMILARITY = np.array([[1.0, 0.2, 0.6, 0.9], [0.2, 1.0, 0.1, 0.8], [0.6, 0.1, 1.0, 0.0], [0.9, 0.8, 0.0, 1.0]])
ITSELF = np.arange(4)
"""Groups that exclude only the query from its gallery."""


def test_nearest_jaccards_by_hand():
    # d, without a finding, is in no gallery. Jaccard: ab 1/3, ac 1/2, bc 0, of d 0. Nearest: a: c b, b: a c, c: a b, d: a b.
    found = nearest_jaccards(SIMILARITY, FINDINGS, 2, groups=ITSELF)
    assert found == pytest.approx(np.array([[1 / 2, 1 / 3], [1 / 3, 0], [1 / 2, 0], [0, 0]]))


def test_volumes_of_the_same_group_are_not_in_the_gallery():
    # a and c are of one patient: a finds b, b finds a, c finds b, d finds a.
    found = nearest_jaccards(SIMILARITY, FINDINGS, 1, groups=np.array([0, 1, 0, 2]))
    assert found[:, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0])


def test_unknown_labels_are_ignored_by_a_pair():
    # a = 0 and unknown, b = 0 and 1: they share finding 0, and no other finding is known of both.
    assert nearest_jaccards(np.eye(2), np.array([[1, -1, 0], [1, 1, 0]]), 1, groups=ITSELF[:2]).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("similarity", "labels", "k", "message"),
    [
        (SIMILARITY, FINDINGS, 3, "2 other volumes with a positive label; k = 3"),
        (SIMILARITY, np.zeros((4, 3)), 1, "0 other volumes"),
        (SIMILARITY * np.nan, FINDINGS, 1, "nan"),
        (SIMILARITY[:3], FINDINGS, 1, r"expected \[n, n\]"),
    ],
)
def test_invalid_inputs_of_label_jaccards_are_refused(similarity, labels, k, message):
    with pytest.raises(ValueError, match=message):
        nearest_jaccards(similarity, labels, k, groups=ITSELF)
