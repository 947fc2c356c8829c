"""Custom data and Rad-ChestCT through the whole preparation, from files to rows and voxels."""

import csv
import stat

import numpy as np
from small_dicom import write_series
from small_raw import LPS, chest, write_nifti

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import SPLITS, index_path
from mg3d.glossary import LABELS
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import PrepareOptions, prepare

RECIPE = Recipe(shape=(32, 64, 96))


def rows_of(out, dataset):
    """Volume id -> (row, voxels)."""
    found = {}
    for split in SPLITS:
        if (path := index_path(out, dataset, split)).is_file():
            index = VolumeIndex(path)
            rows = enumerate(index.table.to_pylist())
            found |= {row["volume_id"]: ({**row, "split": split}, index.volume(number)) for number, row in rows}
    return found


def tilted_first(found):
    return found[0]["report"] != "Tilted."


def test_a_custom_folder_of_nifti_and_dicom(tmp_path):
    root = tmp_path / "Muster clinic"
    for number in range(3):
        write_nifti(root / f"Muster{number}" / "a.nii.gz", chest(number).transpose(2, 1, 0), LPS)
    write_series(root / "Erika" / "lung", chest(7))
    write_series(root / "Erika" / "tilted", orientation=(1, 0, 0, 0, 0.96, 0.28))
    rows = [
        {"Volume": "Erika/lung", "Findings": "Muster has a nodule, no effusion.", "Lung nodule": 1, "set": "test"},
        {"Volume": "Erika/tilted", "Findings": "Tilted.", "Lung nodule": 0, "set": "test"},
        *({"Volume": f"Muster{k}/a", "Findings": "Clear."[: 9 * (k != 2)], "Lung nodule": "", "set": ""} for k in range(3)),
        {"Volume": "Erika/nothing", "Findings": "Lost.", "Lung nodule": 0, "set": ""},
    ]
    table = tmp_path / "reports.csv"
    with table.open("w", newline="", encoding="cp1252") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    options = PrepareOptions(out=tmp_path / "out", roots={"custom": root}, table=table, val_patients=1, recipe=RECIPE)
    summary = prepare(options)
    assert [(entry.code, entry.row) for entry in summary.quarantined] == [("missing_file", 7)]
    assert "custom: 1 volumes resampled from a sheared grid, as of a tilted gantry" in summary.notes
    found = rows_of(options.out, "custom")
    assert sorted(row["split"] for row, _ in found.values()) == ["test", "test", "train", "train", "val"]
    (tilted, _), (row, voxels) = sorted((found for found in found.values() if found[0]["split"] == "test"), key=tilted_first)
    assert tilted["changes"] == ["resampled from a sheared grid, as of a tilted gantry (16.3 degrees)"]
    assert row["report"] == "Muster has a nodule, no effusion."
    assert row["labels"][LABELS.index("Lung nodule")] == 1
    assert (row["hu_source"], voxels.shape, row["source_shape"]) == ("dicom_header", RECIPE.shape, list(chest().shape))
    assert np.ptp(voxels) > 500
    assert sum(not row["report"] for row, _ in found.values()) == 1
    key = options.out / "custom_key.csv"
    written = b"".join(path.read_bytes() for path in options.out.rglob("*") if path.is_file() and path != key)
    assert not any(word in written for word in (b"Erika", b"Muster0", b"Muster clinic"))
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with key.open(newline="") as stream:
        files = {line["volume_id"]: (line["file"], line["row"]) for line in csv.DictReader(stream)}
    assert files[row["volume_id"]] == ("Erika/lung", "2")
    assert files.keys() == found.keys()
    assert prepare(options).built == 0
    assert rows_of(options.out, "custom").keys() == found.keys()


def test_rad_chestct_is_a_test_set_that_agrees_with_its_tables(tmp_path):
    root = tmp_path / "rad"
    root.mkdir()
    for number, name in enumerate(("trn00001", "val00002", "tst00003")):
        np.savez(root / f"{name}.npz", ct=chest(number).clip(-1000, 1000)[::-1])
    (root / "imgtest_Abnormality_and_Location_Labels.csv").write_text("NoteAcc_DEID,hernia*other\ntst00003,1\n")
    options = PrepareOptions(out=tmp_path / "out", roots={"rad_chestct": root}, recipe=RECIPE)
    summary = prepare(options)
    assert not summary.quarantined
    found = rows_of(options.out, "rad_chestct")
    assert {name: row["split"] for name, (row, _) in found.items()} == dict.fromkeys(
        ("rad_chestct/trn00001", "rad_chestct/val00002", "rad_chestct/tst00003"), "test"
    )
    assert found["rad_chestct/tst00003"][0]["labels"][LABELS.index("Hiatal hernia")] == 1
    for number, name in enumerate(("trn00001", "val00002", "tst00003")):
        voxels = found[f"rad_chestct/{name}"][1].astype(float)
        body = voxels[8:24, 22:42, 30:66]  # well inside: HU grow towards superior, posterior and left
        assert all(np.diff(body.mean(axis=axes)).min() > 0 for axes in ((1, 2), (0, 2), (0, 1))), number
