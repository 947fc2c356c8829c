"""Location of the findings: voxel counts, centres and label maps."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest

from mg3d.glossary import LABELS
from mg3d.phantom import case as case_module
from mg3d.phantom.canvas import Change
from mg3d.phantom.case import make_case
from mg3d.phantom.generate import PhantomSettings, generate
from mg3d.phantom.pathology import DRAWERS

SET = PhantomSettings(train_patients=4, valid_patients=2, ctrg_cases=2, grid=24, seed=5, second_reconstructions=0.5)
DIFFUSE = {"Emphysema", "Mosaic attenuation pattern", "Peribronchial thickening", "Interlobular septal thickening"}
GRID = 40


def with_findings(monkeypatch, *labels, seed=3):
    """A case with only these findings."""
    present = {name: name in labels for name in LABELS}
    monkeypatch.setattr(case_module, "sample_findings", lambda generator, tempered: (present, 0.0))
    return make_case((seed,), voxels_in_plane=GRID, style="ctrate", tempered=True)


def near(case, point, radius_mm):
    """Voxels (bool) within a radius of a point (x, y, z) in mm from the scan centre."""
    index = np.indices(case.mask.shape).reshape(3, -1).T
    middle = (np.array(case.mask.shape) - 1) / 2
    distance = np.linalg.norm((index - middle) * case.voxel_mm - np.array(point)[::-1], axis=1)
    return (distance <= radius_mm).reshape(case.mask.shape)


@pytest.mark.parametrize("label", LABELS)
def test_a_single_finding_is_in_the_mask_around_its_centres(monkeypatch, label):
    case = with_findings(monkeypatch, label)
    finding, value = case.findings[label], 1 + LABELS.index(label)
    assert set(np.unique(case.mask)) == {0, value}
    assert finding.voxels == (case.mask == value).sum() > 0
    assert bool(finding.centres_mm) == (label not in DIFFUSE)
    surrounded = 60 if label == "Pericardial effusion" else 0  # its centre is that of the heart, which it surrounds
    reach = max(finding.size_mm, 2 * case.voxel_mm) + case.voxel_mm + surrounded
    assert all((case.mask[near(case, point, reach)] == value).any() for point in finding.centres_mm)


def test_every_drawn_part_has_a_centre(monkeypatch):
    counts = set()
    for seed in range(12):
        finding = with_findings(monkeypatch, "Lymphadenopathy", seed=seed).findings["Lymphadenopathy"]
        assert len(set(finding.centres_mm)) == len(finding.centres_mm)
        counts.add(len(finding.centres_mm))
    assert counts <= set(range(1, 7))
    assert len(counts) > 2
    case = with_findings(monkeypatch, "Pericardial effusion")
    assert case.findings["Pericardial effusion"].centres_mm == (case.findings["Pericardial effusion"].centre_mm,)


def test_bilateral_effusion_has_a_centre_on_each_side(monkeypatch):
    seen = set()
    for seed in range(14):
        fluid = with_findings(monkeypatch, "Pleural effusion", seed=seed).findings["Pleural effusion"]
        sides = {"left" if x > 0 else "right" for x, _, _ in fluid.centres_mm}
        assert sides == ({"left", "right"} if fluid.side == "bilateral" else {fluid.side})
        seen.add(fluid.side)
    assert "bilateral" in seen


def test_an_enlarged_heart_has_the_volume_of_its_ellipsoid(monkeypatch):
    finding = with_findings(monkeypatch, "Cardiomegaly").findings["Cardiomegaly"]
    factor = finding.size_mm / 60  # radii 60, 48 and 56 mm times one factor
    volume = 4 / 3 * np.pi * 60 * 48 * 56 * factor**3
    assert finding.voxels * (360 / GRID) ** 3 == pytest.approx(volume, rel=0.03)


def test_findings_inside_an_enlarged_heart_keep_their_voxels(monkeypatch):
    # A heart that fills the scan.
    monkeypatch.setattr(case_module, "_heart", lambda context: Change(np.ones(context.canvas.hu.shape, bool), 0.0))
    assert list(DRAWERS).index("Lymphadenopathy") < list(DRAWERS).index("Cardiomegaly")
    for seed in range(4):
        case = with_findings(monkeypatch, "Cardiomegaly", "Lymphadenopathy", seed=seed)
        assert (case.mask == 1 + LABELS.index("Lymphadenopathy")).sum() == case.findings["Lymphadenopathy"].voxels


def content(root):
    """Hash of every file; NIfTI by its voxels, because the gzip header holds a file name."""
    files = (path for path in root.rglob("*") if path.is_file())
    read = {p: nib.load(p).dataobj.get_unscaled().tobytes() if p.name.endswith(".nii.gz") else p.read_bytes() for p in files}
    return {path.relative_to(root).as_posix(): hashlib.sha256(value).hexdigest() for path, value in read.items()}


def test_masks_are_on_the_grid_of_the_volumes_and_change_nothing_else(tmp_path):
    generate(tmp_path / "plain", SET, workers=1)
    counts = generate(tmp_path / "masks", SET, workers=1, masks=True)
    plain, masked = content(tmp_path / "plain"), content(tmp_path / "masks")
    added = {name for name in masked if name.startswith("truth/masks/")}
    assert {name: value for name, value in masked.items() if name not in added} == plain
    assert len(added) == counts["volumes"]
    for path in (tmp_path / "masks").glob("ct_rate/dataset/*_fixed/*/*/*.nii.gz"):
        mask, volume = nib.load(tmp_path / "masks/truth/masks/ct_rate" / path.name), nib.load(path)
        assert mask.get_data_dtype() == np.uint8
        assert mask.shape == volume.shape
        np.testing.assert_array_equal(mask.affine, volume.affine)
        truth = json.loads((tmp_path / "masks/truth/ct_rate" / f"{path.name.rsplit('_', 1)[0]}.json").read_text())
        found = {LABELS[value - 1] for value in np.unique(np.asarray(mask.dataobj)) if value}
        assert found <= {finding["label"] for finding in truth["findings"] if finding["voxels"]}
    assert (tmp_path / "masks/truth/masks/ctrg/1.nii.gz").is_file()
    generate(tmp_path / "plain", SET, workers=2, masks=True)
    assert content(tmp_path / "plain") == masked  # added to a complete set
    assert generate(tmp_path / "masks", SET, workers=1) == {**counts, "new": 0}  # a set with masks is the same set


def test_default_draws_are_unchanged():
    case = make_case((0, 0, 1, 0), voxels_in_plane=36, style="ctrate", tempered=True)
    drawn = {label: (f.side, f.centre_mm, round(f.size_mm, 3)) for label, f in case.findings.items() if f}
    assert drawn == {
        "Arterial wall calcification": ("", None, 12.0),
        "Coronary artery wall calcification": ("", None, 12.0),
        "Atelectasis": ("left", (75.0, 5.0, -55.0), 34.984),
        "Lung nodule": ("left", (35.0, -15.0, 45.0), 24.0),
        "Pleural effusion": ("left", None, 22.721),
    }
    assert case.volume_hu.shape == (30, 36, 36)
    assert np.abs(np.rint(case.volume_hu)).sum(dtype=np.float64) == pytest.approx(25694561, rel=1e-6)
    assert case.report.findings.startswith("Atelectasis is present in the left lower lobe. There is lung")
