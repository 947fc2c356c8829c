"""Every fault is planted into a small set, and the preparation must do with it what the table below says."""

import json
import os
import shutil
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import SPLITS, index_path
from mg3d.glossary import LABELS
from mg3d.phantom import faults
from mg3d.phantom.faults import ALL, FAULTS, plant
from mg3d.phantom.generate import PhantomSettings, generate
from mg3d.preparation.leaks import LeakError
from mg3d.preparation.run import Options, prepare
from mg3d.preparation.sources.pseudonyms import pseudonym

SMALL = PhantomSettings(
    train_patients=44, valid_patients=5, ctrg_cases=10, grid=28, seed=3, second_scans=0.2, second_reconstructions=0.5
)


class Outcome(NamedTuple):
    """What becomes of the volumes that carry a fault."""

    code: str = ""
    """They are in the quarantine with this code."""
    note: str = ""
    """Stored, and a note holds these words."""
    rule: str = ""
    """Stored with the very voxels they have without the fault, by this HU rule."""
    stop: str = ""
    """The preparation stops with a sentence that holds these words."""
    stored: bool = False
    """Stored without a word; a matter for the data doctor, or no fault at all."""


EXPECTED = {
    "nan_spacing": Outcome(code="nan_spacing"),
    "missing_file": Outcome(code="missing_file"),
    "truncated_gzip": Outcome(code="gzip_truncated"),
    "not_3d": Outcome(code="not_3d"),
    "shape_mismatch": Outcome(code="shape_mismatch"),
    "padding_8192": Outcome(stored=True),
    "fixed_in_raw_tree": Outcome(rule="already_hu"),
    "ffs_row": Outcome(rule="already_hu"),
    "iop_spelling": Outcome(rule="metadata_table"),
    "xyspacing_spelling": Outcome(rule="metadata_table"),
    "blank_age": Outcome(rule="already_hu"),
    "not_given": Outcome(code="report_missing"),
    "empty_report": Outcome(code="report_missing"),
    "patient_in_two_splits": Outcome(stop="image_sha256 lie in more than one split"),
    "duplicate_pixels": Outcome(stop="image_sha256 lie in more than one split"),
    "duplicate_report_other_patient": Outcome(note="report_sha256 lie in more than one split"),
    "head_scan": Outcome(stored=True),
    "no_chest_listed": Outcome(code="no_chest"),
    "counterfactual_pair": Outcome(stored=True),
    "label_flip": Outcome(rule="already_hu"),
    "lying_header": Outcome(code="spacing_out_of_range"),
    "four_d": Outcome(code="not_3d"),
    "rgb": Outcome(code="nifti_header"),
    "zip_bomb": Outcome(code="too_large"),
    "unreadable": Outcome(code="unreadable"),
    "latin1_csv": Outcome(note="is no UTF-8 and was read as"),
    "swapped_columns": Outcome(stop="seem swapped"),
    "two_rows": Outcome(code="duplicate_row"),
    "ctrg_gap": Outcome(code="missing_slices"),
    "ctrg_mixed_sizes": Outcome(code="shape_mismatch"),
    "ctrg_truncated_jpeg": Outcome(code="jpeg_truncated"),
}
"""All faults but orphan_label, which is on no volume."""
STOPPING = [name for name, outcome in EXPECTED.items() if outcome.stop]
TOGETHER = [name for name in ALL if name not in STOPPING]


class Prepared(NamedTuple):
    """What a preparation made of a set."""

    root: object
    faults: dict
    codes: dict
    notes: str
    rows: dict
    """Volume id -> (index row, voxels)."""
    salt: bytes

    def ids(self, fault):
        return [f"ct_rate/{name}" if "_" in name else f"ctrg/{pseudonym(name, self.salt)}" for name in self.faults[fault]]


def run(root, out):
    options = Options(out=out, roots={"ct_rate": root / "ct_rate", "ctrg": root / "ctrg"}, image_size=32, val_patients=1)
    summary = prepare(options)
    rows = {}
    for dataset in options.roots:
        for index in (VolumeIndex(index_path(out, dataset, split)) for split in SPLITS):
            rows |= {row["volume_id"]: (row, index.volume(place)) for place, row in enumerate(index.table.to_pylist())}
    listed = root / "faults.json"
    return Prepared(
        root,
        json.loads(listed.read_text()) if listed.is_file() else {},
        {entry.volume_id: entry.code for entry in summary.quarantined},
        "\n".join(summary.notes),
        rows,
        (out / "ctrg_salt.txt").read_bytes().strip(),
    )


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=["fixed_tree", pytest.param("both_trees", marks=pytest.mark.slow)])
def whole(tmp_path_factory, request):
    root = tmp_path_factory.mktemp("whole") / "set"
    generate(root, replace(SMALL, raw_tree=request.param == "both_trees"), workers=1)
    return root


@pytest.fixture(scope="module")
def without(whole, tmp_path_factory):
    return run(whole, tmp_path_factory.mktemp("without"))


@pytest.fixture(scope="module")
def spoilt(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(whole, folder / "set")
    plant(folder / "set", TOGETHER)
    return run(folder / "set", folder / "out")


def test_the_table_names_every_fault_and_every_fault_its_volumes(spoilt):
    assert EXPECTED.keys() | {"orphan_label"} == FAULTS.keys()
    assert spoilt.faults.keys() == set(TOGETHER)
    carriers = [name for volumes in spoilt.faults.values() for name in volumes]
    assert len(carriers) == len(set(carriers))
    patients = [{"_".join(name.split("_")[:2]) for name in volumes} for volumes in spoilt.faults.values()]
    assert sum(map(len, patients)) == len(set().union(*patients))


@pytest.mark.parametrize("name", [name for name in TOGETHER if name in EXPECTED])
def test_a_fault_becomes_what_the_table_says(name, spoilt, without):
    expected, ids = EXPECTED[name], spoilt.ids(name)
    if name == "unreadable" and os.access(next(spoilt.root.rglob(f"{spoilt.faults[name][0]}.nii.gz")), os.R_OK):
        pytest.skip("nothing is unreadable for who runs this")
    assert ids
    if expected.code:
        assert {spoilt.codes.get(volume) for volume in ids} == {expected.code}
        assert not spoilt.rows.keys() & set(ids)
        return
    assert spoilt.rows.keys() >= set(ids)
    assert expected.note in spoilt.notes
    if expected.rule:
        for volume in ids:
            assert spoilt.rows[volume][0]["hu_source"] == expected.rule
            np.testing.assert_array_equal(spoilt.rows[volume][1], without.rows[volume][1])
            np.testing.assert_allclose(spoilt.rows[volume][0]["spacing_mm"], without.rows[volume][0]["spacing_mm"], rtol=1e-5)


def test_nothing_else_changes(spoilt, without):
    carriers = {volume for name in TOGETHER for volume in spoilt.ids(name) if "ctrg" not in volume}
    others = {volume for volume in without.rows if volume.startswith("ct_rate")} - carriers
    assert len(others) > 10
    for volume in others:
        assert spoilt.rows[volume][0]["image_sha256"] == without.rows[volume][0]["image_sha256"]
        assert spoilt.rows[volume][0]["labels"] == without.rows[volume][0]["labels"]
        assert spoilt.rows[volume][0]["report"] == without.rows[volume][0]["report"]


def test_padding_is_cut_off_and_leaves_the_body_alone(spoilt, without):
    (volume,) = spoilt.ids("padding_8192")
    row, voxels = spoilt.rows[volume]
    assert row["hu_source"] == "metadata_table"
    before = without.rows[volume][1].astype(int)
    middle = slice(None), slice(8, -8), slice(8, -8)
    np.testing.assert_array_equal(voxels[middle], before[middle])
    assert (voxels - before).max() < 40  # padding can only darken, up to the kernel's own rounding at the edge
    assert voxels.min() == -1024


def test_a_label_of_no_volume_is_left_out_and_turned_labels_are_stored(spoilt, without):
    assert not (spoilt.rows.keys() | spoilt.codes.keys()) & set(spoilt.ids("orphan_label"))
    turned = sum(np.sum(np.array(spoilt.rows[v][0]["labels"]) != without.rows[v][0]["labels"]) for v in spoilt.ids("label_flip"))
    assert turned >= len(spoilt.ids("label_flip"))


def test_the_twin_of_a_patient_lacks_one_finding(spoilt, whole):
    volumes = spoilt.faults["counterfactual_pair"]
    with_it, without_it = (spoilt.rows[f"ct_rate/{name}"] for name in (volumes[0], volumes[len(volumes) // 2]))
    assert with_it[0]["patient_id"] == without_it[0]["patient_id"]
    (away,) = (place for place in range(len(LABELS)) if with_it[0]["labels"][place] != without_it[0]["labels"][place])
    assert (with_it[0]["labels"][away], without_it[0]["labels"][away]) == (1, 0)
    changed = with_it[1] != without_it[1]
    assert 0 < changed.mean() < 0.5
    assert with_it[0]["report"] != without_it[0]["report"]


def test_a_head_is_no_chest(spoilt, without):
    (volume,) = spoilt.ids("head_scan")
    lung = [((rows[volume][1] > -950) & (rows[volume][1] < -600)).mean() for rows in (spoilt.rows, without.rows)]
    assert lung[0] < 0.5 * lung[1]


@pytest.mark.parametrize("name", STOPPING)
def test_a_fault_stops_the_preparation_in_words(name, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "set")
    volumes = plant(tmp_path / "set", [name])[name]
    with pytest.raises((LeakError, ValueError), match=EXPECTED[name].stop) as told:
        run(tmp_path / "set", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.arrow"))
    if isinstance(told.value, LeakError):
        assert any(f"ct_rate/{volume}" in str(told.value) for volume in volumes)


def test_planting_again_or_in_parts_or_after_a_break_gives_the_same_files(whole, tmp_path, monkeypatch):
    names = ["nan_spacing", "truncated_gzip", "orphan_label", "duplicate_pixels", "two_rows", "ctrg_truncated_jpeg", "label_flip"]
    assert names == [name for name in FAULTS if name in names]
    roots = [tmp_path / name for name in ("once", "parts", "broken")]
    for root in roots:
        shutil.copytree(whole, root)
    once, parts, broken = roots
    plant(once, names)
    expected = contents(once)
    assert plant(once, reversed(names)).keys() == set(names)
    assert contents(once) == expected
    for name in names:
        plant(parts, [name])
    assert contents(parts) == expected

    def broken_off(name):
        def planted(site, victims):
            FAULTS[name].plant(site, victims)
            raise KeyboardInterrupt

        return FAULTS[name]._replace(plant=planted)

    for name in names:
        monkeypatch.setattr(faults, "FAULTS", {**FAULTS, name: broken_off(name)})
        with pytest.raises(KeyboardInterrupt):
            plant(broken, names)
    monkeypatch.undo()
    plant(broken, names)
    assert contents(broken) == expected


def test_who_cannot_be_given_a_fault_is_told(whole, tmp_path):
    with pytest.raises(ValueError, match=r"no fault tarnished; choose from: all, nan_spacing"):
        plant(whole, ["tarnished"])
    with pytest.raises(ValueError, match="no complete synthetic set"):
        plant(tmp_path, ["rgb"])
    small = tmp_path / "small"
    generate(small, PhantomSettings(train_patients=2, valid_patients=1, ctrg_cases=0, grid=28), workers=1)
    with pytest.raises(ValueError, match="nan_spacing needs one of the training patients"):
        plant(small, ["nan_spacing"])
    plant(small, ["swapped_columns", "latin1_csv"])
    with pytest.raises(ValueError, match="holds latin1_csv and swapped_columns, so that its tables cannot be edited"):
        plant(small, ["blank_age"])
