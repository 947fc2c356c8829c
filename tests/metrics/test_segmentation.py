import numpy as np
import pytest

from mg3d.metrics.segmentation import case_scores

SPACING = (5.0, 1.5, 0.75)


def grid(*voxels, shape=(9, 10, 12)):
    """A label map with these voxels (indices or slices) of class 1."""
    labels = np.zeros(shape, dtype=np.uint8)
    for voxel in voxels:
        labels[voxel] = 1
    return labels


def one(predicted, reference, tolerance_mm=1.0, spacing_mm=SPACING):
    scores = case_scores(predicted, reference, classes=[1], spacing_mm=spacing_mm, tolerance_mm=[tolerance_mm])
    return {name: float(value[0]) for name, value in scores.items()}


def test_dice_and_volumes_by_hand():
    # 2 x 3 x 4 = 24 voxels and 1 x 3 x 6 = 18 share 1 x 3 x 2: 2 * 6 / 42. A voxel is 5 * 1.5 * 0.75 = 5.625 mm^3.
    predicted = grid(np.s_[2:4, 3:6, 4:8])
    reference = grid(np.s_[3:4, 3:6, 6:12])
    found = one(predicted, reference)
    assert found["dice"] == pytest.approx(12 / 42)
    assert found["volume_ml"] == pytest.approx(24 * 5.625 / 1000)
    assert found["reference_ml"] == pytest.approx(18 * 5.625 / 1000)


@pytest.mark.parametrize(("axis", "steps", "distance_mm"), [(0, 2, 10.0), (1, 2, 3.0), (2, 3, 2.25)])
def test_hd95_of_two_voxels_is_in_millimetres(axis, steps, distance_mm):
    voxel = [3, 4, 5]
    reference = grid(tuple(voxel))
    voxel[axis] += steps
    assert one(grid(tuple(voxel)), reference)["hd95_mm"] == pytest.approx(distance_mm)


def test_hd95_is_the_larger_of_the_directed_percentiles():
    # From the pair to the single voxel: 0 and 6 * 0.75 = 4.5 mm, 95th percentile 0.95 * 4.5; from the single voxel: 0.
    pair, single = grid((3, 4, 2), (3, 4, 8)), grid((3, 4, 2))
    assert one(pair, single)["hd95_mm"] == one(single, pair)["hd95_mm"] == pytest.approx(0.95 * 4.5)


@pytest.mark.parametrize(("axis", "step_mm"), enumerate(SPACING))
def test_surface_dice_of_neighbouring_voxels_by_hand(axis, step_mm):
    # A voxel's surface has eight equal corners, four on each side. After a shift by one step the facing sides coincide,
    # and the far ones are one step away: half within a tolerance just under the step, all at the step.
    voxel = [3, 4, 5]
    reference = grid(tuple(voxel))
    voxel[axis] += 1
    moved = grid(tuple(voxel))
    assert one(moved, reference, tolerance_mm=step_mm - 0.01)["nsd"] == pytest.approx(0.5)
    assert one(moved, reference, tolerance_mm=step_mm)["nsd"] == pytest.approx(1.0)


def test_an_equal_map_scores_best_and_a_distant_one_worst():
    near = grid(np.s_[2:4, 3:6, 4:8])
    assert [one(near, near, 0.0)[name] for name in ("dice", "nsd", "hd95_mm")] == [1, 1, 0]
    far = one(near, grid(np.s_[7:9, 3:6, 4:8]), 2.0)
    assert (far["dice"], far["nsd"]) == (0, 0)
    assert far["hd95_mm"] == pytest.approx(25)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_structure_in_one_map_only_scores_worst_and_one_in_neither_is_nan():
    predicted, reference = grid((1, 1, 1)), grid()
    reference[2, 2, 2] = 2
    found = case_scores(predicted, reference, classes=[1, 2, 3], spacing_mm=SPACING, tolerance_mm=[1, 1, 1])
    diagonal = np.sqrt(45.0**2 + 15.0**2 + 9.0**2)
    assert found["dice"].tolist() == pytest.approx([0, 0, np.nan], nan_ok=True)
    assert found["nsd"].tolist() == pytest.approx([0, 0, np.nan], nan_ok=True)
    assert found["hd95_mm"].tolist() == pytest.approx([diagonal, diagonal, np.nan], nan_ok=True)
    assert found["volume_ml"].tolist() == pytest.approx([0.005625, 0, 0])
    assert found["reference_ml"].tolist() == pytest.approx([0, 0.005625, 0])


def test_tolerances_and_scores_are_per_class():
    predicted, reference = grid((3, 4, 5)), grid((3, 4, 6))
    predicted[6, 2:4, 2] = reference[6, 2:4, 2] = 4
    reference[7, 2:4, 2] = 4
    found = case_scores(predicted, reference, classes=[4, 2, 1], spacing_mm=SPACING, tolerance_mm=[5.0, 1.0, 0.7])
    assert found["dice"].tolist() == pytest.approx([4 / 6, np.nan, 0], nan_ok=True)
    assert found["nsd"].tolist() == pytest.approx([1, np.nan, 0.5], nan_ok=True)


@pytest.mark.parametrize(
    ("predicted", "reference", "spacing_mm", "classes", "message"),
    [
        (grid(), grid(shape=(8, 10, 12)), SPACING, [1], "on one grid"),
        (grid(), grid(), (5.0, 0.0, 1.0), [1], "positive lengths"),
        (grid(), grid(), (5.0, np.nan, 1.0), [1], "positive lengths"),
        (np.full((9, 10, 12), np.nan), grid(), SPACING, [1], "prediction holds nan or fractions"),
        (grid(), grid(), SPACING, [1, 2], "1 tolerances for 2"),
    ],
)
def test_invalid_label_maps_are_refused(predicted, reference, spacing_mm, classes, message):
    with pytest.raises(ValueError, match=message):
        case_scores(predicted, reference, classes=classes, spacing_mm=spacing_mm, tolerance_mm=[1.0])


def test_surfaces_false_omits_only_the_surface_metrics():
    named = {"classes": [1], "spacing_mm": SPACING, "tolerance_mm": [1.0]}
    maps = grid(np.s_[2:4, 3:6, 4:8]), grid(np.s_[3:4, 3:6, 6:12])
    without, full = (case_scores(*maps, surfaces=surfaces, **named) for surfaces in (False, True))
    assert set(full) - set(without) == {"nsd", "hd95_mm"}
    assert all(np.array_equal(value, full[name]) for name, value in without.items())
