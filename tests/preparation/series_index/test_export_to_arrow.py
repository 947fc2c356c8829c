"""Two commands from a DICOM export and a spreadsheet to Arrow files."""

import importlib.util
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from small_export import Export, accession, name_of, patient_id, write_export, write_reports

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import SPLITS, index_path
from mg3d.inference.scan_sources import list_scans

PREPRO = Path(__file__).parents[3] / "prepro"


def run(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, PREPRO / f"{name}.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program.main([str(argument) for argument in arguments])


@pytest.fixture
def export(tmp_path):
    """The export, and a table of it with 20 reports, most of them of studies that are not in it."""
    expected = write_export(tmp_path / "export")
    keys = [(patient, 1) for patient in range(1, 9)] + [(4, 2), (5, 2)] + [(patient, 9) for patient in range(1, 11)]
    rows = [(accession(*key), f"Findings: Patient {key[0]}, study {key[1]}.\nImpression: Clear.") for key in keys]
    reports = write_reports(tmp_path / "reports.xlsx", rows)
    options = ("--reports", reports, "--key", "accession=Accession No", "--text", "Report text", "--choose", "--workers", 1)
    assert run("index_dicom", tmp_path / "export", "--out", tmp_path / "series.csv", *options) == 0
    return tmp_path, sum(used for used, _ in expected.values())


def stored(out):
    found = []
    for split in SPLITS:
        if (path := index_path(out, "custom", split)).is_file():
            index = VolumeIndex(path)
            found += [({**row, "split": split}, index.volume(number)) for number, row in enumerate(index.table.to_pylist())]
    return found


def test_two_commands_give_arrow_files_with_the_right_report_and_patient(export, capsys):
    folder, n_used = export
    out = folder / "arrows"
    arguments = ("--custom", folder / "export", "--table", folder / "series.csv", "--out", out, "--image-size", 32)
    assert run("prepro_pretraining_data", *arguments, "--val-patients", 1) == 0
    printed = capsys.readouterr()
    assert "rows with use = 0 are left out" in printed.out
    volumes = stored(out)
    assert len(volumes) == n_used == 12
    patients, splits = defaultdict(set), defaultdict(set)
    for row, voxels in volumes:
        marker = int(np.median(voxels[voxels > 50])) - 100  # HU of the body
        patients[row["patient_id"]].add(marker)
        splits[marker].add(row["split"])
        if row["findings"] is not None:
            assert row["findings"].startswith(f"Patient {marker}, study")
            assert row["impression"] == "Clear."
    assert sorted(map(len, patients.values())) == [1] * 8
    assert set(map(len, splits.values())) == {1}
    assert sum(row["findings"] is None for row, _ in volumes) == 2
    written = printed.out + printed.err + (folder / "series.csv").read_text()
    written += (out / "quarantine.jsonl").read_text()
    assert not any(text in written for number in range(1, 9) for text in (patient_id(number), *name_of(number).split("^")))


def test_inference_reads_the_chosen_series_of_the_table(export):
    folder, n_used = export

    class Model:
        def read(self, path):
            return path

    scans = list_scans(Model(), folder / "export", table=folder / "series.csv")
    assert len(scans) == n_used
    assert all(scan.read().is_file() for scan in scans)
    assert sum("study" in scan.report for scan in scans) == n_used - 2


def test_localizers_are_no_failures_and_a_failed_volume_names_its_row(tmp_path, capsys):
    export = Export(tmp_path / "export")
    for patient in range(1, 5):
        export.localizer(patient, 1)
        export.add(patient, 1, "Thorax", PixelSpacing=[3.0, 2.5] if patient < 4 else None)
    out = tmp_path / "arrows"
    arguments = ("--custom", tmp_path / "export", "--out", out, "--image-size", 32)
    assert run("prepro_pretraining_data", *arguments, "--max-quarantine", 0.3) == 0
    assert "excluded (1 of 4 volumes with raw files could not be used; 4 others are not CT volumes)" in capsys.readouterr().out
    (tmp_path / "table.csv").write_text("volume\n0101/002\n0401/008\n")
    assert run("prepro_pretraining_data", *arguments, "--table", tmp_path / "table.csv", "--val-patients", 0) == 1
    (line,) = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert (line["code"], line["row"]) == ("nan_spacing", 3)
