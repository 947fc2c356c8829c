import errno
import multiprocessing
import os
import pickle
import time

import fsspec
import pytest
from small_arrow import write_split

from mg3d.datasets import arrow, storage
from mg3d.datasets.arrow import VolumeIndex, open_index
from mg3d.datasets.storage import Storage


@pytest.fixture
def remote(tmp_path):
    """(url of a prepared folder, its folder)."""
    write_split(tmp_path / "far", "ct_rate", "train", patients=4)
    return f"file://{tmp_path / 'far'}", tmp_path / "far"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(storage, "WAITS_S", (0.0, 0.0))


def cached(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_folder_is_read_where_it_is(remote, tmp_path):
    _, folder = remote
    there = Storage(folder, tmp_path / "cache")
    assert there.path("shards/a.arrow") == folder / "shards/a.arrow"
    assert there.has("clm_ct_rate_train.arrow")
    assert not there.has("clm_ct_rate_val.arrow")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_files_of_a_url_are_copied_when_they_are_first_read(remote, tmp_path, kind):
    url, folder = remote
    if kind == "memory":
        url = f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").put(f"{folder}/", f"/{tmp_path.name}", recursive=True)
    index = open_index(Storage(url, tmp_path / "cache"), "ct_rate", "train")
    index.open_shards()
    assert [path.name.split("@")[0] for path in cached(tmp_path / "cache")] == ["clm_ct_rate_train"]
    assert (pickle.loads(pickle.dumps(index)).volume(2) == -998).all()
    assert [path.name.split("@")[0] for path in cached(tmp_path / "cache")] == ["clm_ct_rate_train", "train"]
    times = [path.stat().st_mtime_ns for path in cached(tmp_path / "cache")]
    assert (open_index(Storage(url, tmp_path / "cache"), "ct_rate", "train").volume(3) == -997).all()
    assert [path.stat().st_mtime_ns for path in cached(tmp_path / "cache")] == times


def test_a_file_that_has_changed_is_copied_again(remote, tmp_path):
    url, folder = remote
    assert len(open_index(Storage(url, tmp_path / "cache"), "ct_rate", "train")) == 4
    write_split(folder, "ct_rate", "train", patients=6)
    assert len(open_index(Storage(url, tmp_path / "cache"), "ct_rate", "train")) == 6


def test_what_is_missing_is_told_at_once(remote, tmp_path):
    url, folder = remote
    there = Storage(url, tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"clm_ct_rate_val\.arrow is missing"):
        open_index(there, "ct_rate", "val")
    assert not there.has("clm_ct_rate_val.arrow")
    index = open_index(there, "ct_rate", "train")
    (folder / "shards/ct_rate/train.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.arrow is missing"):
        index.open_shards()


def test_a_cache_without_room_is_told_before_training(remote, tmp_path, monkeypatch):
    index = open_index(Storage(remote[0], tmp_path / "cache"), "ct_rate", "train")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: storage.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="set cache_dir to a larger disk"):
        index.open_shards()


@pytest.mark.parametrize("url", ["nowhere://bucket/folder", "s3://bucket/folder"])
def test_a_kind_of_url_that_cannot_be_read_is_one_sentence(url, monkeypatch):
    def lacking(root):
        raise ImportError("Install s3fs to access S3")

    if url.startswith("s3"):
        monkeypatch.setattr(storage.fsspec.core, "url_to_fs", lacking)
    with pytest.raises(ValueError, match="install the fsspec package for it"):
        Storage(url)


class Failing:
    """A store that breaks off `failures` times."""

    def __init__(self, system, failures):
        self.system, self.failures = system, failures

    def info(self, path):
        return self.system.info(path)

    def open(self, path, mode):
        if self.failures:
            self.failures -= 1
            raise ConnectionResetError("the store went away")
        return self.system.open(path, mode)


def failing(url, cache, failures):
    there = Storage(url, cache)
    system, root = there._connection()
    there._connected = (os.getpid(), Failing(system, failures), root)
    return there


def test_a_store_that_breaks_off_is_asked_again_and_leaves_no_half_file(remote, tmp_path):
    url, folder = remote
    path = failing(url, tmp_path / "cache", 2).path("shards/ct_rate/train.arrow")
    assert path.read_bytes() == (folder / "shards/ct_rate/train.arrow").read_bytes()
    with pytest.raises(OSError, match="the store went away"):
        failing(url, tmp_path / "other", 3).path("shards/ct_rate/train.arrow")
    assert not cached(tmp_path / "other")


def test_a_full_cache_is_told_at_once(remote, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "WAITS_S", (1000.0,))
    monkeypatch.setattr(storage.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="set cache_dir to a larger disk"):
        Storage(remote[0], tmp_path / "cache").path("clm_ct_rate_train.arrow")
    assert not cached(tmp_path / "cache")


def test_a_copy_serves_while_its_store_does_not_answer(remote, tmp_path, monkeypatch):
    there = Storage(remote[0], tmp_path / "cache")
    copy = there.path("clm_ct_rate_train.arrow")

    def silent(path):
        raise ConnectionResetError("no answer")

    monkeypatch.setattr(there._connection()[0], "info", silent)
    assert there.path("clm_ct_rate_train.arrow") == copy
    with pytest.raises(OSError, match="no answer"):
        there.path("shards/ct_rate/train.arrow")


def copy_once(there):
    system, root = there._connection()
    opened = []

    class Slow(Failing):
        def open(self, path, mode):
            opened.append(path)
            time.sleep(0.2)
            return super().open(path, mode)

    there._connected = (os.getpid(), Slow(system, 0), root)
    return there.path("shards/ct_rate/train.arrow").stat().st_size, len(opened)


def test_several_processes_copy_a_file_once(remote, tmp_path):
    url, folder = remote
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(copy_once, [Storage(url, tmp_path / "cache")] * 3, chunksize=1)
    assert {size for size, _ in found} == {(folder / "shards/ct_rate/train.arrow").stat().st_size}
    assert sum(copies for _, copies in found) == 1


def test_no_more_shards_stay_open_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "MOST_OPEN", 2)
    indices = [VolumeIndex(write_split(tmp_path, "ct_rate", split, patients=2)) for split in ("train", "val", "test")]
    one = indices[0]
    names = [index.table["shard"][0].as_py() for index in indices]
    kept = one.volume(1)
    for name in names:
        one._shard(name)
    assert list(one._shards) == names[1:]
    assert (kept == -999).all()
    assert (one.volume(0) == -1000).all()
    assert list(one._shards) == [names[2], names[0]]
