import numpy as np
import pytest

from mg3d.metrics.retrieval import chance_recall_at, first_rank, label_jaccard_at, recall_at


def looked_up_rank(similarity, relevant):
    """Walks a sorted gallery; of equally similar items the wrong ones come first."""
    ranks = []
    for row, right in zip(similarity, relevant):
        order = sorted(range(len(row)), key=lambda item: (-row[item], right[item]))
        ranks.append(1 + next(place for place, item in enumerate(order) if right[item]))
    return ranks


def drawn_relevance(random, queries, gallery):
    relevant = random.random((queries, gallery)) < 0.2
    relevant[np.arange(queries), random.integers(0, gallery, queries)] = True
    return relevant


@pytest.mark.parametrize("seed", range(5))
def test_first_rank_is_found_by_walking_the_sorted_gallery(seed):
    random = np.random.default_rng(seed)
    relevant = drawn_relevance(random, 13, 9)
    similarity = random.integers(0, 5, (13, 9)).astype(float)
    assert first_rank(similarity, relevant).tolist() == looked_up_rank(similarity, relevant)


def test_recall_by_hand():
    assert recall_at(np.array([1, 3, 2, 11]), (1, 2, 10)) == {1: 0.25, 2: 0.5, 10: 0.75}


def test_a_constant_similarity_earns_nothing():
    relevant = np.eye(12, dtype=bool)
    assert recall_at(first_rank(np.ones((12, 12)), relevant), (1, 5, 10)) == {1: 0.0, 5: 0.0, 10: 0.0}


def test_a_query_without_a_right_item_is_refused():
    with pytest.raises(ValueError, match="no relevant item"):
        first_rank(np.ones((2, 3)), np.array([[True, False, False], [False, False, False]]))


def test_nan_similarities_earn_no_first_place_but_are_refused():
    with pytest.raises(ValueError, match="nan"):
        first_rank(np.full((4, 5), np.nan), np.eye(4, 5, dtype=bool))


def test_chance_is_what_random_orders_reach():
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
NEARNESS = np.array([[1.0, 0.2, 0.6, 0.9], [0.2, 1.0, 0.1, 0.8], [0.6, 0.1, 1.0, 0.0], [0.9, 0.8, 0.0, 1.0]])


def test_label_jaccard_by_hand():
    # d, without a finding, is in no gallery. Jaccard: ab 1/3, ac 1/2, bc 0, of d 0. Nearest: a: c b, b: a c, c: a b, d: a b.
    found = label_jaccard_at(NEARNESS, FINDINGS, (1, 2))
    assert found[1] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 0) / 4)
    assert found[2] == pytest.approx(((1 / 2 + 1 / 3) / 2 + (1 / 3 + 0) / 2 + (1 / 2 + 0) / 2 + 0) / 4)


def test_label_jaccard_as_published_keeps_the_query_and_runs_on_over_k():
    # Nearest: a: a c, b: b a, c: c a, d: a b. At 1: (1 + 1 + 1 + 0) / 4. At 2 alone: (3/4 + 2/3 + 3/4 + 0) / 4.
    at_one, at_two = 3 / 4, (3 / 4 + 2 / 3 + 3 / 4) / 4
    assert label_jaccard_at(NEARNESS, FINDINGS, (1, 2), as_published=True) == pytest.approx({1: at_one, 2: (at_one + at_two) / 2})
    assert label_jaccard_at(NEARNESS, FINDINGS, (2,), as_published=True) == pytest.approx({2: at_two})


def test_unknown_labels_are_left_out_of_a_pair():
    # a = 0 and unknown, b = 0 and 1: they share finding 0 and nothing else is known of both.
    assert label_jaccard_at(np.eye(2), np.array([[1, -1, 0], [1, 1, 0]]), (1,)) == {1: 1.0}


def test_what_has_no_label_jaccard_is_refused():
    with pytest.raises(ValueError, match="2 other volumes with a positive label; at least 3"):
        label_jaccard_at(NEARNESS, FINDINGS, (1, 3))
    with pytest.raises(ValueError, match="0 other volumes"):
        label_jaccard_at(NEARNESS, np.zeros((4, 3)), (1,))
    with pytest.raises(ValueError, match="nan"):
        label_jaccard_at(NEARNESS * np.nan, FINDINGS, (1,))
    with pytest.raises(ValueError, match="expected \\[n, n\\]"):
        label_jaccard_at(NEARNESS[:3], FINDINGS, (1,))
