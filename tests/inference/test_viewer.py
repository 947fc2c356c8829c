"""The viewer: content of its interface, access, and the page in a browser."""

import csv
import http.client
import json
import re
import threading
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_arrow import write_split
from small_browser import CHROMIUM, DRIVER, browsing
from small_inference import REPORTS, save_scan
from small_raw import LPS, chest

from mg3d.datasets.arrow import open_index
from mg3d.datasets.storage import Storage
from mg3d.inference.batch_prediction import build_index
from mg3d.inference.scan import as_nifti
from mg3d.inference.scan_sources import list_scans
from mg3d.inference.search_index import SearchIndex
from mg3d.inference.viewer import server as server_module
from mg3d.inference.viewer.server import ViewerServer
from mg3d.inference.viewer.session import ViewerSession
from mg3d.preparation import geometry

MARKUP = "No <script>document.title='taken'</script> effusion & <svg>lungs</svg> are clear."
NAMES = ["a.nii.gz", "b.nii", "broken.nii.gz"]


@pytest.fixture(scope="module")
def folder_of_scans(tmp_path_factory, model):
    """Two good scans and a damaged one, a table of their reports, and an index."""
    folder = tmp_path_factory.mktemp("viewer")
    save_scan(folder / "scans" / "a.nii.gz", hu=chest(0)[::-1, ::-1], affine=LPS * [[1], [-1], [1], [1]])
    save_scan(folder / "scans" / "b.nii", seed=1)
    (folder / "scans" / "broken.nii.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("volume", "report"), *zip(NAMES, [MARKUP, REPORTS[1], "Secret."])])
    build_index(model, list_scans(model, folder / "scans", table=folder / "table.csv"), folder / "index")
    return folder


@pytest.fixture(scope="module")
def session(folder_of_scans, model):
    index = SearchIndex.load(folder_of_scans / "index")
    table = folder_of_scans / "table.csv"
    return ViewerSession(model, folder_of_scans / "scans", table=table, index=index, findings=["Effusion", "Lung nodule"])


@contextmanager
def serving(session):
    with ViewerServer() as server:
        server.session = session
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(session):
    with serving(session) as server:
        yield server


def fetch(server, path, *, method="GET", body=None, token="valid"):
    """Status, headers and content."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    headers = {} if token is None else {"X-Token": server.token if token == "valid" else token}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, dict(response.headers), content


def fetch_json(server, path, **options):
    status, _, content = fetch(server, path, **options)
    assert status == 200, content
    return json.loads(content)


def id_of(server, name):
    return next(scan["id"] for scan in fetch_json(server, "/api/scans")["scans"] if scan["name"] == name)


def as_image(content):
    return nib.Nifti1Image.from_bytes(content)


def test_the_page_loads_from_this_server_only(server):
    status, headers, page = fetch(server, "/", token=None)
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    named = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.decode())
    assert sorted(named) == ["niivue.umd.js", "page.css", "page.js"]
    for name in named:
        status, headers, content = fetch(server, f"/{name}", token=None)
        assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert len(content) > 1000


def test_a_scan_has_the_report_scores_and_neighbours_of_the_model(server, folder_of_scans, model):
    listed = fetch_json(server, "/api/scans")["scans"]
    assert sorted(scan["name"] for scan in listed) == NAMES
    scan = model.read(folder_of_scans / "scans" / "b.nii")
    found = fetch_json(server, f"/api/scan/{id_of(server, 'b.nii')}")
    assert found["report"] == REPORTS[1]
    expected = model.classify(scan, ["Effusion", "Lung nodule"])
    assert [row["present"] for row in found["scores"]] == [row.present for row in expected]
    np.testing.assert_allclose([row["probability"] for row in found["scores"]], [row.probability for row in expected], atol=1e-5)
    assert [row["kind"] for row in found["neighbours"]] == ["scan", "report", "report"]
    (other,) = [row for row in found["neighbours"] if row["kind"] == "scan"]
    assert (listed[other["id"]]["name"], other["own"]) == ("a.nii.gz", False)


@pytest.mark.parametrize("name", ["a.nii.gz", "b.nii"])
def test_scan_and_map_have_the_geometry_of_the_file(name, server, folder_of_scans, model):
    stored, scan_id = nib.load(folder_of_scans / "scans" / name), id_of(server, name)
    shown = as_image(fetch(server, f"/scan/{scan_id}.nii")[2])
    np.testing.assert_array_equal(shown.get_fdata(), stored.get_fdata())
    np.testing.assert_allclose(shown.affine, stored.affine)
    found = fetch_json(server, "/api/map", method="POST", body=json.dumps({"scan": scan_id, "sentence": REPORTS[1]}))
    expected = model.ground(model.read(folder_of_scans / "scans" / name), REPORTS[1])
    overlay = as_image(fetch(server, f"/map/{found['map']}.nii")[2])
    np.testing.assert_allclose(overlay.affine, stored.affine)
    np.testing.assert_allclose(overlay.get_fdata(), expected.in_file().get_fdata(), atol=expected.cells.max() / 255)
    assert found["peak_mm"] == pytest.approx(expected.peak_mm())


def test_report_text_is_never_markup(server):
    _, headers, content = fetch(server, f"/api/scan/{id_of(server, 'a.nii.gz')}")
    assert headers["Content-Type"] == "application/json"
    assert json.loads(content)["report"] == MARKUP
    script = (Path(server_module.__file__).parent / "static" / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|setAttribute", script)


PATHS = [
    "/../table.csv", "/%2e%2e/table.csv", "/static/../server.py", "/server.py", "//etc/passwd", "/scan/../../table.csv",
    "/scan/a.nii.gz", "/scan/-1.nii", "/scan/0.nii%00", "/map/../scan/0.nii", "/api/scan/../scans", "/NOTICE.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_cannot_name_files(path, server):
    status, _, content = fetch(server, path)
    assert (status, json.loads(content)) == (404, {"error": "not found"})


def test_requests_that_cannot_be_answered_have_a_reason_without_the_folder(server, folder_of_scans):
    broken = id_of(server, "broken.nii.gz")
    for path, reason in (
        ("/scan/99.nii", "scan 99 does not exist"), ("/api/scan/99", "scan 99 does not exist"),
        ("/map/none.nii", "no longer stored"), (f"/api/scan/{broken}", "truncated"), (f"/scan/{broken}.nii", "truncated"),
    ):  # fmt: skip
        status, _, content = fetch(server, path)
        assert status == 422
        assert reason in json.loads(content)["error"]
        assert str(folder_of_scans) not in content.decode()


@pytest.mark.parametrize("token", [None, "", "x"])
def test_without_the_token_there_is_no_data(token, server):
    for path in ("/api/scans", "/api/scan/0", "/scan/0.nii", "/map/x.nii", "/other"):
        assert fetch(server, path, token=token)[0] == 403
    assert fetch(server, "/api/map", method="POST", body='{"scan": 0, "sentence": "Clear."}', token=token)[0] == 403


MALFORMED = ["", "{", "[]", "[" * 100_000, '{"scan": "a", "sentence": "a"}', '{"scan": 1e999, "sentence": "a"}', '{"scan": 0}']
IMPOSSIBLE = ['{"scan": 0, "sentence": " "}', '{"scan": 99, "sentence": "a"}']


@pytest.mark.parametrize(
    ("body", "expected"),
    [*((body, 400) for body in MALFORMED), *((body, 422) for body in IMPOSSIBLE)],
    ids=lambda value: str(value)[:20],
)
def test_malformed_and_impossible_requests_are_answered_with_a_reason(body, expected, server):
    status, _, content = fetch(server, "/api/map", method="POST", body=body)
    assert status == expected
    assert json.loads(content)["error"]


@pytest.mark.parametrize("size", ["-1", "10000000000", "x"])
def test_a_body_of_impossible_size_is_refused_at_once(size, server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.request("POST", "/api/map", headers={"X-Token": server.token, "Content-Length": size})
    assert connection.getresponse().status == 400
    connection.close()


def test_names_reports_and_requests_are_never_logged(session, capfd, monkeypatch):
    def fail(scan_id, sentence):
        raise KeyError(f"{sentence} of a.nii.gz")

    monkeypatch.setattr(session, "ground", fail)
    with serving(session) as server:
        for path in ("/api/scans", "/api/scan/0", "/secret/a.nii.gz"):
            fetch(server, path)
        assert fetch(server, "/api/scans", method="DELETE")[0] == 501
        with pytest.raises(http.client.RemoteDisconnected):
            fetch(server, "/api/map", method="POST", body='{"scan": 0, "sentence": "Secret."}')
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == "mg3d: a request failed (KeyError)\n"


def test_prepared_volumes_are_shown_in_hu_with_their_reports(model, tmp_path):
    write_split(tmp_path, "ct_rate", "test", patients=3, shape=model.preprocessing.recipe.shape)
    session = ViewerSession(model, tmp_path / "clm_ct_rate_test.arrow")
    index = open_index(Storage(tmp_path), "ct_rate", "test")
    low, high = model.preprocessing.window_hu
    shown = as_image(session.nifti(1))
    np.testing.assert_allclose(geometry.to_lps(shown.get_fdata(), shown.affine)[0], index.volume(1).clip(low, high), atol=0.1)
    found = session.scan(1)
    assert found["report"] == index.table["report"][1].as_py()
    unit = "voxels" if "unknown spacing" in found["scan"] else "mm"
    assert found["frame"] == {"unit": unit, "origin": "from the corner of the prepared volume"}


def test_without_index_and_table_the_page_gives_the_reason(folder_of_scans, model):
    session = ViewerSession(model, folder_of_scans / "scans" / "b.nii")
    found = session.scan(0)
    assert (found["report"], found["neighbours"]) == ("", [])
    assert "no search index" in found["neighbours_missing"]
    assert as_image(session.nifti(0)).shape == as_nifti(folder_of_scans / "scans" / "b.nii").shape


def test_the_report_of_a_different_scan_with_the_same_name_is_not_shown(folder_of_scans, model, tmp_path):
    index = SearchIndex.load(folder_of_scans / "index")
    same = save_scan(tmp_path / "same" / "b.nii", seed=1)
    other = save_scan(tmp_path / "other" / "b.nii", hu=chest(1)[::-1, ::-1])
    found = ViewerSession(model, same.parent, index=index).scan(0)
    assert (found["report"], found["warning"]) == (REPORTS[1], "")
    assert [row["own"] for row in found["neighbours"] if row["key"] == "b.nii"] == [True]
    found = ViewerSession(model, other.parent, index=index).scan(0)
    assert found["report"] == ""
    assert "different scan of this name" in found["warning"]
    assert [row["own"] for row in found["neighbours"] if row["key"] == "b.nii"] == [False, False]


def test_an_index_of_another_model_is_refused(model, folder_of_scans):
    index = SearchIndex.load(folder_of_scans / "index")
    with pytest.raises(ValueError, match="made with another model"):
        ViewerSession(model, folder_of_scans / "scans", index=SearchIndex(index.vectors, index.entries, "other"))


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
def test_a_browser_shows_planes_text_neighbours_and_maps(server, tmp_path):
    with browsing(tmp_path) as browser:
        browser.open(f"{server.address}&scan={id_of(server, 'a.nii.gz')}")
        browser.wait("current !== null")
        assert browser.run("return document.getElementById('report').textContent") == MARKUP
        assert browser.run("return document.title") == "mg3d viewer"
        assert browser.run("return document.querySelectorAll('meter').length") == 2
        plain = browser.screenshot("#canvas")
        assert np.unique(plain[np.ptp(plain, axis=-1) < 9]).size > 50
        browser.type("#sentence", REPORTS[1])
        browser.click("#question button")
        browser.wait("document.getElementById('map').textContent.startsWith('cosine')")
        assert coloured(browser.screenshot("#canvas")) > coloured(plain) + 0.05
        position = browser.run("return at('position').textContent")
        assert re.match(r"R -?\d+, A -?\d+, S -?\d+ mm of the file: -?\d+ HU, map", position)
        browser.click("#clear")
        assert coloured(browser.screenshot("#canvas")) == pytest.approx(coloured(plain), abs=0.01)
        browser.click("button.case")
        browser.wait(f"current === {id_of(server, 'b.nii')}")
        assert browser.run("return document.getElementById('report').textContent") == REPORTS[1]
        assert browser.errors() == []
        browser.run(f"open({id_of(server, 'broken.nii.gz')})")
        browser.wait("!document.getElementById('problem').hidden")
        assert browser.run("return [viewer.volumes.length, at('report').textContent]") == [0, ""]


def coloured(screenshot):
    """Fraction of pixels that are not grey."""
    return (np.ptp(screenshot.astype(int), axis=-1) > 12).mean()
