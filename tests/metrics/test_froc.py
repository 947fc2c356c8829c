import numpy as np
import pytest

from mg3d.metrics.froc import Froc, Spheres, cpm, froc, sensitivity_at

FINDINGS = Spheres(
    scans=["a", "a", "b", "b"],
    centres_mm=np.array([[0, 0, 0], [50, 0, 0], [0, 0, 0], [0, 50, 0]], dtype=float),
    diameters_mm=np.array([10.0, 6.0, 8.0, 20.0]),
    excluded=np.array([False, False, False, True]),
)
CANDIDATES = [
    ("b", (0, 0, 3.9), 0.6),  # hits the finding of b
    ("a", (0, 4, 0), 0.9),  # hits the first of a
    ("a", (1, 0, 0), 0.3),  # hits it again: counts nothing
    ("a", (3, 4, 0), 0.8),  # 5 mm from its centre, the radius: false
    ("b", (0, 45, 0), 0.95),  # hits the excluded one only: counts nothing
    ("d", (0, 0, 0), 0.7),  # false
    ("d", (9, 9, 9), 0.5),  # false
    ("c", (0, 0, 0), 0.4),  # false
    ("a", (50, 0, 2), 0.2),  # hits the second of a
]


def curve_of(candidates, findings=FINDINGS, all_scans="abcd"):
    scans = [scan for scan, _, _ in candidates]
    centres = np.array([centre for _, centre, _ in candidates], dtype=float).reshape(-1, 3)
    scores = np.array([score for _, _, score in candidates], dtype=float)
    return froc(scans, centres, scores, findings=findings, all_scans=list(all_scans))


def test_the_curve_by_hand():
    # Falling scores: excluded, hit, false, false, hit, false, false, repeated, hit. Of 3 findings and 4 scans.
    curve = curve_of(CANDIDATES)
    assert curve.false_positives_per_scan.tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert curve.sensitivity.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])


def test_the_mean_sensitivity_by_hand():
    # At 1/8, 1/4: 1/3; at 1/2: 2/3; at 1 and beyond the last point: 1.
    curve = curve_of(CANDIDATES)
    assert sensitivity_at(curve).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1, 1, 1, 1])
    assert cpm(curve) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 4) / 7)
    # Between points the curve is straight: 3/8 of the way from 1/4 to 1/2 is half way.
    assert sensitivity_at(curve, [3 / 8]).tolist() == pytest.approx([0.5])


def test_a_candidate_in_two_findings_counts_for_both():
    findings = Spheres(["a", "a"], np.array([[0.0, 0, 0], [4, 0, 0]]), np.array([10.0, 10.0]), np.zeros(2, dtype=bool))
    curve = curve_of([("a", (2, 0, 0), 0.5)], findings, "ab")
    assert (curve.false_positives_per_scan.tolist(), curve.sensitivity.tolist()) == ([0], [1])


def test_equal_scores_come_together():
    # A hit and two false positives of one score: no threshold separates them, so the curve has 0 and then all.
    curve = curve_of([("a", (0, 0, 0), 0.5), ("c", (0, 0, 0), 0.5), ("d", (0, 0, 0), 0.5)])
    assert curve.false_positives_per_scan.tolist() == [0, 0.5]
    assert curve.sensitivity.tolist() == pytest.approx([0, 1 / 3])


def test_no_candidate_finds_nothing():
    curve = curve_of([])
    assert (curve.false_positives_per_scan.tolist(), curve.sensitivity.tolist(), cpm(curve)) == ([0], [0], 0)


def walked(candidates, findings, scans):
    """Threshold by threshold and candidate by candidate."""
    points = {0: 0.0}
    for threshold in sorted({score for _, _, score in candidates}, reverse=True):
        found, alarms = set(), 0
        for scan, centre, score in candidates:
            rows = [
                row
                for row, other in enumerate(findings.scans)
                if other == scan
                and np.linalg.norm(np.subtract(centre, findings.centres_mm[row])) < findings.diameters_mm[row] / 2
            ]
            alarms += score >= threshold and not rows
            found |= {row for row in rows if score >= threshold and not findings.excluded[row]}
        points[alarms] = len(found) / (~findings.excluded).sum()
    return [alarms / scans for alarms in sorted(points)], [points[alarms] for alarms in sorted(points)]


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_that_of_a_walk_through_all_thresholds(seed):
    random = np.random.default_rng(seed)
    names = [f"scan{number}" for number in range(6)]
    findings = Spheres(
        random.choice(names, 9).tolist(), random.random((9, 3)) * 20, random.uniform(4, 14, 9), random.random(9) < 0.3
    )
    candidates = [(random.choice(names), random.random(3) * 20, score) for score in random.integers(0, 25, 60) / 25]
    curve = curve_of(candidates, findings, names)
    rates, sensitivities = walked(candidates, findings, 6)
    assert curve.false_positives_per_scan.tolist() == pytest.approx(rates)
    assert curve.sensitivity.tolist() == pytest.approx(sensitivities)


def test_a_curve_is_read_at_its_rates():
    # The seven rates against sensitivity = rate / 8.
    assert cpm(Froc(np.array([0.0, 8.0]), np.array([0.0, 1.0]))) == pytest.approx(15.875 / 8 / 7)


def test_what_has_no_curve_is_refused():
    with pytest.raises(ValueError, match="no finding that is to be found"):
        curve_of(CANDIDATES, FINDINGS._replace(excluded=np.ones(4, dtype=bool)))
    with pytest.raises(ValueError, match="2 of 9 rows are of scans"):
        curve_of(CANDIDATES, all_scans="abc")
    with pytest.raises(ValueError, match="candidates: a number is nan"):
        curve_of([("a", (0, 0, 0), np.nan)])
    with pytest.raises(ValueError, match="findings: 4 scans"):
        curve_of(CANDIDATES, FINDINGS._replace(diameters_mm=np.ones(3)))
