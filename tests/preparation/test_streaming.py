"""Volumes that are downloaded while they are prepared: disk budget, failures, access; the real client against a local server."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import small_prepare
from huggingface_hub.errors import GatedRepoError
from small_prepare import files

from mg3d.preparation import shards, streaming
from mg3d.preparation.run import prepare
from mg3d.preparation.voxels import make_volume

from .fake_hub import REPO, FakeHub

ROOT = Path(__file__).parents[2]
REVISION, TOKEN = "a" * 40, "hf_verysecret"


@pytest.fixture
def hub(small_tree, tmp_path, monkeypatch):
    hub = FakeHub(small_tree.write(), tmp_path / "cache")
    hub.install(monkeypatch.setattr)
    return hub


def options(hub, out, **more):
    return small_prepare.options(None, out, roots={"ct_rate": hub.cache}, stream={"ct_rate": REPO}, **more)


def sizes(hub):
    return [path.stat().st_size for path in hub.root.rglob("*.nii.gz")]


def volumes(hub):
    return [name for name in hub.downloads if name.endswith(".nii.gz")]


def test_a_streamed_set_equals_one_on_disk_and_leaves_no_volume(hub, tmp_path):
    prepare(options(hub, tmp_path / "out"))
    prepare(small_prepare.options(hub.root, tmp_path / "local"))
    assert files(tmp_path / "out", "*.arrow") == files(tmp_path / "local", "*.arrow")
    assert not list(hub.cache.rglob("*.nii.gz"))
    assert sorted(volumes(hub)) == sorted(path.name for path in hub.root.rglob("*.nii.gz"))
    hub.downloads.clear()
    assert prepare(options(hub, tmp_path / "out")).built == 0
    assert prepare(options(hub, tmp_path / "local")).built == 0  # prepared from disk, then streamed
    assert volumes(hub) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_downloads_use_the_budget_and_never_exceed_it(hub, tmp_path, monkeypatch, count):
    budget = count * max(sizes(hub)) + 1

    def make_after_prefetch(*arguments):
        for _ in range(1000):
            hub.measure()
            if max(hub.on_disk) > (count - 1) * max(sizes(hub)):
                break
            time.sleep(0.005)
        return make_volume(*arguments)

    monkeypatch.setattr(shards, "make_volume", make_after_prefetch)
    prepare(options(hub, tmp_path / "out", stream_budget=budget))
    assert (count - 1) * max(sizes(hub)) < max(hub.on_disk) <= budget


def test_a_budget_below_one_volume_per_worker_is_refused(hub, tmp_path):
    with pytest.raises(ValueError, match=r"too small for 3 workers and volumes of up to .* GB; use at least"):
        prepare(options(hub, tmp_path / "out", stream_budget=3 * max(sizes(hub)) - 3, workers=3))
    assert not volumes(hub)


def test_a_failed_download_is_retried_then_quarantined_then_retried_by_the_next_run(hub, tmp_path):
    out = tmp_path / "out"
    prepare(options(hub, tmp_path / "complete"))
    hub.downloads.clear()
    hub.errors["train_2_a_1"] = [ConnectionError()]
    hub.errors["train_3_a_1"] = [TimeoutError("https://secret@example")] * streaming.ATTEMPTS
    first = prepare(options(hub, out))
    assert [(entry.code, entry.detail) for entry in first.quarantined] == [("download_failed", "TimeoutError")]
    assert volumes(hub).count("train_2_a_1.nii.gz") == 2
    assert volumes(hub).count("train_3_a_1.nii.gz") == streaming.ATTEMPTS
    assert "secret" not in (out / "quarantine.jsonl").read_text()
    hub.downloads.clear()
    second = prepare(options(hub, out))
    assert (second.built, second.quarantined) == (1, [])
    assert volumes(hub) == ["train_3_a_1.nii.gz"]  # the other volumes of the shard are reused
    assert files(out) == files(tmp_path / "complete")


def test_consecutive_failures_end_the_run(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_CONSECUTIVE_FAILURES", 2)
    hub.errors[".nii.gz"] = [ConnectionError()] * 100
    with pytest.raises(ConnectionError, match="2 consecutive downloads failed"):
        prepare(options(hub, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.tmp-*"))


@pytest.mark.parametrize("part", [".csv", ".nii.gz"])
def test_denied_access_ends_the_run_at_once(hub, tmp_path, part):
    response = type("Response", (), {"status_code": 403, "headers": {}, "request": None})()
    hub.errors[part] = [GatedRepoError("https://signed", response=response)] * 100
    with pytest.raises(streaming.HubAccessError, match="accept its terms") as caught:
        prepare(options(hub, tmp_path / "out"))
    assert "signed" not in str(caught.value)


def test_a_full_disk_ends_the_run(hub, tmp_path):
    hub.errors["train_5_a_1"] = [OSError(28, "No space left on device")]
    with pytest.raises(OSError, match="No space"):
        prepare(options(hub, tmp_path / "out"))


def test_files_of_a_killed_run_are_removed_before_downloads_start(hub, tmp_path):
    left = hub.cache / "volumes" / "shard-00001" / "dataset" / "x.nii.gz"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(max(sizes(hub))))
    budget = max(sizes(hub)) + 1
    prepare(options(hub, tmp_path / "out", stream_budget=budget))
    assert max(hub.on_disk[12:]) <= budget  # the tables come first
    assert not list(hub.cache.rglob("*.nii.gz"))


def test_a_damaged_volume_is_quarantined_and_deleted(hub, tmp_path):
    path = next(hub.root.rglob("train_4_a_1.nii.gz"))
    path.write_bytes(path.read_bytes()[:300])
    assert [entry.code for entry in prepare(options(hub, tmp_path / "out")).quarantined] == ["gzip_truncated"]
    assert not list(hub.cache.rglob("*.nii.gz"))


def test_the_listing_is_cached_per_commit_and_other_files_are_not_downloaded(hub, tmp_path, monkeypatch):
    mask = hub.root / "dataset" / "ts_seg" / "x" / "y" / "train_1_a_1.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"mask")
    prepare(options(hub, tmp_path / "out"))
    assert volumes(hub).count("train_1_a_1.nii.gz") == 1
    listing = json.loads((hub.cache / "listing.json").read_text())
    assert listing["revision"] == hub.revision
    monkeypatch.setattr(hub, "list_repo_tree", None, raising=False)
    prepare(options(hub, tmp_path / "out"))
    hub.revision = "b" * 40
    with pytest.raises(ConnectionError, match="no valid answer"):
        prepare(options(hub, tmp_path / "out"))


@pytest.mark.parametrize(
    ("repo", "shown"),
    [("nowhere", "'nowhere'"), ("a/b/c", "'a/b/c'"), ("https://me:secret@hub/x", "a URL"), ("../x", "'../x'")],
)
def test_an_invalid_repository_name_is_reported_without_secrets(repo, shown, tmp_path):
    with pytest.raises(ValueError, match="owner/name") as error:
        streaming.open_hub(repo, tmp_path, [])
    assert shown in str(error.value)
    assert "secret" not in str(error.value)


class Handler(BaseHTTPRequestHandler):
    """The API of one data set: its commit, its file tree, and its files, for one token only."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        self.server.requests.append((self.command, path))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
        elif path == f"/api/datasets/{REPO}":
            self.answer(200, json.dumps({"id": REPO, "sha": REVISION, "siblings": []}).encode())
        elif path == f"/api/datasets/{REPO}/tree/{REVISION}":
            paths = [path for path in self.server.root.rglob("*") if path.is_file()]
            names = {path.relative_to(self.server.root).as_posix(): path.stat().st_size for path in paths}
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in names.items()]
            self.answer(200, json.dumps(tree).encode())
        else:
            self.send_file(self.server.root / path.removeprefix(f"/datasets/{REPO}/resolve/{REVISION}/"))

    def send_file(self, path):
        content = path.read_bytes()
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{path.name}"'}
        if self.command == "GET" and path.name in self.server.broken:
            self.server.broken.remove(path.name)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:1000])
            self.wfile.flush()
            self.connection.close()
        else:
            self.answer(200, content, headers)

    def answer(self, code, content, headers=None):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(small_tree):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root, server.requests, server.broken = small_tree.write(), [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def run_command(server, out, token=TOKEN):
    command = [sys.executable, ROOT / "prepro" / "prepro_pretraining_data.py", "--stream", REPO, "--out", out]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_TOKEN": token, "HF_HOME": str(out.parent / "hf"),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    words = [*command, "--image-size", "32", "--val-patients", "1"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_command_streams_from_the_hub_and_retries_a_broken_download(server, tmp_path):
    server.broken.append("train_3_a_1.nii.gz")
    result = run_command(server, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "train 7, val 1, test 2" in result.stdout
    assert [command for command, path in server.requests if "train_3_a_1" in path].count("GET") == 2
    assert TOKEN not in result.stdout + result.stderr
    assert not list((tmp_path / "out" / "stream").rglob("*.nii.gz*"))
    server.requests.clear()
    assert run_command(server, tmp_path / "out").returncode == 0
    assert {path for _, path in server.requests} == {f"/api/datasets/{REPO}"}  # only the commit; nothing is downloaded


@pytest.mark.slow
def test_denied_access_is_reported_with_the_fix(server, tmp_path):
    result = run_command(server, tmp_path / "out", "hf_another")
    assert result.returncode == 2
    assert "accept its terms" in result.stderr
    assert "hf_another" not in result.stdout + result.stderr
    assert result.stderr.count("\n") == 1
