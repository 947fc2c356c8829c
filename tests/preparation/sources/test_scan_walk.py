"""One walk lists scans of every kind below a folder, and counts what it passes over."""

import gzip
import shutil
from pathlib import PurePosixPath

import numpy as np
import pytest
from small_dicom import write_enhanced, write_series
from small_raw import LPS, chest, source_options, volume_record, write_nifti

from mg3d.finetune.predict import find_scans
from mg3d.inference.scan_sources import list_scans
from mg3d.preparation.readers.dicom import read_dicom
from mg3d.preparation.sources.custom import list_custom
from mg3d.preparation.sources.scan_walk import SCAN_SUFFIXES, walk_scans


def write_volume(path):
    write_nifti(path.with_name("made.nii"), chest().transpose(2, 1, 0), LPS)
    path.with_name("made.nii").rename(path)
    return path


def names(listing):
    return [str(path) for path in listing.scans]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


@pytest.mark.parametrize("name", ["SCAN.NII.GZ", "scan.Nii", "scan.MHA", *(f"scan{suffix}" for suffix in SCAN_SUFFIXES)])
def test_file_is_a_scan_by_its_suffix_in_any_case(root, name):
    (root / name).touch()
    listing = walk_scans(root)
    assert names(listing) == [name]
    assert listing.note == ""


@pytest.mark.parametrize("suffix", [".dcm", ".DCM", ".dicom", ".IMA", ".v2", ".1234", ""])
def test_dicom_slices_are_found_by_their_content_under_any_suffix_and_behind_other_files(root, suffix):
    write_series(root / "CT", chest()[:3])
    for number, path in enumerate(sorted((root / "CT").iterdir())):
        path.rename(path.with_name(f"z{number}{suffix}"))
    for name in ("A", "B", "C", "LICENSE", "a.txt", "DICOMDIR"):
        (root / "CT" / name).write_bytes(b"not a slice")
    listing = walk_scans(root)
    assert names(listing) == ["CT"]
    assert listing.passed_over[".txt files"] == listing.passed_over["DICOMDIR"] == 1
    assert listing.passed_over["other files"] == (0 if suffix in ("", ".1234") else 4)


def test_linked_folders_are_listed_once_and_cycles_end(root, tmp_path):
    write_volume(root / "a.nii")
    store = tmp_path / "store"
    for name in ("p7", "p8"):
        (store / name).mkdir(parents=True)
        write_volume(store / name / "b.nii")
    (store / "p7" / "back").symlink_to(root)
    (root / "p6").symlink_to(store / "p7")
    (root / "p7").symlink_to(store / "p7")
    (root / "p9").mkdir()
    (root / "p9" / "p8").symlink_to(store / "p8")
    (root / "lost").symlink_to(store / "none")
    listing = walk_scans(root)
    assert names(listing) == ["a.nii", "p6/b.nii", "p9/p8/b.nii"]
    assert listing.passed_over == {"links to folders that are listed already": 2, "broken links and special files": 1}


def test_folder_keeps_its_own_path_if_a_link_leads_to_it(root):
    (root / "z").mkdir()
    write_volume(root / "z" / "b.nii")
    (root / "a").symlink_to(root / "z")
    assert names(walk_scans(root)) == ["z/b.nii"]


def test_counts_have_no_names(root):
    for name in ("Anna Muster.smith", ".hidden", "Muster.pdf", "Erika.pdf"):
        (root / name).write_bytes(b"something")
    assert walk_scans(root).note == "passed over: 2 .pdf files, 1 hidden files and folders, 1 other files"


def test_stray_slices_above_series_are_counted_and_not_a_scan_but_a_whole_series_is(root):
    write_series(root / "study" / "1", chest())
    write_series(root / "study" / "2", chest(3), SeriesInstanceUID="1.2.3.2")
    shutil.copy(root / "study" / "1" / "IM0001.dcm", root / "study" / "IM0001.dcm")
    listing = walk_scans(root)
    assert names(listing) == ["study/1", "study/2"]
    assert listing.note == "passed over: 1 DICOM files above folders of series"
    write_series(root / "study", chest(4), SeriesInstanceUID="1.2.3.3")
    assert names(walk_scans(root)) == ["study", "study/1", "study/2"]


def test_all_walks_list_the_same_scans_and_report_what_they_passed_over(root, tmp_path, capsys):
    write_volume(root / "SCAN.NII.GZ")
    np.savez(root / "array.npz", ct=chest())
    (tmp_path / "store").mkdir()
    write_volume(tmp_path / "store" / "b.nii")
    (root / "p7").symlink_to(tmp_path / "store")
    write_series(root / "CT", chest())
    (root / "notes.txt").touch()
    expected = ["CT", "SCAN.NII.GZ", "array.npz", "p7/b.nii"]
    inventory = list_custom(root, source_options(out=tmp_path, keep_ids=True))
    assert sorted(record.files[0] for record in inventory.records) == expected
    assert "custom: passed over: 1 .txt files" in inventory.notes
    assert [source.key for source in list_scans(_Reader(), root)] == expected
    assert "passed over: 1 .txt files" in capsys.readouterr().err
    assert sorted(str(case.image.relative_to(root)) for case in find_scans(root)) == expected
    assert "passed over: 1 .txt files" in capsys.readouterr().out


class _Reader:
    def read(self, path):
        return PurePosixPath(path)


def test_multi_frame_file_and_gzip_slices_are_scans_above_other_series(root):
    write_enhanced(root / "study" / "enhanced.dcm", [(plane, 5.0 * k, 0, 1) for k, plane in enumerate(chest(4))])
    write_series(root / "study" / "1", chest())
    for path in (root / "study" / "1").iterdir():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    listing = walk_scans(root)
    assert names(listing) == ["study", "study/1"]
    assert listing.note == ""


def test_row_naming_a_folder_of_linked_series_reads_it(root, tmp_path):
    write_series(tmp_path / "store" / "CT", chest(5))
    (root / "study").mkdir()
    (root / "study" / "linked").symlink_to(tmp_path / "store" / "CT")
    (root / "study" / "back").symlink_to(root)
    record = volume_record("study", reader="dicom")
    np.testing.assert_array_equal(read_dicom(record, root).voxels, chest(5))
