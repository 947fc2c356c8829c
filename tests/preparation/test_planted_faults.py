"""Every planted fault of a synthetic raw set has the outcome below; all other volumes are prepared as without faults."""

import os
import shutil
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import planted_faults as f
import pytest

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.integrity import LeakError
from mg3d.datasets.schema import SPLITS, index_path
from mg3d.phantom.generate import PhantomSettings, generate
from mg3d.preparation.run import PrepareOptions, prepare
from mg3d.preparation.sources.pseudonyms import pseudonym

SMALL = PhantomSettings(
    train_patients=36, valid_patients=5, ctrg_cases=8, grid=28, seed=3, second_scans=0, second_reconstructions=0
)

QUARANTINED = {
    f.nan_spacing: "nan_spacing",
    f.missing_file: "missing_file",
    f.truncated_gzip: "gzip_truncated",
    f.not_3d: "not_3d",
    f.four_d: "not_3d",
    f.rgb: "nifti_header",
    f.wrong_header: "spacing_out_of_range",
    f.zip_bomb: "too_large",
    f.unreadable: "unreadable",
    f.shape_mismatch: "shape_mismatch",
    f.missing_report: "report_missing",
    f.two_rows: "duplicate_row",
    f.no_chest_listed: "no_chest",
    f.ctrg_gap: "missing_slices",
    f.ctrg_mixed_sizes: "shape_mismatch",
    f.ctrg_truncated_jpeg: "jpeg_truncated",
}
"""Fault -> quarantine code."""
UNHARMED = {
    f.fixed_in_raw_tree: "already_hu",
    f.feet_first: "already_hu",
    f.blank_age: "already_hu",
    f.orientation_spelling: "metadata_table",
    f.spacing_spelling: "metadata_table",
}
"""Fault -> source of HU; the voxels are those of the set without faults."""
STORED = (f.padding_8192, f.duplicate_report, f.latin1_table, f.flipped_labels)
TOGETHER = (*QUARANTINED, *UNHARMED, *STORED, f.orphan_label)
STOPPING = {
    f.patient_in_two_splits: "images in more than one split",
    f.duplicate_voxels: "images in more than one split",
    f.swapped_columns: "seem swapped",
}
"""Fault -> error message."""


class Prepared(NamedTuple):
    """A prepared set."""

    root: object
    faults: dict
    codes: dict
    """Volume id -> quarantine code."""
    notes: str
    rows: dict
    """Volume id -> (index row, voxels)."""
    salt: bytes

    def ids(self, fault):
        names = self.faults[fault.__name__]
        return [f"ct_rate/{name}" if "_" in name else f"ctrg/{pseudonym(name, self.salt)}" for name in names]


def run(root, out, faults=None):
    options = PrepareOptions(out=out, roots={"ct_rate": root / "ct_rate", "ctrg": root / "ctrg"}, image_size=32, val_patients=1)
    summary = prepare(options)
    rows = {}
    for dataset in options.roots:
        for index in (VolumeIndex(index_path(out, dataset, split)) for split in SPLITS):
            rows |= {row["volume_id"]: (row, index.volume(i)) for i, row in enumerate(index.table.to_pylist())}
    codes = {entry.volume_id: entry.code for entry in summary.quarantined}
    return Prepared(root, faults, codes, "\n".join(summary.notes), rows, (out / "ctrg_salt.txt").read_bytes().strip())


@pytest.fixture(scope="module", params=["fixed_tree", pytest.param("both_trees", marks=pytest.mark.slow)])
def settings(request):
    return replace(SMALL, raw_tree=request.param == "both_trees")


@pytest.fixture(scope="module")
def clean_root(tmp_path_factory, settings):
    root = tmp_path_factory.mktemp("clean") / "set"
    generate(root, settings, workers=1)
    return root


@pytest.fixture(scope="module")
def clean(clean_root, tmp_path_factory):
    return run(clean_root, tmp_path_factory.mktemp("clean_out"))


@pytest.fixture(scope="module")
def faulty(clean_root, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    shutil.copytree(clean_root, folder / "set")
    return run(folder / "set", folder / "out", f.plant(folder / "set", settings, TOGETHER))


@pytest.mark.parametrize("fault", QUARANTINED, ids=lambda fault: fault.__name__)
def test_damaged_volumes_are_quarantined(fault, faulty):
    ids = faulty.ids(fault)
    if fault is f.unreadable and os.access(next(faulty.root.rglob(f"{faulty.faults['unreadable'][0]}.nii.gz")), os.R_OK):
        pytest.skip("this user can read every file")
    assert ids
    assert {faulty.codes.get(volume) for volume in ids} == {QUARANTINED[fault]}
    assert not faulty.rows.keys() & set(ids)


@pytest.mark.parametrize("fault", UNHARMED, ids=lambda fault: fault.__name__)
def test_unusual_but_valid_volumes_keep_their_voxels_and_spacing(fault, faulty, clean):
    for volume in faulty.ids(fault):
        (row, voxels), (clean_row, clean_voxels) = faulty.rows[volume], clean.rows[volume]
        assert row["hu_source"] == UNHARMED[fault]
        np.testing.assert_array_equal(voxels, clean_voxels)
        np.testing.assert_allclose(row["spacing_mm"], clean_row["spacing_mm"], rtol=1e-5)


def test_all_other_volumes_are_unchanged(faulty, clean):
    planted = {volume for fault in TOGETHER for volume in faulty.ids(fault)}
    others = {volume for volume in clean.rows if volume.startswith("ct_rate")} - planted
    assert len(others) > 6
    for volume in others:
        for column in ("image_sha256", "labels", "report"):
            assert faulty.rows[volume][0][column] == clean.rows[volume][0][column]


def test_padding_is_removed_and_the_body_is_unchanged(faulty, clean):
    (volume,) = faulty.ids(f.padding_8192)
    row, voxels = faulty.rows[volume]
    assert row["hu_source"] == "metadata_table"
    before = clean.rows[volume][1].astype(int)
    middle = slice(None), slice(8, -8), slice(8, -8)
    np.testing.assert_array_equal(voxels[middle], before[middle])
    assert (voxels - before).max() < 40  # padding can only darken, up to the rounding of the kernel at the edge
    assert voxels.min() == -1024


def test_duplicate_reports_and_encodings_are_noted_and_orphan_labels_ignored(faulty, clean):
    assert "reports in more than one split" in faulty.notes
    assert "was read as" in faulty.notes
    assert faulty.rows.keys() >= {volume for fault in STORED for volume in faulty.ids(fault)}
    assert not (faulty.rows.keys() | faulty.codes.keys()) & set(faulty.ids(f.orphan_label))
    (flipped,) = faulty.ids(f.flipped_labels)
    assert list(faulty.rows[flipped][0]["labels"])[:3] == [1, 1, 1] != list(clean.rows[flipped][0]["labels"])[:3]


@pytest.mark.parametrize("fault", STOPPING, ids=lambda fault: fault.__name__)
def test_leaks_and_swapped_columns_stop_the_preparation(fault, clean_root, settings, tmp_path):
    shutil.copytree(clean_root, tmp_path / "set")
    volumes = f.plant(tmp_path / "set", settings, [fault])[fault.__name__]
    with pytest.raises((LeakError, ValueError), match=STOPPING[fault]) as error:
        run(tmp_path / "set", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.arrow"))
    assert isinstance(error.value, LeakError) == bool(volumes)
    assert all(f"ct_rate/{volume}" in str(error.value) for volume in volumes)
