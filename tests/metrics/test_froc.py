import numpy as np
import pytest

from mg3d.metrics.froc import Annotations, FrocCurve, froc, sensitivity_at

A, B, C, D = range(4)
ANNOTATIONS = Annotations(
    scans=np.array([A, A, B, B]),
    centres_mm=np.array([[0, 0, 0], [50, 0, 0], [0, 0, 0], [0, 50, 0]], dtype=float),
    diameters_mm=np.array([10.0, 6.0, 8.0, 20.0]),
    excluded=np.array([False, False, False, True]),
)
CANDIDATES = [
    (B, (0, 0, 3.9), 0.6),  # hits the lesion of B
    (A, (0, 4, 0), 0.9),  # hits the first of A
    (A, (1, 0, 0), 0.3),  # hits it again: ignored
    (A, (3, 4, 0), 0.8),  # 5 mm from its centre, the radius: false
    (B, (0, 45, 0), 0.95),  # hits the excluded one only: ignored
    (D, (0, 0, 0), 0.7),  # false
    (D, (9, 9, 9), 0.5),  # false
    (C, (0, 0, 0), 0.4),  # false
    (A, (50, 0, 2), 0.2),  # hits the second of A
]


def curve_of(candidates, annotations=ANNOTATIONS, n_scans=4):
    scans = np.array([scan for scan, _, _ in candidates], dtype=int)
    centres = np.array([centre for _, centre, _ in candidates], dtype=float).reshape(-1, 3)
    scores = np.array([score for _, _, score in candidates], dtype=float)
    return froc(scans, centres, scores, annotations=annotations, n_scans=n_scans)


def test_froc_curve_by_hand():
    # Falling scores: excluded, hit, false, false, hit, false, false, repeated, hit. 3 lesions, 4 scans.
    curve = curve_of(CANDIDATES)
    assert curve.false_positives_per_scan.tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert curve.sensitivity.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])


def test_sensitivity_at_the_cpm_rates_by_hand():
    # At 1/8, 1/4: 1/3; at 1/2: 2/3; at 1 and beyond the last point: 1.
    curve = curve_of(CANDIDATES)
    assert sensitivity_at(curve).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1, 1, 1, 1])
    assert sensitivity_at(curve).mean() == pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 4) / 7)
    # Linear between points: 3/8 of the way from 1/4 to 1/2 is half way.
    assert sensitivity_at(curve, [3 / 8]).tolist() == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("candidates", "annotations", "false_positives", "sensitivity"),
    [
        pytest.param(
            [(A, (2, 0, 0), 0.5)],
            Annotations(np.array([A, A]), np.array([[0.0, 0, 0], [4, 0, 0]]), np.array([10.0, 10.0]), np.zeros(2, dtype=bool)),
            [0], [1], id="a candidate inside two lesions hits both",
        ),
        pytest.param(
            [(A, (0, 0, 0), 0.5), (C, (0, 0, 0), 0.5), (D, (0, 0, 0), 0.5)],
            ANNOTATIONS, [0, 0.5], [0, 1 / 3], id="no threshold separates a hit and two false positives with equal scores",
        ),
        pytest.param([], ANNOTATIONS, [0], [0], id="no candidates"),
    ],
)  # fmt: skip
def test_operating_points_of_special_cases(candidates, annotations, false_positives, sensitivity):
    curve = curve_of(candidates, annotations)
    assert curve.false_positives_per_scan.tolist() == false_positives
    assert curve.sensitivity.tolist() == pytest.approx(sensitivity)


def slow_froc(candidates, annotations, scans):
    """Threshold by threshold and candidate by candidate."""
    points = {0: 0.0}
    for threshold in sorted({score for _, _, score in candidates}, reverse=True):
        found, fp = set(), 0
        for scan, centre, score in candidates:
            rows = [
                row
                for row, other in enumerate(annotations.scans)
                if other == scan
                and np.linalg.norm(np.subtract(centre, annotations.centres_mm[row])) < annotations.diameters_mm[row] / 2
            ]
            fp += score >= threshold and not rows
            found |= {row for row in rows if score >= threshold and not annotations.excluded[row]}
        points[fp] = len(found) / (~annotations.excluded).sum()
    return [fp / scans for fp in sorted(points)], [points[fp] for fp in sorted(points)]


@pytest.mark.parametrize("seed", range(3))
def test_froc_matches_a_slow_loop_over_thresholds(seed):
    random = np.random.default_rng(seed)
    annotations = Annotations(
        random.integers(0, 6, 9), random.random((9, 3)) * 20, random.uniform(4, 14, 9), random.random(9) < 0.3
    )
    candidates = [(random.integers(0, 6), random.random(3) * 20, score) for score in random.integers(0, 25, 60) / 25]
    curve = curve_of(candidates, annotations, 6)
    rates, sensitivities = slow_froc(candidates, annotations, 6)
    assert curve.false_positives_per_scan.tolist() == pytest.approx(rates)
    assert curve.sensitivity.tolist() == pytest.approx(sensitivities)


def test_mean_sensitivity_of_a_linear_curve():
    # The seven rates against sensitivity = rate / 8.
    assert sensitivity_at(FrocCurve(np.array([0.0, 8.0]), np.array([0.0, 1.0]))).mean() == pytest.approx(15.875 / 8 / 7)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("all annotations are excluded", {"annotations": ANNOTATIONS._replace(excluded=np.ones(4, dtype=bool))}),
        ("candidates: scan indices 0 to 3; expected 0 to 2", {"n_scans": 3}),
        ("candidates: a coordinate or value is nan", {"candidates": [(A, (0, 0, 0), np.nan)]}),
        ("annotations: 4 scans", {"annotations": ANNOTATIONS._replace(diameters_mm=np.ones(3))}),
    ],
)
def test_invalid_froc_inputs_are_refused(message, named):
    with pytest.raises(ValueError, match=message):
        curve_of(**{"candidates": CANDIDATES} | named)
