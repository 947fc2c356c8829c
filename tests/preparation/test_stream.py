"""Volumes that come from a hub while they are prepared: bytes on disk, resume, failures."""

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mg3d.preparation.stream_hubs import CHUNK_BYTES, FolderHub, HubRefusedError, open_hub
from mg3d.preparation.stream_source import MARK
from small_raw import chest

from mg3d.preparation import shards, stream
from mg3d.preparation.run import PrepareOptions, prepare
from mg3d.preparation.voxels import make_volume


@dataclass(frozen=True)
class TrackingHub(FolderHub):
    """Counts what is asked for, and what lies in the cache whenever a piece is given; fails as `plan` says."""

    cache: Path = Path()
    asked: list = field(default_factory=list)
    on_disk: list = field(default_factory=list)
    plan: dict = field(default_factory=dict)
    """Part of a path -> what happens at each try: "whole", "half" (the connection breaks), an error, or "kill"."""

    def revision(self):
        return "0123456789abcdef"

    def chunks(self, path, start, revision):
        self.asked.append((path, start))
        steps = next((steps for part, steps in self.plan.items() if part in path), None)
        step = steps.pop(0) if steps else "whole"
        if isinstance(step, Exception):
            raise step
        content = (self.root / path).read_bytes()[start:]
        pieces = [content[: len(content) // 2], content[len(content) // 2 :]]
        for piece in pieces:
            self.measure()
            yield piece
            self.measure()
            if step == "half":
                raise ConnectionResetError
            if step == "kill":
                raise KeyboardInterrupt

    def measure(self):
        sizes = []
        for place in self.cache.rglob("*.nii.gz*"):
            try:
                sizes.append(place.stat().st_size)
            except FileNotFoundError:
                continue
        self.on_disk.append(sum(sizes))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(stream, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def hub(small_tree, tmp_path):
    return TrackingHub(small_tree.write(), cache=tmp_path / "cache")


def options(hub, out, **more):
    small = {"image_size": 32, "val_patients": 1, "shard_rows": 4}
    return PrepareOptions(out=out, roots={"ct_rate": hub.cache}, stream={"ct_rate": hub}, **{**small, **more})


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def sizes(hub):
    return [size for path, size in hub.files("").items() if path.endswith(".nii.gz")]


def volumes_asked(hub):
    return [path.rpartition("/")[2] for path, _ in hub.asked if path.endswith(".nii.gz")]


def test_a_streamed_set_is_the_same_as_one_on_disk_and_leaves_no_volume(hub, tmp_path):
    summary = prepare(options(hub, tmp_path / "out"))
    prepare(PrepareOptions(out=tmp_path / "plain", roots={"ct_rate": hub.root}, image_size=32, val_patients=1, shard_rows=4))
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    assert not list(hub.cache.rglob("*.nii.gz*"))
    assert sorted(volumes_asked(hub)) == sorted(path.name for path in hub.root.rglob("*.nii.gz"))
    assert summary.raw_bytes == sum(sizes(hub))
    assert prepare(options(hub, tmp_path / "out")).built == 0


@pytest.mark.parametrize("files", [1, 2, 3])
def test_the_budget_is_never_exceeded_and_is_made_use_of(hub, tmp_path, monkeypatch, files):
    budget = files * max(sizes(hub)) + 1

    def make_when_fetched_ahead(*arguments):
        for _ in range(1000):
            hub.measure()
            if max(hub.on_disk) > (files - 1) * max(sizes(hub)):
                break
            time.sleep(0.005)
        return make_volume(*arguments)

    monkeypatch.setattr(shards, "make_volume", make_when_fetched_ahead)
    prepare(options(hub, tmp_path / "out", stream_budget=budget))
    assert max(hub.on_disk) <= budget
    assert max(hub.on_disk) > (files - 1) * max(sizes(hub))


def test_workers_share_the_budget(hub, tmp_path):
    with pytest.raises(ValueError, match=r"to each of 3 workers, the largest volume has .* GB; give at least"):
        prepare(options(hub, tmp_path / "out", stream_budget=3 * max(sizes(hub)) - 3, workers=3))
    assert not volumes_asked(hub)


def test_a_broken_connection_is_taken_up_where_it_broke(hub, tmp_path):
    hub.plan["train_3_a_1"] = ["half", ConnectionError(), "whole"]
    assert prepare(options(hub, tmp_path / "out")).quarantined == []
    starts = [start for path, start in hub.asked if "train_3_a_1" in path]
    assert starts[0] == 0
    assert starts[1] == starts[2] == next(path for path in hub.root.rglob("train_3_a_1.nii.gz")).stat().st_size // 2


def test_a_file_that_never_comes_is_tried_again_by_the_next_run(hub, tmp_path):
    out = tmp_path / "out"
    prepare(options(hub, tmp_path / "whole"))
    hub.asked.clear()
    hub.plan["train_3_a_1"] = [TimeoutError("https://secret@example")] * stream.TRIES
    first = prepare(options(hub, out))
    assert [(entry.code, entry.detail) for entry in first.quarantined] == [("download_failed", "TimeoutError")]
    assert len([path for path in volumes_asked(hub) if "train_3_a_1" in path]) == stream.TRIES
    assert not list(hub.cache.rglob("*.nii.gz*"))
    assert "secret" not in (out / "quarantine.jsonl").read_text()
    hub.asked.clear()
    second = prepare(options(hub, out))
    assert (second.built, second.quarantined) == (1, [])
    assert volumes_asked(hub) == ["train_3_a_1.nii.gz"]  # the others of the shard are kept
    assert content(out) == content(tmp_path / "whole")


def test_many_failures_in_a_row_end_the_run(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "FAILURES_IN_A_ROW", 2)
    hub.plan[".nii.gz"] = [ConnectionError()] * 100
    with pytest.raises(stream.UnreachableError, match="2 files after one another"):
        prepare(options(hub, tmp_path / "out"))


def test_what_was_stored_before_the_network_went_is_not_fetched_again(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "FAILURES_IN_A_ROW", 2)
    hub.plan.update({name: [ConnectionError()] * stream.TRIES for name in ("train_5_a_1", "train_6_a_1")})
    with pytest.raises(stream.UnreachableError):
        prepare(options(hub, tmp_path / "out", shard_rows=20))
    hub.asked.clear()
    prepare(options(hub, tmp_path / "out", shard_rows=20))
    assert volumes_asked(hub) == [f"{name}.nii.gz" for name in ("train_5_a_1", "train_6_a_1", "valid_1_a_1", "valid_2_a_1")]
    prepare(options(hub, tmp_path / "whole", shard_rows=20))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_no_access_ends_the_run_at_once(hub, tmp_path):
    hub.plan[".nii.gz"] = [HubRefusedError("accept its terms")]
    with pytest.raises(HubRefusedError, match="accept its terms"):
        prepare(options(hub, tmp_path / "out"))
    assert len(volumes_asked(hub)) == 1


@pytest.mark.parametrize("files", [2, 20])
def test_a_run_that_was_cut_off_goes_on_within_its_budget(hub, tmp_path, files):
    budget = files * max(sizes(hub)) + 1
    hub.plan["train_5_a_1"] = ["kill"]
    with pytest.raises(KeyboardInterrupt):
        prepare(options(hub, tmp_path / "out", stream_budget=budget))
    left = sorted(path.name for path in hub.cache.rglob("*.nii.gz*"))
    assert any(name.endswith(".incomplete") for name in left)
    hub.asked.clear()
    hub.on_disk.clear()
    prepare(options(hub, tmp_path / "out", stream_budget=budget))
    assert max(hub.on_disk) <= budget
    if files == 20:  # there is room for what was left: it is used, not fetched again
        assert all(start for path, start in hub.asked if "train_5_a_1" in path)
        assert not set(left) & set(volumes_asked(hub))
    prepare(options(hub, tmp_path / "whole"))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not list(hub.cache.rglob("*.nii.gz*"))


def test_a_file_that_had_come_but_had_no_name_yet_is_not_asked_for_again(hub, tmp_path):
    delivery = stream.Delivery(hub, "r", hub.cache, "", hub.files(""), 1)
    path = next(path for path in delivery.sizes if path.endswith(".nii.gz"))
    partial = hub.cache / f"{path}.r.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes((hub.root / path).read_bytes())
    stream.fetch(path, delivery, threading.Event())
    assert (hub.cache / path).read_bytes() == (hub.root / path).read_bytes()
    assert hub.asked == []  # a server answers a question behind the last byte with an error


def test_a_full_disk_ends_the_run(hub, tmp_path):
    hub.plan["train_5_a_1"] = [OSError(28, "No space left on device")]
    with pytest.raises(OSError, match="No space"):
        prepare(options(hub, tmp_path / "out"))


def test_a_damaged_volume_is_set_aside_and_deleted(hub, small_tree, tmp_path):
    path = next(hub.root.rglob("train_4_a_1.nii.gz"))
    path.write_bytes(path.read_bytes()[:300])
    assert [entry.code for entry in prepare(options(hub, tmp_path / "out")).quarantined] == ["gzip_truncated"]
    assert not list(hub.cache.rglob("*.nii.gz*"))


def test_a_new_revision_brings_new_tables(hub, small_tree, tmp_path):
    prepare(options(hub, tmp_path / "out"))
    assert len([path for path, _ in hub.asked if path.endswith(".csv")]) == 6
    listing = hub.cache / "listing.json"
    listing.write_text(json.dumps(json.loads(listing.read_text()) | {"revision": "older"}))
    hub.asked.clear()
    prepare(options(hub, tmp_path / "out"))
    assert len([path for path, _ in hub.asked if path.endswith(".csv")]) == 6
    hub.asked.clear()
    prepare(options(hub, tmp_path / "out"))
    assert not hub.asked


def test_a_folder_with_files_is_never_made_the_cache(hub, tmp_path):
    hub.cache.mkdir()
    precious = hub.cache / "thesis.txt"
    precious.write_text("x")
    with pytest.raises(ValueError, match="give a new or empty folder"):
        prepare(options(hub, tmp_path / "out"))
    precious.unlink()
    prepare(options(hub, tmp_path / "out"))
    assert (hub.cache / MARK).exists()


@pytest.mark.parametrize("inside", ["dataset/cache", "."])
def test_the_cache_and_the_streamed_folder_lie_apart(small_tree, tmp_path, inside):
    root = small_tree.write()
    cache = root / inside
    with pytest.raises(ValueError, match="lie in one another"):
        prepare(PrepareOptions(out=tmp_path / "out", roots={"ct_rate": cache}, stream={"ct_rate": str(root)}, image_size=32))


@pytest.mark.parametrize(
    ("source", "words"),
    [("nowhere", "'nowhere'"), ("a/b/c", "'a/b/c'"), ("https://me:secret@hub/x", "an address"), ("../x", "'../x'")],
)
def test_a_source_that_is_none_is_told_without_its_secrets(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="owner/name") as error:
        open_hub(source)
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def test_a_folder_hub_goes_on_in_the_midst_of_a_file(tmp_path):
    whole = bytes(range(256)) * (CHUNK_BYTES // 128)
    (tmp_path / "a").write_bytes(whole)
    hub = FolderHub(tmp_path)
    assert hub.files("") == {"a": len(whole)}
    assert b"".join(hub.chunks("a", 0, "")) == whole
    assert b"".join(hub.chunks("a", 300, "")) == whole[300:]


def test_a_part_that_is_too_long_is_begun_anew(hub, tmp_path):
    delivery = stream.Delivery(hub, "r", hub.cache, "", hub.files(""), 1)
    path = next(path for path in delivery.sizes if path.endswith(".nii.gz"))
    partial = hub.cache / f"{path}.r.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * (delivery.sizes[path] + 5))
    stream.fetch(path, delivery, threading.Event())
    assert (hub.cache / path).read_bytes() == (hub.root / path).read_bytes()
    assert len(hub.asked) == 1


def test_what_a_hub_lists_that_nobody_asks_for_is_not_fetched(hub, small_tree, tmp_path):
    other = hub.root / "dataset" / "ts_seg" / "x" / "y" / "train_1_a_1.nii.gz"
    other.parent.mkdir(parents=True)
    other.write_bytes(chest().tobytes())
    prepare(options(hub, tmp_path / "out"))
    assert not [path for path, _ in hub.asked if "ts_seg" in path]
