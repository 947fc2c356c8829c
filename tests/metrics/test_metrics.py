import numpy as np
import pytest

from mg3d.metrics.bootstrap import bootstrap_interval
from mg3d.metrics.classification import auroc, macro_auroc
from mg3d.metrics.retrieval import chance_recall_at, first_rank, recall_at


def test_auroc_is_the_share_of_rightly_ordered_pairs():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(-1, 2, 40), generator.integers(0, 6, 40).astype(float)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert auroc(labels, scores) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auroc_of_one_class_is_nothing_and_stays_out_of_the_macro():
    assert np.isnan(auroc(np.ones(3), np.arange(3.0)))
    labels = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 0]])
    scores = np.array([[0.9, 0.1, 0.5], [0.1, 0.2, 0.4], [0.8, 0.3, 0.6]])
    assert macro_auroc(labels, scores) == pytest.approx((1.0 + 0.0) / 2)
    assert macro_auroc(labels, scores, of=[0]) == 1.0


def slow_rank(similarity, relevant):
    ranks = []
    for row, right in zip(similarity, relevant, strict=True):
        best = max(value for value, good in zip(row, right, strict=True) if good)
        ranks.append(1 + sum(value >= best and not good for value, good in zip(row, right, strict=True)))
    return ranks


def test_ranks_equal_a_loop_and_a_constant_similarity_earns_nothing():
    generator = np.random.default_rng(1)
    similarity = generator.integers(0, 5, (6, 9)).astype(float)
    relevant = np.eye(6, 9, dtype=bool) | (generator.random((6, 9)) < 0.1)
    assert first_rank(similarity, relevant).tolist() == slow_rank(similarity, relevant)
    assert recall_at(first_rank(np.zeros((4, 7)), np.eye(4, 7, dtype=bool)), (1, 5)) == {1: 0.0, 5: 0.0}
    with pytest.raises(ValueError, match="no relevant"):
        first_rank(similarity, np.zeros_like(relevant))


def test_chance_is_what_random_orders_reach():
    relevant = np.zeros((3, 8), dtype=bool)
    relevant[0, 1] = relevant[1, [2, 5]] = relevant[2, [0, 3, 7]] = True
    generator, hits = np.random.default_rng(2), np.zeros(2)
    for _ in range(4000):
        ranks = first_rank(generator.random((3, 8)), relevant)
        hits += [(ranks <= 1).mean(), (ranks <= 3).mean()]
    chance = chance_recall_at(relevant, (1, 3))
    assert chance[1] == pytest.approx((1 + 2 + 3) / 24)
    np.testing.assert_allclose(hits / 4000, [chance[1], chance[3]], atol=0.015)
    assert chance_recall_at(relevant, (8, 50)) == {8: 1.0, 50: 1.0}


def test_a_bootstrap_draws_whole_patients():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    seen = set()

    def statistic(rows):
        counts = {name: sum(groups[row] == name for row in rows) for name in "abc"}
        assert counts["a"] % 2 == 0
        assert counts["b"] % 3 == 0
        assert len({tuple(np.flatnonzero(groups == name)) for name in groups[rows]}) <= 3
        seen.add(tuple(sorted(rows.tolist())))
        return len(rows)

    low, high = bootstrap_interval(statistic, groups, resamples=60, seed=3)
    assert 3 <= low < high <= 9
    assert len(seen) > 3


def test_a_bootstrap_interval_of_a_mean_has_the_usual_width():
    values = np.random.default_rng(4).normal(size=400)
    low, high = bootstrap_interval(lambda rows: float(values[rows].mean()), np.arange(400), resamples=500)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
