import errno
import multiprocessing
import pickle
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from small_arrow import write_split

from mg3d.datasets import arrow, storage
from mg3d.datasets.arrow import VolumeIndex, open_index
from mg3d.datasets.storage import Storage

SHARD = "shards/ct_rate/train.arrow"


@pytest.fixture
def remote(tmp_path):
    """(URL of a prepared folder, its folder)."""
    write_split(tmp_path / "remote", "ct_rate", "train", patients=4)
    return f"file://{tmp_path / 'remote'}", tmp_path / "remote"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))


def cached(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_local_folder_is_read_in_place(remote, tmp_path):
    _, folder = remote
    local = Storage(folder, tmp_path / "cache")
    assert local.path("shards/a.arrow") == folder / "shards/a.arrow"
    assert local.has("clm_ct_rate_train.arrow")
    assert not local.has("clm_ct_rate_val.arrow")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_files_of_a_url_are_downloaded_once_when_first_read(remote, tmp_path, scheme):
    url, folder = remote
    if scheme == "memory":
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


def test_a_changed_file_is_downloaded_again(remote, tmp_path):
    url, folder = remote
    assert len(open_index(Storage(url, tmp_path / "cache"), "ct_rate", "train")) == 4
    write_split(folder, "ct_rate", "train", patients=6)
    assert len(open_index(Storage(url, tmp_path / "cache"), "ct_rate", "train")) == 6


def test_missing_files_are_reported_before_training(remote, tmp_path):
    url, folder = remote
    store = Storage(url, tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"clm_ct_rate_val\.arrow does not exist"):
        open_index(store, "ct_rate", "val")
    assert not store.has("clm_ct_rate_val.arrow")
    index = open_index(store, "ct_rate", "train")
    (folder / SHARD).unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.arrow is missing"):
        index.open_shards()


def test_too_little_cache_space_is_reported_before_training(remote, tmp_path, monkeypatch):
    index = open_index(Storage(remote[0], tmp_path / "cache"), "ct_rate", "train")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: storage.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="Set cache_dir to a larger disk"):
        index.open_shards()


@pytest.mark.parametrize("url", ["nowhere://bucket/folder", "s3://bucket/folder"])
def test_an_unsupported_url_names_the_package_to_install(url, monkeypatch):
    def not_installed(root):
        raise ImportError("Install s3fs to access S3")

    if url.startswith("s3"):
        monkeypatch.setattr(storage.fsspec.core, "url_to_fs", not_installed)
    with pytest.raises(ValueError, match="Install its fsspec package"):
        Storage(url)


def fail(monkeypatch, errors):
    """Lets downloads raise `errors`, one after the other, before they succeed."""
    download = LocalFileSystem.get_file

    def get_file(self, path, target, **options):
        if errors:
            raise errors.pop()
        return download(self, path, target, **options)

    monkeypatch.setattr(LocalFileSystem, "get_file", get_file)


def test_an_interrupted_download_is_retried_and_leaves_no_partial_file(remote, tmp_path, monkeypatch):
    url, folder = remote
    fail(monkeypatch, [ConnectionResetError("connection lost")] * 2)
    assert Storage(url, tmp_path / "cache").path(SHARD).read_bytes() == (folder / SHARD).read_bytes()
    fail(monkeypatch, [ConnectionResetError("connection lost")] * 3)
    with pytest.raises(OSError, match="connection lost"):
        Storage(url, tmp_path / "other").path(SHARD)
    assert not cached(tmp_path / "other")


def test_a_truncated_download_is_never_used(remote, tmp_path, monkeypatch):
    download = LocalFileSystem.get_file

    def truncated(self, path, target, **options):
        download(self, path, target, **options)
        with Path(target).open("r+b") as stream:
            stream.truncate(100)

    monkeypatch.setattr(LocalFileSystem, "get_file", truncated)
    with pytest.raises(OSError, match="before the end of the file"):
        Storage(remote[0], tmp_path / "cache").path(SHARD)
    assert not cached(tmp_path / "cache")


def test_a_full_disk_is_reported_without_retrying(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (1000.0,))
    fail(monkeypatch, [OSError(errno.ENOSPC, "No space left on device")])
    with pytest.raises(OSError, match="Set cache_dir to a larger disk"):
        Storage(remote[0], tmp_path / "cache").path("clm_ct_rate_train.arrow")
    assert not cached(tmp_path / "cache")


def count_downloads(store):
    calls, download = [], LocalFileSystem.get_file

    def get_file(self, *arguments, **options):
        calls.append(arguments)
        time.sleep(0.2)
        return download(self, *arguments, **options)

    LocalFileSystem.get_file = get_file
    return store.path(SHARD).stat().st_size, len(calls)


def test_concurrent_processes_download_a_file_once(remote, tmp_path):
    url, folder = remote
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.map(count_downloads, [Storage(url, tmp_path / "cache")] * 3, chunksize=1)
    assert {size for size, _ in results} == {(folder / SHARD).stat().st_size}
    assert sum(calls for _, calls in results) == 1


def test_the_least_recently_used_shard_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "MAX_OPEN_SHARDS", 2)
    indices = [VolumeIndex(write_split(tmp_path, "ct_rate", split, patients=2)) for split in ("train", "val", "test")]
    index = indices[0]
    names = [index.table["shard"][0].as_py() for index in indices]
    volume = index.volume(1)
    for name in names:
        index._shard(name)
    assert list(index._shards) == names[1:]
    assert (volume == -999).all()
    assert (index.volume(0) == -1000).all()
    assert list(index._shards) == [names[2], names[0]]


def test_a_shard_that_does_not_match_the_index_is_refused(tmp_path):
    path = write_split(tmp_path / "a", "ct_rate", "train", patients=2)
    write_split(tmp_path / "b", "ct_rate", "train", patients=2, first=5)
    (tmp_path / "b" / SHARD).replace(tmp_path / "a" / SHARD)
    with pytest.raises(ValueError, match=r"row 1 of .* is not ct_rate/train_1_0_0: the index is stale"):
        VolumeIndex(path).volume(1)
