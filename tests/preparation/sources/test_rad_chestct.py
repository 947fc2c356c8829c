"""Rad-ChestCT's folder: ids, patients, labels by location, and missing tables."""

import numpy as np
import pytest
from small_raw import source_options, write_csv

from mg3d.glossary import LABELS
from mg3d.preparation.sources.rad_chestct import list_rad_chestct

LOCATIONS = ("heart", "right_upper", "other")
IDS = ("tst00009", "trn00002", "trn00010", "val00001")


def rows(*positives):
    """Rows of labels: (id, {abnormality*location: cell}); all other cells are 0."""
    abnormalities = ("nodule", "nodulegr1cm", "cardiomegaly", "calcification", "stent", "opacity")
    zeros = {f"{name}*{location}": "0" for name in abnormalities for location in LOCATIONS}
    return [{"NoteAcc_DEID": volume, **zeros, **cells} for volume, cells in positives]


def labels(root, split, content):
    write_csv(root / f"img{split}_Abnormality_and_Location_Labels.csv", content)


@pytest.fixture
def root(tmp_path):
    for name in IDS:
        np.savez(tmp_path / f"{name}.npz", ct=np.zeros((2, 3, 4), np.int16))
    return tmp_path


def by_id(inventory):
    return {record.volume_id.removeprefix("rad_chestct/"): record for record in inventory.records}


def known(record):
    return {label: value for label, value in zip(LABELS, record.labels) if value >= 0}


def test_all_volumes_are_test_and_keep_their_official_split(root):
    inventory = list_rad_chestct(root, source_options())
    assert [(r.volume_id, r.official_split, r.split) for r in inventory.records] == [
        (f"rad_chestct/{name}", name[:3], "test") for name in sorted(IDS)
    ]
    assert all(
        (r.findings, r.impression, r.labels, r.label_source) == (None, None, (-1,) * 18, "none") for r in inventory.records
    )
    assert any("2 volumes of trn, 2286 are published" in note for note in inventory.notes)
    assert any("imgtest_Abnormality_and_Location_Labels.csv is missing" in note for note in inventory.notes)


def test_label_is_positive_if_its_abnormality_is_at_any_location(root):
    labels(root, "train", rows(("trn00002", {"nodulegr1cm*other": "1"}), ("trn00010", {"cardiomegaly*heart": "1.0"})))
    labels(root, "valid", rows(("val00001.npz", {"calcification*heart": "1", "stent*other": "1"})))
    found = by_id(list_rad_chestct(root, source_options()))
    nothing = {"Lung nodule": 0, "Lung opacity": 0, "Cardiomegaly": 0, "Medical material": 0}
    assert known(found["trn00002"]) == nothing | {"Lung nodule": 1}
    assert known(found["trn00010"]) == nothing | {"Cardiomegaly": 1}
    assert known(found["val00001"]) == nothing | {"Medical material": 1}
    assert known(found["tst00009"]) == {}
    assert (found["trn00002"].label_source, found["tst00009"].label_source) == ("rad_chestct/ct_clip/1", "none")


def test_column_of_any_location_counts_however_the_header_is_quoted(root):
    content = rows(("val00001", {"opacity*right_upper": "1"}))
    path = root / "imgvalid_Abnormality_and_Location_Labels.csv"
    quoted = ",".join(f'"{name}"' for name in content[0]) + "\r\n" + ",".join(content[0].values())
    path.write_bytes(b"\xef\xbb\xbf" + quoted.encode())
    assert known(by_id(list_rad_chestct(root, source_options()))["val00001"])["Lung opacity"] == 1


def test_contradicting_rows_and_empty_cells_are_unknown(root):
    twice = [
        ("trn00002", {"stent*other": "1"}),
        ("trn00002", {}),
        ("trn00010", {f"nodule*{location}": "" for location in LOCATIONS}),
    ]
    labels(root, "train", rows(*twice))
    inventory = list_rad_chestct(root, source_options())
    found = by_id(inventory)
    assert found["trn00002"].labels == (-1,) * 18
    assert known(found["trn00010"])["Lung nodule"] == 0  # nodulegr1cm is known
    assert any("1 volumes of trn have contradicting rows" in note for note in inventory.notes)
    assert any("has no column of atelectasis, bronchial_wall_thickening" in note for note in inventory.notes)


def test_patients_come_from_the_summary_except_for_empty_cells(root):
    write_csv(
        root / "Summary_3630.csv",
        [
            {"MRN_DEID": mrn, "NoteAcc_DEID": name, "Set_Assigned": "x", "Subset_Assigned": "y"}
            for name, mrn in zip(IDS, ("m1", "m2", "", ""))
        ],
    )
    found = by_id(list_rad_chestct(root, source_options()))
    assert {name: record.patient_id for name, record in found.items()} == {
        "tst00009": "rad_chestct/m1", "trn00002": "rad_chestct/m2",
        "trn00010": "rad_chestct/trn00010", "val00001": "rad_chestct/val00001",
    }  # fmt: skip


def test_limit_counts_each_official_split_and_folders_are_searched(root):
    (root / "more").mkdir()
    np.savez(root / "more" / "tst00001.npz", ct=np.zeros((2, 3, 4), np.int16))
    np.savez(root / "more" / "other.npz", ct=np.zeros((2, 3, 4), np.int16))
    found = by_id(list_rad_chestct(root, source_options(limit=1)))
    assert sorted(found) == ["trn00002", "tst00001", "val00001"]
    assert found["tst00001"].files == ("more/tst00001.npz",)


def test_other_folders_and_tables_are_refused(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no array such as trn00001\.npz"):
        list_rad_chestct(tmp_path / "empty", source_options())
    labels(root, "valid", [{"name": "val00001", "nodule*heart": "1"}])
    with pytest.raises(ValueError, match="has no column NoteAcc_DEID"):
        list_rad_chestct(root, source_options())
