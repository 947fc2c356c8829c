"""The search index is exact, survives a killed run, and refuses other models."""

import numpy as np
import pytest

from mg3d.inference.search_index import Entry, IndexWriter, SearchIndex

WIDTH = 7


def entries(count, seed=0, kinds=("scan", "report", "sentence")):
    """Coarse values, so that many similarities are equal."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (count, WIDTH)).astype(np.float32)
    return [Entry(f"{seed}/{number}", kinds[number % len(kinds)], f"text {number}", row) for number, row in enumerate(vectors)]


def write(folder, *parts, finish=True, fingerprint="one"):
    writer = IndexWriter(folder, fingerprint=fingerprint)
    for part in parts:
        writer.add(part)
    if finish:
        assert writer.finish() == sum(map(len, parts))
    return folder


def slow_search(stored, query, k, kind):
    scored = [(-sum(a * b for a, b in zip(query.tolist(), entry.vector.tolist())), row) for row, entry in enumerate(stored)]
    return [stored[row].key for _, row in sorted(scored) if kind in (None, stored[row].kind)][:k]


@pytest.mark.parametrize("kind", [None, "scan", "sentence"])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_search_equals_a_loop_over_all_entries(tmp_path, k, kind):
    stored = entries(41) + entries(20, seed=1)
    index = SearchIndex.load(write(tmp_path / "index", stored[:41], stored[41:]))
    queries = np.stack([entry.vector for entry in entries(5, seed=9)])
    for query, found in zip(queries, index.search(queries, k=k, kind=kind), strict=True):
        assert [row.key for row in found] == slow_search(stored, query, k, kind)
        assert [row.rank for row in found] == list(range(1, len(found) + 1))
        by_key = {entry.key: entry for entry in stored}
        for row in found:
            assert (row.kind, row.text) == (by_key[row.key].kind, by_key[row.key].text)
            assert row.similarity == pytest.approx(float(query @ by_key[row.key].vector))


def test_an_unfinished_index_is_searchable_and_continued(tmp_path):
    stored = entries(10)
    folder = write(tmp_path / "index", stored[:4], stored[4:7], finish=False)
    assert len(SearchIndex.load(folder)) == 7
    writer = IndexWriter(folder, fingerprint="one")
    assert writer.keys == {entry.key for entry in stored[:7]}
    writer.add(stored[7:])
    assert writer.finish() == 10
    assert [path.name for path in folder.iterdir()] == ["entries.arrow"]
    assert SearchIndex.load(folder).entries["key"].to_pylist() == [entry.key for entry in stored]


def test_a_run_killed_while_merging_leaves_no_duplicate_entry(tmp_path):
    stored = entries(6)
    folder = write(tmp_path / "index", stored[:3], stored[3:], finish=False)
    part = (folder / "part-000001.arrow").read_bytes()
    IndexWriter(folder, fingerprint="one").finish()
    (folder / "part-000001.arrow").write_bytes(part)
    assert SearchIndex.load(folder).entries["key"].to_pylist() == [entry.key for entry in stored]


def test_missing_damaged_and_other_indices_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no search index"):
        SearchIndex.load(tmp_path)
    folder = write(tmp_path / "index", entries(3))
    with pytest.raises(ValueError, match="index of another model"):
        IndexWriter(folder, fingerprint="two")
    index = SearchIndex.load(folder)
    with pytest.raises(ValueError, match="made with another model"):
        index.require("two")
    for bad in (np.zeros((1, 3)), np.zeros(WIDTH), np.full((1, WIDTH), np.nan)):
        with pytest.raises(ValueError, match=r"expected finite queries \[q, 7\]"):
            index.search(bad)
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        index.search(np.zeros((1, WIDTH)), k=0)
    only = SearchIndex.load(write(tmp_path / "scans", entries(3, kinds=("scan",))))
    with pytest.raises(ValueError, match=r"no entry of kind 'report'. Available: scan"):
        only.search(np.zeros((1, WIDTH)), kind="report")
    (folder / "entries.arrow").write_bytes(b"not Arrow")
    with pytest.raises(ValueError, match=r"entries\.arrow is damaged"):
        SearchIndex.load(folder)
