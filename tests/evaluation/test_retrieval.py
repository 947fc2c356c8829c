import numpy as np
import pytest

from mg3d.evaluation.retrieval import SAME_LABELS, label_jaccard_rows, recall_rows, retrieval_directions
from mg3d.evaluation.tables import Bootstrap

BOOTSTRAP = Bootstrap(20, 0)


def unit_rows(random, *shape):
    rows = random.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def slow_ranks(volumes, reports, keys):
    """Ranks of both directions by loops over queries and sorted galleries."""
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


def recall(volumes, reports, keys, *, ks=(1, 5, 10)):
    directions = retrieval_directions(volumes, reports, report_keys=keys)
    return recall_rows(directions, np.arange(len(volumes)), ks=ks, bootstrap=BOOTSTRAP)


def test_both_directions_agree_with_sorted_galleries_and_equal_texts_count_once():
    random = np.random.default_rng(0)
    keys = [f"text {number % 17}" for number in range(23)]
    reports = unit_rows(random, 17, 6)[np.arange(23) % 17]
    volumes = reports + 0.5 * random.normal(size=reports.shape)
    rows, ranks = recall(volumes, reports, keys)
    expected = slow_ranks(volumes, reports, keys)
    assert {name: values.tolist() for name, values in ranks.items()} == expected
    assert [(row["queries"], row["gallery"], row["k"]) for row in rows] == [
        *((23, 17, k) for k in (1, 5, 10)), *((17, 23, k) for k in (1, 5, 10)),
    ]  # fmt: skip
    for row in rows:
        wanted = np.array(expected[row["direction"]])
        assert row["median rank"] == np.median(wanted)
        assert row["recall"]["value"] == pytest.approx((wanted <= row["k"]).mean(), abs=1e-6)
        assert row["recall"]["low"] <= row["recall"]["value"] <= row["recall"]["high"]
    assert rows[1]["chance"] == pytest.approx(5 / 17)
    assert rows[3]["chance"] == pytest.approx(23 / 17 / 23)


def test_perfect_embeddings_have_recall_one_collapsed_ones_zero_and_unrelated_ones_chance():
    random = np.random.default_rng(2)
    rows, keys = unit_rows(random, 300, 16), [str(number) for number in range(300)]
    assert all(row["recall"]["value"] == row["recall"]["low"] == 1.0 for row in recall(rows, rows, keys)[0])
    same = np.ones((300, 4)) / 2
    assert all((row["recall"]["value"], row["median rank"]) == (0.0, 300) for row in recall(same, same, keys)[0])
    for row in recall(rows, unit_rows(random, 300, 16), keys)[0]:
        assert row["recall"]["value"] == pytest.approx(row["chance"], abs=0.04)


def few():
    """Four studies; 0 and 1 share a text, 2 and 3 a label set; the similarity ranks the report of 3 before that of 2."""
    volumes = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0.6, 0.8], [0, 0, 1.0]])
    reports = np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    labels = np.array([[1, 0], [0, 0], [1, 1], [1, 1]])
    return volumes, reports, labels


def test_reports_of_equal_labels_are_relevant_only_in_their_own_directions():
    volumes, reports, labels = few()
    directions = retrieval_directions(volumes, reports, report_keys=["a", "a", "b", "c"], labels=labels)
    rows, ranks = recall_rows(directions, np.arange(4), ks=(1, 2, 3), bootstrap=BOOTSTRAP)
    assert ranks["volume to report"].tolist() == [1, 1, 2, 1]
    assert ranks[f"volume to report{SAME_LABELS}"].tolist() == [1, 1, 1, 1]
    assert directions[1].queries.tolist() == [0, 2, 3]
    found = {(row["direction"], row["k"]): row for row in rows}
    assert found["volume to report", 1]["recall"]["value"] == 0.75
    assert found["volume to report", 1]["chance"] == pytest.approx(1 / 3)
    assert ("volume to report", 3) not in found  # the whole gallery
    assert found["volume to report" + SAME_LABELS, 1]["chance"] == pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 2 / 3) / 4)


def test_unknown_labels_are_never_equal():
    volumes, reports, labels = few()
    labels = np.where(labels == 1, -1, labels)
    first, _, third, _ = retrieval_directions(volumes, reports, report_keys=["a", "a", "b", "c"], labels=labels)
    assert (first.relevant == third.relevant).all()


def test_label_jaccard_leaves_out_the_query_or_its_patient():
    volumes, _, labels = few()
    found = label_jaccard_rows(volumes, labels, np.array([0, 0, 1, 1]), ks=(1, 2, 9), bootstrap=BOOTSTRAP)
    rows = {(row["gallery"], row["k"]): row for row in found}
    # The gallery is 0, 2 and 3. Nearest: 0 -> 2 (tie with 3, the earlier), 1 -> 0, 2 -> 3, 3 -> 2; Jaccard 1/2, 0, 1, 1.
    assert rows["query removed", 1]["label jaccard"]["value"] == pytest.approx(2.5 / 4)
    # Without the patient: 0 -> 2, 1 -> 2, 2 -> 0, 3 -> 0; Jaccard 1/2, 0, 1/2, 1/2.
    assert rows["query's patient removed", 1]["label jaccard"]["value"] == pytest.approx(1.5 / 4)
    assert ("query removed", 9) not in rows
