"""The client of the Hugging Face hub against a small server that speaks as much of its language as is needed."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
REPO, REVISION, TOKEN = "someone/CT-RATE", "a" * 40, "hf_verysecret"


class Hub(BaseHTTPRequestHandler):
    """GET of the data set's commit, its tree, and of files, whole or from a byte on; to the owner of the token alone."""

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append((path, self.headers.get("Range")))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
        elif path == f"/api/datasets/{REPO}":
            self.answer(200, json.dumps({"id": REPO, "sha": REVISION, "siblings": []}).encode())
        elif path == f"/api/datasets/{REPO}/tree/{REVISION}":
            files = [path for path in self.server.root.rglob("*") if path.is_file()]
            names = {path.relative_to(self.server.root).as_posix(): path.stat().st_size for path in files}
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in names.items()]
            self.answer(200, json.dumps(tree).encode())
        else:
            self.send_file(self.server.root / path.removeprefix(f"/datasets/{REPO}/resolve/{REVISION}/"))

    def send_file(self, place):
        content, asked = place.read_bytes(), self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if place.name in self.server.broken:
            self.server.broken.remove(place.name)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:1000])
            self.wfile.flush()
            self.connection.close()
        elif asked and self.server.ranges:
            self.answer(206, content[start:], {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})
        else:
            self.answer(200, content)

    def answer(self, code, content, headers=None):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(small_tree):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root, server.asked, server.broken, server.ranges = small_tree.write(), [], [], True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()


def stream(server, out, token=TOKEN, *more):
    command = [sys.executable, ROOT / "prepro" / "prepro_pretraining_data.py", "--stream", REPO, "--out", out]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_TOKEN": token, "HF_HOME": str(out.parent / "hf"),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    words = [*command, "--image-size", "32", "--val-patients", "1", *more]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [True, False])
def test_the_command_streams_from_the_hub_and_resumes_a_broken_file(server, tmp_path, ranges):
    server.broken.append("train_3_a_1.nii.gz")
    server.ranges = ranges
    result = stream(server, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "train 7, val 1, test 2" in result.stdout
    assert [asked for path, asked in server.asked if "train_3_a_1" in path] == [None, "bytes=1000-"]
    assert TOKEN not in result.stdout + result.stderr
    assert not list((tmp_path / "out" / "stream").rglob("*.nii.gz*"))
    server.asked.clear()
    assert stream(server, tmp_path / "out").returncode == 0
    assert [path for path, _ in server.asked] == [f"/api/datasets/{REPO}"]  # which commit it is, and nothing else


@pytest.mark.slow
def test_who_has_no_access_is_told_what_to_do(server, tmp_path):
    result = stream(server, tmp_path / "out", "hf_another")
    assert result.returncode == 2
    assert "accept its terms" in result.stderr
    assert "hf_another" not in result.stdout + result.stderr
    assert result.stderr.count("\n") == 1
