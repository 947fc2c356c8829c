"""The viewer: what it tells, and what it tells nobody."""

import csv
import http.client
import json
import re
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_arrow import write_split
from small_browser import CHROMIUM, DRIVER, browsing
from small_dicom import write_series
from small_inference import REPORTS, save_scan
from small_raw import LPS, chest

from mg3d.datasets.arrow import open_index
from mg3d.datasets.storage import Storage
from mg3d.inference.index import SearchIndex
from mg3d.inference.many import embed_all
from mg3d.inference.scans import as_nifti
from mg3d.inference.sources import list_scans
from mg3d.inference.viewer import server as server_module
from mg3d.inference.viewer.cases import Cases, Unusable
from mg3d.inference.viewer.server import Viewer
from mg3d.preparation import geometry

MARKUP = "No <script>document.title='taken'</script> effusion & <b>lungs</b> are clear."
NAMES = ["a.nii.gz", "b.nii", "broken.nii.gz"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, model):
    """A folder of two good scans and a damaged one, a table of their reports, and an index."""
    place = tmp_path_factory.mktemp("viewer")
    save_scan(place / "scans" / "a.nii.gz", hu=chest(0)[::-1, ::-1], affine=LPS * [[1], [-1], [1], [1]])
    save_scan(place / "scans" / "b.nii", seed=1)
    (place / "scans" / "broken.nii.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with (place / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("volume", "report"), *zip(NAMES, [MARKUP, REPORTS[1], "Secret."])])
    embed_all(model, list_scans(model, place / "scans", table=place / "table.csv"), place / "index")
    return place


@pytest.fixture(scope="module")
def cases(place, model):
    index = SearchIndex.load(place / "index")
    return Cases(model, place / "scans", table=place / "table.csv", index=index, findings=["Effusion", "Lung nodule"])


@contextmanager
def serving(cases, **how):
    with Viewer(cases, **how) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(cases):
    with serving(cases) as server:
        yield server


def ask(server, path, *, method="GET", body=None, **headers):
    """Status, headers and content; the path as it is written, which no client's tidying has touched."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    given = {"X-Token": server.token} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {name: value for name, value in given.items() if value is not None})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


def told(server, path, **how):
    status, _, content = ask(server, path, **how)
    assert status == 200, content
    return json.loads(content)


def as_image(content):
    return nib.Nifti1Image.from_bytes(content)


def test_the_page_and_its_parts_come_from_the_server_alone(server):
    status, headers, page = ask(server, "/", X_Token=None)
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    named = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.decode())
    assert sorted(named) == ["niivue.umd.js", "page.css", "page.js"]
    for name in named:
        status, headers, content = ask(server, f"/{name}", X_Token=None)
        assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert len(content) > 1000


def test_a_case_is_told_as_the_model_tells_it(server, place, model):
    listed = told(server, "/api/cases")["cases"]
    assert sorted(item["name"] for item in listed) == NAMES
    case = next(item["id"] for item in listed if item["name"] == "b.nii")
    scan = model.read(place / "scans" / "b.nii")
    found = told(server, f"/api/case/{case}")
    assert found["report"] == REPORTS[1]
    expected = model.classify(scan, ["Effusion", "Lung nodule"])
    assert [row["present"] for row in found["scores"]] == [row.present for row in expected]
    np.testing.assert_allclose([row["probability"] for row in found["scores"]], [row.probability for row in expected], atol=1e-5)
    kinds = [row["kind"] for row in found["neighbours"]]
    assert kinds == ["scan", "report", "report"]
    (other,) = [row for row in found["neighbours"] if row["kind"] == "scan"]
    assert (listed[other["id"]]["name"], other["own"]) == ("a.nii.gz", False)


@pytest.mark.parametrize("name", ["a.nii.gz", "b.nii"])
def test_scan_and_map_lie_where_the_file_lies(name, server, place, model):
    case = next(item["id"] for item in told(server, "/api/cases")["cases"] if item["name"] == name)
    stored = nib.load(place / "scans" / name)
    shown = as_image(ask(server, f"/scan/{case}.nii")[2])
    np.testing.assert_array_equal(shown.get_fdata(), stored.get_fdata())
    np.testing.assert_allclose(shown.affine, stored.affine)
    answer = told(server, "/api/map", method="POST", body=json.dumps({"case": case, "sentence": REPORTS[1]}))
    region = model.ground(model.read(place / "scans" / name), REPORTS[1])
    overlay = as_image(ask(server, f"/map/{answer['map']}.nii")[2])
    np.testing.assert_allclose(overlay.affine, stored.affine)
    np.testing.assert_allclose(overlay.get_fdata(), region.in_file().get_fdata(), atol=region.cells.max() / 255)
    assert answer["peak_mm"] == pytest.approx(region.peak_mm())


def test_text_of_a_report_is_no_markup_wherever_it_goes(server):
    case = next(item["id"] for item in told(server, "/api/cases")["cases"] if item["name"] == "a.nii.gz")
    _, headers, content = ask(server, f"/api/case/{case}")
    assert headers["Content-Type"] == "application/json"
    assert not set(b"<>&") & set(content)
    assert json.loads(content)["report"] == MARKUP
    script = (Path(server_module.__file__).parent / "static" / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|setAttribute", script)


TRICKS = [
    "/../table.csv", "/%2e%2e/table.csv", "/..%2ftable.csv", "/static/../server.py", "/server.py", "/page.js/../server.py",
    "//etc/passwd", "/etc/passwd", "/scan/../../table.csv", "/scan/..%2F..%2Ftable.csv.nii", "/scan/a.nii.gz", "/scan/-1.nii",
    "/scan/0.nii/..", "/scan/0.nii%00", "/scan/%30.nii", "/map/../scan/0.nii", "/map/..nii", "/api/case/../cases",
    "/page.js?x=/etc/passwd", "http://127.0.0.1/api/cases", "/NOTICE.txt", "/\\..\\table.csv",
]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_a_path_names_nothing_but_what_is_offered(path, server):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as line:
        head = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nX-Token: {server.token}\r\nConnection: close\r\n\r\n"
        )
        line.sendall(head.encode())
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    assert answer.split()[1] == b"404"
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "there is nothing of that name"}


def test_cases_and_maps_that_are_not_there_are_refused_in_words(server):
    for path, words in (("/scan/99.nii", "no case 99"), ("/api/case/99", "no case 99"), ("/map/none.nii", "no longer kept")):
        status, _, content = ask(server, path)
        assert status == 422
        assert words in json.loads(content)["error"]


def test_a_scan_that_cannot_be_read_says_why_without_its_place(server, place):
    case = next(item["id"] for item in told(server, "/api/cases")["cases"] if item["name"] == "broken.nii.gz")
    for path in (f"/api/case/{case}", f"/scan/{case}.nii"):
        status, _, content = ask(server, path)
        assert (status, "truncated" in content.decode(), str(place) in content.decode()) == (422, True, False)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:PORT", ""]
)
def test_a_request_for_another_host_reaches_nothing(host, server):
    for path in ("/", "/api/cases", "/scan/0.nii"):
        status, _, content = ask(server, path, Host=host.replace("PORT", str(server.server_port)))
        assert status == 421
        assert b"a.nii" not in content
    assert ask(server, "/api/map", method="POST", body="{}", Host=host)[0] == 421


def test_loopback_s_own_names_and_those_that_were_given_are_answered(cases):
    with serving(cases, names=["Viewer.example"]) as server:
        port = server.server_port
        assert server.server_address[0] == "127.0.0.1"
        for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "viewer.example"):
            assert ask(server, "/api/cases", Host=host)[0] == 200


@pytest.mark.parametrize("token", [None, "", "x", "ä"])
def test_without_the_token_there_is_no_data(token, server):
    given = token.encode() if token else token
    for path in ("/api/cases", "/api/case/0", "/scan/0.nii", "/map/x.nii", "/other"):
        assert ask(server, path, X_Token=given)[0] == 403
    assert ask(server, "/api/map", method="POST", body='{"case": 0, "sentence": "Clear."}', X_Token=given)[0] == 403


BAD_QUESTIONS = [
    "", "{", "[]", "1", "[" * 9000, '{"case": "0", "sentence": "a"}', '{"case": true, "sentence": "a"}', '{"case": 0}',
    '{"case": 0, "sentence": " "}', '{"case": 99, "sentence": "a"}', '{"case": -1, "sentence": "a"}',
    '{"case": 0, "sentence": 1}',
    '{"case": 0, "sentence": "' + "a" * 10_000 + '"}',
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_QUESTIONS, ids=range(len(BAD_QUESTIONS)))
def test_a_question_that_is_none_is_refused(body, server):
    status, _, content = ask(server, "/api/map", method="POST", body=body)
    assert status == 422
    assert json.loads(content)["error"]


def test_other_methods_change_and_tell_nothing(server):
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        status, _, content = ask(server, "/api/cases", method=method)
        assert status == 501
        assert b"a.nii" not in content
    assert ask(server, "/api/other", method="POST", body="{}")[0] == 404


def test_nothing_is_logged_of_names_reports_and_questions(cases, capfd, monkeypatch):
    def fail(case, sentence):
        raise KeyError(f"{sentence} of a.nii.gz")

    monkeypatch.setattr(cases, "ground", fail)
    with serving(cases) as server:
        ask(server, "/api/cases")
        ask(server, "/api/case/0")
        ask(server, "/secret/a.nii.gz")
        with pytest.raises(http.client.RemoteDisconnected):
            ask(server, "/api/map", method="POST", body='{"case": 0, "sentence": "Secret."}')
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == "mg3d: a request failed (KeyError)\n"


@pytest.fixture
def outside(tmp_path):
    """A folder of one scan with links to a scan, a series and raw voxels outside of it."""
    root, other = tmp_path / "given", tmp_path / "other"
    save_scan(root / "own.nii")
    save_scan(other / "foreign.nii", seed=1)
    write_series(other / "series", chest(2))
    (root / "link.nii").symlink_to(other / "foreign.nii")
    (root / "circle.nii").symlink_to(root / "circle.nii")
    (root / "slices").mkdir()
    for slice_file in (other / "series").iterdir():
        (root / "slices" / slice_file.name).symlink_to(slice_file)
    (root / "meta").mkdir()
    (root / "meta" / "head.mhd").write_text("ElementDataFile = voxels.raw\n")
    (root / "meta" / "voxels.raw").symlink_to(other / "foreign.nii")
    return root, other


def test_links_out_of_the_folder_are_not_followed(outside, model):
    root, other = outside
    cases = Cases(model, root)
    assert [item.key for item in cases.items] == ["own.nii"]
    assert cases.left_out == 4
    followed = Cases(model, root, also=[other])
    assert {item.key for item in followed.items} == {"own.nii", "link.nii", "slices", "meta/head.mhd"}
    (root / "own.nii").unlink()
    with pytest.raises(ValueError, match="--also"):
        Cases(model, root)


def test_a_file_that_becomes_a_link_is_no_longer_read(outside, model):
    root, other = outside
    cases = Cases(model, root)
    (root / "own.nii").unlink()
    (root / "own.nii").symlink_to(other / "foreign.nii")
    with pytest.raises(Unusable, match="outside"):
        cases.nifti(0)
    with pytest.raises(Unusable, match="outside"):
        cases.case(0)


def test_prepared_volumes_are_shown_in_hu_with_their_reports(model, tmp_path):
    write_split(tmp_path, "ct_rate", "test", patients=3, shape=model.preprocessing.recipe.shape)
    cases = Cases(model, tmp_path / "clm_ct_rate_test.arrow")
    index = open_index(Storage(tmp_path), "ct_rate", "test")
    low, high = model.preprocessing.window_hu
    shown = as_image(cases.nifti(1))
    np.testing.assert_allclose(geometry.to_lps(shown.get_fdata(), shown.affine)[0], index.volume(1).clip(low, high), atol=0.1)
    assert cases.case(1)["report"] == index.table["report"][1].as_py()


def test_places_of_a_prepared_volume_are_told_as_its_own(model, tmp_path):
    write_split(tmp_path, "ct_rate", "test", patients=1, shape=model.preprocessing.recipe.shape)
    told = Cases(model, tmp_path / "clm_ct_rate_test.arrow").case(0)
    assert told["frame"]["of"] == "of the prepared volume, from its corner"
    assert told["frame"]["unit"] == ("voxels" if "no known spacing" in told["scan"] else "mm")


def test_without_index_and_table_the_page_says_what_is_missing(place, model):
    cases = Cases(model, place / "scans" / "b.nii")
    found = cases.case(0)
    assert (found["report"], found["neighbours"]) == ("", [])
    assert "no search index was given" in found["neighbours_missing"]
    assert as_image(cases.nifti(0)).shape == as_nifti(place / "scans" / "b.nii").shape


def test_the_report_of_another_scan_of_the_same_name_is_not_shown(place, model, tmp_path):
    index = SearchIndex.load(place / "index")
    same = save_scan(tmp_path / "same" / "b.nii", seed=1)
    other = save_scan(tmp_path / "other" / "b.nii", hu=chest(1)[::-1, ::-1])
    found = Cases(model, same.parent, index=index).case(0)
    assert (found["report"], found["warning"]) == (REPORTS[1], "")
    assert [row["own"] for row in found["neighbours"] if row["key"] == "b.nii"] == [True]
    found = Cases(model, other.parent, index=index).case(0)
    assert found["report"] == ""
    assert "another scan under this name" in found["warning"]
    assert [row["own"] for row in found["neighbours"] if row["key"] == "b.nii"] == [False, False]


def test_an_index_of_another_model_is_refused(model, place):
    index = SearchIndex.load(place / "index")
    with pytest.raises(ValueError, match="made by another model"):
        Cases(model, place / "scans", index=SearchIndex(index.vectors, index.entries, "other"))


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
def test_a_browser_shows_planes_words_neighbours_and_maps(server, tmp_path):
    numbers = {item["name"]: item["id"] for item in told(server, "/api/cases")["cases"]}
    with browsing(tmp_path) as browser:
        browser.open(f"{server.address}&case={numbers['a.nii.gz']}")
        browser.wait("current !== null")
        assert browser.run("return document.getElementById('report').textContent") == MARKUP
        assert browser.run("return document.title") == "mg3d viewer"
        assert browser.run("return document.querySelectorAll('meter').length") == 2
        plain = browser.picture("#canvas")
        assert np.unique(plain[np.ptp(plain, axis=-1) < 9]).size > 50
        browser.type("#sentence", REPORTS[1])
        browser.click("#question button")
        browser.wait("document.getElementById('map').textContent.startsWith('cosine')")
        assert coloured(browser.picture("#canvas")) > coloured(plain) + 0.05
        assert re.match(r"R -?\d+, A -?\d+, S -?\d+ mm of the file: -?\d+ HU, map", browser.run("return at('place').textContent"))
        browser.click("#clear")
        assert coloured(browser.picture("#canvas")) == pytest.approx(coloured(plain), abs=0.01)
        browser.click("button.case")
        browser.wait(f"current === {numbers['b.nii']}")
        assert browser.run("return document.getElementById('report').textContent") == REPORTS[1]
        assert browser.complaints() == []
        browser.run(f"open({numbers['broken.nii.gz']})")
        browser.wait("!document.getElementById('problem').hidden")
        assert browser.run("return [viewer.volumes.length, at('report').textContent]") == [0, ""]


def coloured(picture):
    """Share of the planes that is no grey."""
    return (np.ptp(picture.astype(int), axis=-1) > 12).mean()
