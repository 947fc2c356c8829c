"""Gaps, stray slices, several acquisitions and enhanced multi-frame files of DICOM series."""

import numpy as np
import pytest
from small_dicom import CORNER_MM, SPACING, read, refusal, sorted_files, write_enhanced, write_series
from small_raw import chest

from mg3d.preparation import geometry

CHEST = chest(7)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "Muster"


def changes(raw):
    return {change.code: change.detail for change in raw.changes}


def test_one_missing_slice_is_interpolated_and_counted(folder):
    sorted_files(write_series(folder))[11].unlink()
    raw = read(folder)
    np.testing.assert_array_equal(np.delete(raw.voxels, 11, 0), np.delete(CHEST, 11, 0))
    np.testing.assert_array_equal(raw.voxels[11], np.rint((CHEST[10].astype(float) + CHEST[12]) / 2))
    assert changes(raw) == {"interpolated": "1 of 26 slices"}
    assert raw.spacing_mm == pytest.approx(SPACING)


@pytest.mark.parametrize("lost", [(11, 12), (8, 13)])
def test_two_missing_slices_of_26_are_too_many(folder, lost):
    files = sorted_files(write_series(folder))
    for index in lost:
        files[index].unlink()
    code, detail = refusal(folder)
    assert code == "missing_slices"
    assert "of 23 gaps, up to 1" in detail


def positions(*heights, **tags):
    """Tags of slices at heights in mm above the first one."""
    return lambda index: {"position": (*CORNER_MM[:2], CORNER_MM[2] + heights[index])} | {
        name: values[index] for name, values in tags.items()
    }


def steep(heights):
    """HU that increase by 12 per mm of height inside the body, so that 0.5 mm are 6 HU."""
    volume = np.repeat(CHEST[13:14], len(heights), axis=0).astype(float)
    body = (CHEST[13] > -500)[None] & np.ones((len(heights), 1, 1), bool)
    return np.where(body, np.reshape(heights, (-1, 1, 1)) * 6 - 300, volume).astype(np.int16)


@pytest.mark.parametrize("increment", [1.25, 0.75, 0.625])
def test_positions_written_to_a_tenth_of_a_millimetre_are_equally_spaced(folder, increment):
    heights = np.arange(40) * increment
    raw = read(write_series(folder, steep(heights), each=positions(*np.round(heights + 1e-9, 1))))
    np.testing.assert_array_equal(raw.voxels, steep(heights))
    assert raw.spacing_mm[0] == pytest.approx(increment, rel=0.005)
    assert changes(raw).keys() == {"short"}


@pytest.mark.parametrize(
    "gaps", [[2.5] * 20 + [5.0] * 12, [5.0] * 8 + [2.0] * 25, [1.0] * 12 + [1.09] * 30, list(np.linspace(1.5, 4.5, 40))]
)
def test_changing_distances_are_interpolated_to_equal_ones_within_half_a_millimetre(folder, gaps):
    heights = np.concatenate([[0], np.cumsum(gaps)])
    raw = read(write_series(folder, steep(heights), each=positions(*heights)))
    expected = steep(np.arange(len(raw.voxels)) * raw.spacing_mm[0])
    assert np.abs(raw.voxels.astype(int) - expected).max() <= 3  # 0.5 mm
    assert "respaced" in changes(raw) or len(set(gaps)) == 2
    assert len(raw.voxels) * raw.spacing_mm[0] == pytest.approx(heights[-1], abs=2 * raw.spacing_mm[0])


def test_a_stray_slice_between_regular_ones_is_left_out(folder):
    heights = sorted([*np.arange(26) * 5.0, 62.5])
    hu = np.insert(CHEST, 13, 700, axis=0)
    raw = read(write_series(folder, hu, each=positions(*heights)))
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert changes(raw) == {"stray": "1 of 27 slices left out"}


def test_a_stray_slice_far_away_is_left_out(folder):
    raw = read(write_series(folder, np.append(CHEST, CHEST[:1], axis=0), each=positions(*np.arange(26) * 5.0, 300.0)))
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert changes(raw) == {"longest_run": "26 of 27 slices"}


def test_of_two_acquisitions_under_one_uid_the_longer_is_read(folder):
    write_series(folder, chest(9)[:24], AcquisitionNumber=1)
    write_series(folder, chest(7), AcquisitionNumber=2, start="B")
    raw = read(folder)
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert changes(raw) == {"acquisitions": "26 of 50 slices, 2 acquisitions"}


@pytest.mark.parametrize("offset_mm", [2.5, 1.5])
def test_two_acquisitions_with_slices_between_each_other_are_never_mixed(folder, offset_mm):
    write_series(folder, AcquisitionNumber=1)
    write_series(folder, chest(9)[:25], start="B", AcquisitionNumber=2, each=positions(*np.arange(25) * 5.0 + offset_mm))
    raw = read(folder)
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert changes(raw) == {"acquisitions": "26 of 51 slices, 2 acquisitions"}


@pytest.mark.parametrize("numbers", [range(26), [1] * 13 + [2] * 13, [1, None] * 13, [7] * 26])
def test_acquisitions_one_above_another_are_one_volume(folder, numbers):
    raw = read(write_series(folder, each=lambda index: {"AcquisitionNumber": numbers[index]}))
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert raw.changes == ()


@pytest.mark.parametrize(
    "tags", [{"PixelSpacing": [3.0, 2.0]}, {"PixelSpacing": None}, {"orientation": (0.98, 0.199, 0, -0.199, 0.98, 0)}]
)
def test_a_slice_of_another_grid_is_left_out_and_interpolated(folder, tags):
    raw = read(write_series(folder, each=lambda index: tags if index == 11 else {}))
    np.testing.assert_array_equal(np.delete(raw.voxels, 11, 0), np.delete(CHEST, 11, 0))
    assert changes(raw) == {"other_grid": "1 of 26 slices left out", "interpolated": "1 of 26 slices"}


# Enhanced multi-frame files


@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_ct_is_read_with_the_position_and_rescale_of_every_frame(folder, shared):
    order = np.random.default_rng(0).permutation(26)
    write_enhanced(folder / "IM1", [(CHEST[k], 5.0 * k, int(k) - 1024, 1) for k in order], shared=shared)
    raw = read(folder)
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert raw.spacing_mm == pytest.approx(SPACING)
    assert raw.changes == ()
    first = geometry.lps_affine(raw.affine, raw.voxels.shape)[:3, 3]
    np.testing.assert_allclose(first, [-CORNER_MM[0], -CORNER_MM[1], CORNER_MM[2]])


def test_of_two_phases_in_one_enhanced_file_one_is_read(folder):
    phases = [(chest(seed)[k], 5.0 * k, -1024, phase) for phase, seed in ((1, 7), (2, 9)) for k in range(26)]
    write_enhanced(folder / "IM1", phases)
    raw = read(folder)
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert changes(raw) == {"acquisitions": "26 of 52 slices, 2 acquisitions"}
