"""The commands: same results as in Python, continued after an interruption, unusable scans listed, errors in one line."""

import csv
import importlib.util
import re
import socket
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from small_arrow import write_split
from small_dicom import NAME, write_series
from small_inference import REPORTS, save_scan
from small_raw import chest

from mg3d.datasets.arrow import open_index
from mg3d.datasets.storage import Storage
from mg3d.inference.batch_prediction import build_index, write_predictions
from mg3d.inference.cli import finding_warnings
from mg3d.inference.scan_sources import ScanSource, list_scans
from mg3d.inference.search_index import SearchIndex
from mg3d.models.vision.windows import plan_windows
from mg3d.preparation.quarantine import REASONS
from mg3d.preparation.recipe import Recipe

TOOLS = Path(__file__).parents[2] / "tools"


def command(name, *arguments):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main([str(argument) for argument in arguments])


@pytest.fixture
def tree(tmp_path):
    """Two good scans, a series, a damaged file, and a table with their reports."""
    root = tmp_path / "tree"
    save_scan(root / "one" / "a.nii.gz", hu=chest(0)[::-1, ::-1])
    save_scan(root / "two" / "b.nii", seed=1)
    write_series(root / "series", chest(2))
    (root / "broken.nii.gz").write_bytes(b"\x1f\x8b\x08\x00")
    rows = [("one/a.nii.gz", REPORTS[0]), ("two/b.nii", REPORTS[1]), ("series", ""), ("broken.nii.gz", "Clear.")]
    with (tmp_path / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("volume", "report"), *rows])
    return root


def read_rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_an_index_of_a_folder_has_the_embeddings_of_python_and_is_continued(tree, folder, model, tmp_path, capsys):
    out = tmp_path / "index"
    arguments = ("--model", folder, "--device", "cpu", tree, "--out", out, "--table", tmp_path / "table.csv")
    assert command("embed", *arguments) == 0
    printed = capsys.readouterr()
    assert "3 scans done, 0 already done, 1 failed" in printed.out
    assert not any(word in printed.out + printed.err for word in (NAME, "effusion", "broken", "series"))
    index = SearchIndex.load(out)
    kinds = index.entries["kind"].to_pylist()
    assert [kinds.count(kind) for kind in ("scan", "report", "sentence")] == [3, 2, 4]
    by_key = {tuple(entry.values()): vector for entry, vector in zip(index.entries.to_pylist(), index.vectors, strict=True)}
    np.testing.assert_allclose(by_key["two/b.nii", "scan", ""], model.embed(model.read(tree / "two" / "b.nii")), atol=1e-5)
    np.testing.assert_allclose(by_key["series", "scan", ""], model.embed(model.read(chest(2))), atol=1e-5)
    np.testing.assert_allclose(by_key["one/a.nii.gz", "report", REPORTS[0]], model.embed_report(REPORTS[0]), atol=1e-5)
    failed = read_rows(out / "failed.csv")
    assert [row["scan"] for row in failed] == ["broken.nii.gz"]
    assert failed[0]["reason"].startswith("the compressed file is truncated")
    save_scan(tree / "broken.nii.gz", seed=5)
    assert command("embed", *arguments) == 0
    assert "1 scans done, 3 already done" in capsys.readouterr().out
    assert sum(kind == "scan" for kind in SearchIndex.load(out).entries["kind"].to_pylist()) == 4


def test_an_interrupted_run_keeps_its_results(model, tmp_path):
    def stop():
        raise KeyboardInterrupt

    good = [ScanSource(f"scan {number}", "", lambda number=number: model.read(chest(number))) for number in range(5)]
    with pytest.raises(KeyboardInterrupt):
        build_index(model, [*good[:4], ScanSource("stop", "", stop), *good[4:]], tmp_path / "index", workers=1)
    table = {"columns": ["x"], "predict": lambda scans: [[1]] * len(scans)}
    with pytest.raises(KeyboardInterrupt):
        write_predictions(model, [*good[:2], ScanSource("stop", "", stop)], tmp_path / "x.csv", **table)
    assert [row["x"] for row in read_rows(tmp_path / "x.csv")] == ["1", "1"]
    assert len(SearchIndex.load(tmp_path / "index")) == 4
    outcome, entries = build_index(model, good, tmp_path / "index")
    assert (outcome.new, outcome.existing, entries) == (1, 4, 5)


def test_search_by_text_and_by_scan_finds_the_entry_itself_first(tree, folder, tmp_path, capsys):
    out, about = tmp_path / "index", ("--model", folder, "--device", "cpu")
    command("embed", *about, tree, "--out", out, "--table", tmp_path / "table.csv")
    capsys.readouterr()
    assert command("search", *about, out, "--text", REPORTS[1], "-k", 2, "--kind", "report") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:4] == ["1", "+1.000", "report", "two/b.nii"]
    assert second.split()[3] == "one/a.nii.gz"
    assert command("search", *about, out, "--scan", tree / "one" / "a.nii.gz", "--kind", "scan") == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:4] == ["1", "+1.000", "scan", "one/a.nii.gz"]


def test_zero_shot_prints_and_writes_the_scores_of_python(tree, folder, model, tmp_path, capsys):
    about, names = ("--model", folder, "--device", "cpu"), ["Effusion", "Lung nodule"]
    expected = model.classify(model.read(tree / "two" / "b.nii"), names)
    assert command("zero_shot", *about, tree / "two" / "b.nii", "--findings", *names) == 0
    assert capsys.readouterr().out.strip() == str(expected)
    out = tmp_path / "scores.csv"
    assert command("zero_shot", *about, tree, "--findings", *names, "--out", out) == 0
    rows = {row["scan"]: row for row in read_rows(out)}
    assert len(rows) == 4
    found = [float(rows["two/b.nii"][row.present]) for row in expected]
    assert found == pytest.approx([row.probability for row in expected], abs=1e-5)
    assert rows["broken.nii.gz"]["error"].startswith("the compressed file")
    assert command("zero_shot", *about, tree, "--findings", *names, "--out", out) == 0
    assert "0 scans done, 3 already done, 1 failed" in capsys.readouterr().out
    assert len(read_rows(out)) == 4
    assert command("zero_shot", *about, tree, "--findings", "Effusion", "--out", out) == 2
    assert "has predictions of another model or other columns" in capsys.readouterr().err
    assert command("zero_shot", *about, tree / "two", "--findings", *names, "--out", out) == 2
    assert "where equal names may be other scans" in capsys.readouterr().err
    assert len(read_rows(out)) == 4


def test_ground_writes_the_map_of_python_over_the_scan(tree, folder, model, tmp_path, capsys):
    scan, out = tree / "one" / "a.nii.gz", tmp_path / "map.nii.gz"
    assert command("ground", "--model", folder, "--device", "cpu", scan, REPORTS[0], "--out", out) == 0
    assert "cosine" in capsys.readouterr().out
    image = nib.load(out)
    np.testing.assert_allclose(image.affine, nib.load(scan).affine)
    expected = model.ground(model.read(scan), REPORTS[0]).in_file().get_fdata()
    np.testing.assert_allclose(image.get_fdata(), expected, atol=1e-4)
    before = scan.read_bytes()
    assert command("ground", "--model", folder, "--device", "cpu", scan, REPORTS[0], "--out", scan) == 2
    assert "exists and may be a scan" in capsys.readouterr().err
    assert scan.read_bytes() == before


@pytest.mark.slow
def test_the_exported_encoder_reproduces_the_embeddings(folder, model, tmp_path, capsys):
    plan_windows.cache_clear()  # as in a new process
    assert command("export_encoder", "--model", folder, "--device", "cpu", tmp_path / "encoder.pt2") == 0
    assert "maximum difference of embeddings" in capsys.readouterr().out
    exported = torch.export.load(tmp_path / "encoder.pt2")
    assert not any("mg3d" in str(node.target) for node in exported.graph.nodes)  # it runs without mg3d
    program = exported.module()
    scan = model.read(chest(3))
    with torch.no_grad():
        vector = program(torch.from_numpy(scan.volume)[None, None])[0].numpy()
    np.testing.assert_allclose(vector, model.embed(scan), atol=1e-5)
    assert command("export_encoder", "--model", folder, "--device", "cpu", tmp_path / "other.pt2", "--tolerance", -1) == 2
    assert not (tmp_path / "other.pt2").exists()


def test_the_viewer_prints_its_address_and_stops_on_an_interrupt(tree, folder, capsys, monkeypatch):
    started = []

    def serve(server):
        started.append((server.server_address[0], len(server.session.scans), server.session.findings))
        raise KeyboardInterrupt

    monkeypatch.setattr("mg3d.inference.viewer.server.ViewerServer.serve_forever", serve)
    assert command("viewer", tree, "--model", folder, "--device", "cpu", "--findings", "Effusion") == 0
    assert started == [("127.0.0.1", 4, ["Effusion"])]
    printed = capsys.readouterr()
    assert re.match(r"mg3d: 4 scans at http://127.0.0.1:\d+/#token=[\w-]{32}\nmg3d: stopped\n$", printed.out)


@pytest.mark.parametrize("address", ["port in use", "unknown host", "port out of range"])
def test_an_address_that_cannot_be_used_is_refused_before_the_model_is_loaded(address, tree, folder, capsys, monkeypatch):
    monkeypatch.setattr("mg3d.inference.load.load", None)
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        hosts = {"unknown host": "not.a.host.invalid"}
        host, port = hosts.get(address, "127.0.0.1"), 99999 if address == "port out of range" else port
        assert command("viewer", tree, "--model", folder, "--host", host, "--port", port) == 2
    printed = capsys.readouterr().err
    assert f"cannot listen on {host}:{port} (" in printed
    assert "Choose another --port or --host." in printed


BAD = {
    "no model": (["search", "--model", "{}/none.ckpt", "{}", "--text", "a"], "does not exist"),
    "no index": (["search", "--model", "M", "{}", "--text", "a"], "has no search index"),
    "empty folder": (["embed", "--model", "M", "{}", "--out", "{}/index"], "has no scan"),
    "no captioning head": (["generate", "--model", "M", "{}"], "without a captioning head"),
    "contrast with itself": (
        ["ground", "--model", "M", "s.nii", "A.", "--against", "A.", "--out", "{}/m.nii"],
        "--against equals the sentence",
    ),
    "suffix": (["export_encoder", "--model", "M", "{}/encoder.pt"], "expected the suffix .pt2"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line(case, folder, tmp_path, capsys):
    (name, *arguments), expected = BAD[case]
    arguments = [str(folder) if word == "M" else word.format(tmp_path) for word in arguments]
    assert command(name, *arguments, "--device", "cpu") == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


EARLY = {
    "embed": ["{}/none", "--out", "{}/index"],
    "search": ["{}/none", "--text", "a"],
    "zero_shot": ["{}/none.nii"],
    "generate": ["{}/none.nii"],
    "ground": ["{}/none.nii", "A.", "--out", "{}/map.nii"],
    "viewer": ["{}/none"],
}


@pytest.mark.parametrize("name", EARLY)
def test_a_missing_path_is_reported_before_the_model_is_loaded(name, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mg3d.inference.load.load", None)
    arguments = [word.format(tmp_path) for word in EARLY[name]]
    assert command(name, *arguments, "--model", folder) == 2
    assert capsys.readouterr().err == f"mg3d: {arguments[0]} does not exist\n"


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("zero_shot", ["s.nii", "--out", "{}/no/x.csv"], "argument --out: the folder {}/no does not exist; create it"),
        ("ground", ["s.nii", "A.", "--out", "{}"], "argument --out: {} is a folder; name a file"),
        ("search", ["i", "--text", "a", "-k", "0"], "argument -k: '0' is not a positive integer"),
    ],
)
def test_a_wrong_option_is_reported_in_two_lines_and_creates_nothing(name, words, expected, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(name, *(word.format(tmp_path) for word in words), "--model", "m")
    assert stopped.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == f"usage: {name}.py --help lists all options"
    assert expected.format(tmp_path) in error
    assert not list(tmp_path.iterdir())


def test_a_misspelt_finding_has_a_warning():
    (warning,) = finding_warnings(["Cardiomegally", "cardiomegaly", "Lung nodule", "Rib fracture"])
    assert warning.startswith("'Cardiomegally' is used as given, but is not one of CT-RATE's 18 findings")
    assert warning.endswith("Did you mean 'Cardiomegaly'?")
    with pytest.raises(ValueError, match="a name has no letters"):
        finding_warnings(["Effusion", " "])


def test_a_viewer_of_one_unreadable_scan_does_not_start(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mg3d.inference.viewer.server.ViewerServer.serve_forever", None)
    for name in ("notes.txt", "notes.nii.gz"):
        (tmp_path / name).write_text("not a scan")
        assert command("viewer", tmp_path / name, "--model", folder, "--device", "cpu") == 2
        printed = capsys.readouterr()
        assert f"{tmp_path / name} has no scan that can be shown: " in printed.err
        assert printed.out == ""


def test_prepared_studies_are_scans_with_their_reports(model, tmp_path):
    grid = model.preprocessing.recipe.shape
    write_split(tmp_path, "ct_rate", "test", patients=3, reconstructions=2, shape=grid)
    items = list_scans(model, tmp_path / "clm_ct_rate_test.arrow")
    assert len(items) == 3
    scan = items[1].read()
    index = open_index(Storage(tmp_path), "ct_rate", "test")
    low, high = model.preprocessing.window_hu
    np.testing.assert_allclose(scan.volume, ((index.volume(2) - low) / (high - low)).clip(0, 1), atol=1e-6)
    assert items[1].report == index.table["report"][2].as_py()
    np.testing.assert_array_equal(scan.upright(scan.volume), scan.volume)
    write_split(tmp_path / "other", "ct_rate", "test", patients=1, shape=(8, 16, 12))
    with pytest.raises(ValueError, match="has volumes of 8x16x12 voxels, but the model reads 32x24x32"):
        list_scans(model, tmp_path / "other" / "clm_ct_rate_test.arrow")


def test_volumes_with_other_preprocessing_are_refused(model, tmp_path):
    grid = model.preprocessing.recipe.shape
    write_split(tmp_path, "ct_rate", "test", patients=1, shape=grid, recipe=Recipe(shape=grid, crop="body").provenance("custom"))
    with pytest.raises(ValueError, match=r"differs from the model's training data in preprocessing \(crop\)"):
        list_scans(model, tmp_path / "clm_ct_rate_test.arrow")
    recipe = Recipe(shape=grid).provenance("ctrg")
    write_split(tmp_path, "ctrg", "test", patients=1, shape=grid, unit="uint8_unknown_window", recipe=recipe)
    assert len(list_scans(model, tmp_path / "clm_chest_ctrg_test.arrow")) == 1


@pytest.mark.parametrize("cell", ["a.npz", "a"])
def test_a_table_can_name_arrays_with_or_without_their_suffix(cell, model, tmp_path):
    (tmp_path / "clinic").mkdir()
    np.savez_compressed(tmp_path / "clinic" / "a.npz", arr_0=chest(1).clip(-1000, 1000) / 1000.0)
    (tmp_path / "table.csv").write_text(f"volume,report\n{cell},Clear.\n")
    (item,) = list_scans(model, tmp_path / "clinic", table=tmp_path / "table.csv")
    assert (item.key, item.report) == ("a.npz", "Clear.")
    assert item.read().source_shape == model.read(tmp_path / "clinic" / "a.npz").source_shape


def test_a_foreign_table_is_not_overwritten(model, tmp_path):
    for content, expected in (("a,b\n1,2\n", "predictions of another model"), ("", "is not a table of predictions")):
        (tmp_path / "mine.csv").write_text(content)
        with pytest.raises(ValueError, match=expected):
            write_predictions(model, [], tmp_path / "mine.csv", columns=["x"], predict=lambda scans: [])
        assert (tmp_path / "mine.csv").read_text() == content


def test_contradicting_rows_of_a_table_fail(tree, model, tmp_path):
    label = "Lung nodule"
    rows = [f"volume,{label}", "one/a.nii.gz,0", "one/a.nii.gz,1", "two/b.nii,0", "gone.nii,0"]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    outcome, _ = build_index(model, list_scans(model, tree, table=tmp_path / "table.csv"), tmp_path / "index")
    assert outcome.new == 1
    assert {reason for _, reason in outcome.failed} == {REASONS["duplicate_row"], REASONS["missing_file"]}


def test_a_folder_of_two_patients_is_listed_and_with_out_every_series_is_scored(folder, tmp_path, capsys, monkeypatch):
    root = tmp_path / "export"
    for number in (1, 2):
        write_series(root / "CT", chest(number), start=f"S{number}-", SeriesInstanceUID=f"1.2.{number}", PatientID=f"P{number}")
    arguments = ("--model", folder, "--device", "cpu", root, "--findings", "Emphysema")
    with monkeypatch.context() as patch:
        patch.setattr("mg3d.inference.load.load", None)  # before the model is loaded
        assert command("zero_shot", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "has 2 scans; name one of them, or process all with --out: CT/S1-0000.dcm (26 slices), CT/S2-0000.dcm" in printed.err
    assert command("zero_shot", *arguments, "--out", tmp_path / "scores.csv") == 0
    rows = read_rows(tmp_path / "scores.csv")
    assert [(row["scan"], row["error"]) for row in rows] == [("CT/S1-0000.dcm", ""), ("CT/S2-0000.dcm", "")]


@pytest.mark.parametrize("name", ["embed", "zero_shot"])
def test_nothing_usable_exits_with_1_and_the_first_reason(name, folder, tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"\x1f\x8b\x08\x00")
    out = tmp_path / ("index" if name == "embed" else "scores.csv")
    assert command(name, "--model", folder, "--device", "cpu", tmp_path / "scans", "--out", out) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "none of 1 scans can be used" in printed.err
    assert "the compressed file is truncated" in printed.err
