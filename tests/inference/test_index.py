"""The search index is exact, whole after any stop, and refuses what is not its own."""

import numpy as np
import pytest

from mg3d.inference.index import Entry, IndexWriter, SearchIndex

WIDTH = 7


def entries(count, seed=0, kinds=("scan", "report", "sentence")):
    """Coarse numbers, so that many similarities are equal."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (count, WIDTH)).astype(np.float32)
    return [Entry(f"{seed}/{place}", kinds[place % len(kinds)], f"text {place}", row) for place, row in enumerate(vectors)]


def write(folder, *parts, finish=True, fingerprint="one"):
    writer = IndexWriter(folder, fingerprint=fingerprint)
    for part in parts:
        writer.add(part)
    if finish:
        assert writer.finish() == sum(map(len, parts))
    return folder


def slow_search(held, query, k, kind):
    scored = [(-sum(a * b for a, b in zip(query.tolist(), one.vector.tolist())), place) for place, one in enumerate(held)]
    return [held[place].key for _, place in sorted(scored) if kind in (None, held[place].kind)][:k]


@pytest.mark.parametrize("kind", [None, "scan", "sentence"])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_search_is_that_of_a_loop_over_all_entries(tmp_path, k, kind):
    held = entries(41) + entries(20, seed=1)
    index = SearchIndex.load(write(tmp_path / "index", held[:41], held[41:]))
    queries = np.stack([entry.vector for entry in entries(5, seed=9)])
    for query, found in zip(queries, index.search(queries, k=k, kind=kind), strict=True):
        assert [row.key for row in found] == slow_search(held, query, k, kind)
        assert [row.rank for row in found] == list(range(1, len(found) + 1))
        by_key = {one.key: one for one in held}
        for row in found:
            assert (row.kind, row.text) == (by_key[row.key].kind, by_key[row.key].text)
            assert row.similarity == pytest.approx(float(query @ by_key[row.key].vector))


def test_an_unfinished_index_is_searched_and_goes_on(tmp_path):
    held = entries(10)
    folder = write(tmp_path / "index", held[:4], held[4:7], finish=False)
    assert len(SearchIndex.load(folder)) == 7
    writer = IndexWriter(folder, fingerprint="one")
    assert writer.keys == {one.key for one in held[:7]}
    writer.add(held[7:])
    assert writer.finish() == 10
    assert [path.name for path in folder.iterdir()] == ["entries.arrow"]
    assert SearchIndex.load(folder).entries["key"].to_pylist() == [one.key for one in held]


def test_a_run_killed_while_it_joined_the_parts_leaves_no_entry_twice(tmp_path):
    held = entries(6)
    folder = write(tmp_path / "index", held[:3], held[3:], finish=False)
    part = (folder / "part-000001.arrow").read_bytes()
    IndexWriter(folder, fingerprint="one").finish()
    (folder / "part-000001.arrow").write_bytes(part)
    assert SearchIndex.load(folder).entries["key"].to_pylist() == [one.key for one in held]


def test_what_is_no_index_or_another_model_s_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no search index; make one with"):
        SearchIndex.load(tmp_path)
    folder = write(tmp_path / "index", entries(3))
    with pytest.raises(ValueError, match="index of another model"):
        IndexWriter(folder, fingerprint="two")
    index = SearchIndex.load(folder)
    with pytest.raises(ValueError, match="made by another model"):
        index.require("two")
    for bad in (np.zeros((1, 3)), np.zeros(WIDTH), np.full((1, WIDTH), np.nan)):
        with pytest.raises(ValueError, match=r"expected finite queries \[q, 7\]"):
            index.search(bad)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(np.zeros((1, WIDTH)), k=0)
    only = SearchIndex.load(write(tmp_path / "scans", entries(3, kinds=("scan",))))
    with pytest.raises(ValueError, match="no entry of kind 'report', only scan"):
        only.search(np.zeros((1, WIDTH)), kind="report")
    (folder / "entries.arrow").write_bytes(b"not Arrow")
    with pytest.raises(ValueError, match=r"entries\.arrow is damaged"):
        SearchIndex.load(folder)
