import numpy as np
import pytest

from mg3d.evaluation.retrieval import retrieval_table


def unit_rows(random, *shape):
    rows = random.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def slow_table(volumes, reports, keys):
    """Recall at 1, 5, 10 of both directions by loops over queries and sorted galleries."""
    texts = sorted(set(keys))
    vectors = [reports[keys.index(text)] for text in texts]
    ranks = {"volume to report": [], "report to volume": []}
    for volume, key in zip(volumes, keys):
        order = np.argsort([-volume @ vector for vector in vectors])
        ranks["volume to report"].append(1 + [texts[item] for item in order].index(key))
    for text, vector in zip(texts, vectors):
        order = np.argsort([-volume @ vector for volume in volumes])
        ranks["report to volume"].append(1 + [keys[item] for item in order].index(text))
    return ranks


def test_both_directions_agree_with_sorted_galleries_and_equal_texts_count_once():
    random = np.random.default_rng(0)
    keys = [f"text {number % 17}" for number in range(23)]
    texts = unit_rows(random, 17, 6)
    reports = texts[np.arange(23) % 17]
    volumes = reports + 0.5 * random.normal(size=reports.shape)
    table = retrieval_table(volumes, reports, report_keys=keys, patients=np.arange(23))
    expected = slow_table(volumes, reports, keys)
    assert [(row["queries"], row["gallery"]) for row in table] == [(23, 17), (17, 23)]
    for row in table:
        ranks = np.array(expected[row["direction"]])
        assert row["median_rank"] == np.median(ranks)
        for k in (1, 5, 10):
            assert row[f"recall_at_{k}"] == pytest.approx((ranks <= k).mean())
            assert row[f"low_at_{k}"] <= row[f"recall_at_{k}"] <= row[f"high_at_{k}"]
    assert table[0]["chance_at_5"] == pytest.approx(5 / 17)
    assert table[1]["chance_at_1"] == pytest.approx(23 / 17 / 23)


def test_perfect_embeddings_find_everything_at_once():
    rows = unit_rows(np.random.default_rng(1), 14, 9)
    for row in retrieval_table(rows, rows, report_keys=[str(n) for n in range(14)], patients=np.arange(14)):
        assert row["recall_at_1"] == row["low_at_1"] == 1.0


def test_collapsed_embeddings_find_nothing():
    rows = np.ones((14, 4)) / 2
    for row in retrieval_table(rows, rows, report_keys=[str(n) for n in range(14)], patients=np.arange(14)):
        assert row["recall_at_10"] == 0.0
        assert row["median_rank"] == 14


def test_unrelated_embeddings_stay_near_chance():
    random = np.random.default_rng(2)
    keys = [str(number) for number in range(300)]
    table = retrieval_table(unit_rows(random, 300, 16), unit_rows(random, 300, 16), report_keys=keys, patients=np.arange(300))
    for row in table:
        assert row["recall_at_10"] == pytest.approx(row["chance_at_10"], abs=0.04)
