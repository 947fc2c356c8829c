import csv
import json
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mg3d.glossary import LABELS
from mg3d.phantom.case import make_case, reconstruct
from mg3d.phantom.ct_rate import METADATA_COLUMNS
from mg3d.phantom.generate import PhantomSettings, generate
from mg3d.phantom.pathology import DRAWERS, DrawContext, lobe_of
from mg3d.phantom.report import write_report
from mg3d.phantom.sampling import sample_findings
from mg3d.phantom.wording import CONNECTIVES, NEGATIVE, NORMAL, NOTHING_FOUND, PHRASES, POSITIVE, UNCERTAIN
from mg3d.polarity import polarity, span_polarities
from mg3d.report_sections import clean_section
from mg3d.sentence_spans import build_report, normalize_text

SMALL = PhantomSettings(
    train_patients=5, valid_patients=3, ctrg_cases=2, grid=32, seed=4, second_reconstructions=0.5, raw_tree=True
)

PHI = (
    ("Arterial wall calcification", "Coronary artery wall calcification", 0.742),
    ("Arterial wall calcification", "Cardiomegaly", 0.334),
    ("Lung opacity", "Consolidation", 0.334),
    ("Cardiomegaly", "Coronary artery wall calcification", 0.323),
    ("Pericardial effusion", "Pleural effusion", 0.313),
    ("Peribronchial thickening", "Bronchiectasis", 0.302),
    ("Cardiomegaly", "Pleural effusion", 0.282),
    ("Atelectasis", "Pleural effusion", 0.281),
    ("Arterial wall calcification", "Emphysema", 0.278),
    ("Lung opacity", "Lung nodule", -0.124),
    ("Lung nodule", "Consolidation", -0.121),
)
"""The largest phi coefficients among the training scans of CT-RATE."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    counts = generate(root, SMALL, workers=1)
    return root, counts


def canvas_with(label, seed, grid=48):
    context = DrawContext(np.random.default_rng([seed, 7]), voxels_in_plane=grid)
    before = context.canvas.hu.copy()
    finding = DRAWERS[label](context)
    return context.canvas, context.body, finding, context.canvas.change_since(before).voxels


def test_every_label_has_a_drawer_and_phrases():
    assert set(DRAWERS) == set(PHRASES) == set(LABELS)
    for label, phrases in PHRASES.items():
        assert phrases.names[0] == label[0].lower() + label[1:]
        assert phrases.organ in NORMAL
        assert len(set(phrases.positive) | set(POSITIVE)) >= 8
        assert len(set(phrases.negative) | set(NEGATIVE)) >= 5
    assert len(UNCERTAIN) >= 3
    assert len(CONNECTIVES) == 10
    assert all(len(options) >= 4 for options in NORMAL.values())


def test_templates_have_no_comma_and_the_right_polarity():
    for phrases in PHRASES.values():
        for template in (*POSITIVE, *phrases.positive, *NEGATIVE, *phrases.negative, *UNCERTAIN):
            assert "," not in template
            assert ";" not in template
        filled = {"name": phrases.names[0], "Name": phrases.names[0], "where": "", "size": "9", "grade": "mild"}
        assert all(polarity(template.format(**filled)) == 1 for template in (*POSITIVE, *phrases.positive))
        assert all(polarity(template.format(**filled)) == -1 for template in (*NEGATIVE, *phrases.negative))
    assert all(polarity(text) == -1 for options in (*NORMAL.values(), NOTHING_FOUND) for text in options)
    assert all(polarity(template.format(name="nodule", Name="Nodule", where="")) == 2 for template in UNCERTAIN)


def test_every_verb_occurs_with_both_polarities():
    for verb in ("present", "seen", "identified", "noted", "observed"):
        assert any(verb in template for template in POSITIVE)
        assert any(verb in template for template in NEGATIVE)


def test_prevalence_and_correlation_of_findings_match_ct_rate():
    drawn = np.array([list(sample_findings(np.random.default_rng([1, i]), tempered=False)[0].values()) for i in range(6000)])
    prevalence = dict(zip(LABELS, drawn.mean(0), strict=True))
    assert prevalence["Lung nodule"] == pytest.approx(0.455, abs=0.02)
    assert prevalence["Pericardial effusion"] == pytest.approx(0.071, abs=0.012)
    phi, index = np.corrcoef(drawn.T), LABELS.index
    for one, other, real in PHI:
        assert phi[index(one), index(other)] == pytest.approx(real, abs=0.09), (one, other)
    tempered = [sample_findings(np.random.default_rng([1, i]), tempered=True)[0]["Cardiomegaly"] for i in range(3000)]
    assert np.mean(tempered) == pytest.approx(0.107**0.7, abs=0.025)


def test_the_heart_is_left_of_and_anterior_to_the_spine():
    canvas, body, _, _ = canvas_with("Lung nodule", 0)
    x, y, _ = body.heart[0]
    assert x > 0
    assert y < 0
    lungs = {side: np.argwhere(weight > 0.5).mean(0) for side, weight in body.lungs.items()}
    assert lungs["left"][2] > lungs["right"][2]
    middle = canvas.hu[canvas.hu.shape[0] // 2]
    assert middle[np.argmin(abs(canvas.y - 72)), np.argmin(abs(canvas.x))] > 60  # spine, posterior
    assert middle[0, 0] == -1000


@pytest.mark.parametrize("seed", range(4))
def test_pleural_fluid_is_posterior_and_inferior(seed):
    _, body, finding, voxels = canvas_with("Pleural effusion", seed)
    fluid, lung = np.argwhere(voxels).mean(0), np.argwhere(body.both_lungs > 0.5).mean(0)
    assert fluid[0] < lung[0]
    assert fluid[1] > lung[1]
    if finding.side != "bilateral":
        assert (fluid[2] > voxels.shape[2] / 2) == (finding.side == "left")


@pytest.mark.parametrize("label", ["Consolidation", "Lung nodule", "Emphysema", "Mosaic attenuation pattern"])
def test_lung_findings_are_inside_the_lung(label):
    for seed in range(3):
        _, body, _, voxels = canvas_with(label, seed)
        assert voxels.any()
        assert (body.both_lungs[voxels] > 0).all()


def test_lobe_of_points():
    assert lobe_of((-70, -30, 80), "right") == "upper"
    assert lobe_of((-70, 50, -60), "right") == "lower"
    assert lobe_of((-70, -60, -50), "right") == "middle"
    assert lobe_of((70, -60, -50), "left") == "lower"


def test_a_case_is_determined_by_its_seed_words():
    one, same, other = (make_case(words, voxels_in_plane=32, style="ctrate", tempered=True) for words in ((0, 5), (0, 5), (0, 6)))
    assert np.array_equal(one.volume_hu, same.volume_hu)
    assert one.report == same.report
    assert one.volume_hu.shape != other.volume_hu.shape or not np.array_equal(one.volume_hu, other.volume_hu)
    soft, sharp = (reconstruct(one.volume_hu, (0, 5, number), sharp=number == 2) for number in (1, 2))
    assert (sharp - one.volume_hu).std() > 2 * (soft - one.volume_hu).std()


@pytest.mark.parametrize("style", ["ctrate", "ctrg"])
def test_every_clause_of_a_report_has_ground_truth(style):
    mentioned = Counter()
    for seed in range(12):
        case = make_case((3, seed), voxels_in_plane=32, style=style, tempered=True)
        report, units = build_report(clean_section(case.report.findings), clean_section(case.report.impression))
        spans = [(unit.start, unit.end) for unit in units if unit.kind == 1]
        polarities = {
            normalize_text(report[start:end]): value
            for (start, end), value in zip(spans, span_polarities(report, spans), strict=True)
        }
        truth = {normalize_text(clause.text): clause for clause in case.report.clauses}
        assert polarities.keys() == truth.keys()
        for text, clause in truth.items():
            assert polarities[text] == {"+": 1, "-": -1, "?": 2}[clause.polarity], text
            if clause.label:
                mentioned[clause.polarity] += 1
                assert (case.findings[clause.label] is None) == (clause.polarity == "-")
    assert min(mentioned["+"], mentioned["-"]) > 20


def test_absent_findings_are_mentioned_at_the_intended_rates():
    counts = Counter()
    for seed in range(150):
        report = write_report(dict.fromkeys(LABELS), style="ctrate", generator=np.random.default_rng(seed))
        counts.update(clause.label for clause in report.clauses if clause.label)
    assert counts["Consolidation"] / 150 == pytest.approx(0.55, abs=0.12)
    assert counts["Pleural effusion"] / 150 == pytest.approx(0.9, abs=0.08)


def test_the_ct_rate_tree_has_the_public_layout(written):
    root, counts = written
    dataset = root / "ct_rate" / "dataset"
    files = sorted(dataset.glob("train_fixed/*/*/*.nii.gz"))
    assert len(files) + len(list(dataset.glob("valid_fixed/*/*/*.nii.gz"))) + 2 == counts["volumes"]
    image = nib.load(files[0])
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.get_data_dtype() == np.int16
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert image.header.get_zooms()[0] == pytest.approx(360 / 32)
    middle = image.affine @ [*((np.array(image.shape) - 1) / 2), 1]
    np.testing.assert_allclose(middle[:3], 0, atol=1e-3)
    raw = nib.load(str(files[0]).replace("train_fixed", "train"))
    assert np.array_equal(raw.affine, np.eye(4))
    rows = list(csv.DictReader((dataset / "metadata" / "train_metadata.csv").open()))
    assert tuple(rows[0]) == METADATA_COLUMNS
    assert len(METADATA_COLUMNS) == 44
    row = next(row for row in rows if row["VolumeName"] == files[0].name)
    hu = np.asarray(image.dataobj)
    inside = np.asarray(raw.dataobj) > 0
    assert np.array_equal((np.asarray(raw.dataobj) + int(row["RescaleIntercept"]))[inside], hu[inside])
    assert int(row["NumberofSlices"]) == image.shape[2]


def test_tables_agree_with_the_ground_truth(written):
    root, _ = written
    dataset = root / "ct_rate" / "dataset"
    labels = list(csv.DictReader((dataset / "multi_abnormality_labels" / "valid_predicted_labels.csv").open()))
    reports = {
        row["VolumeName"]: row for row in csv.DictReader((dataset / "radiology_text_reports" / "validation_reports.csv").open())
    }
    assert tuple(labels[0])[1:] == LABELS
    for row in labels:
        study = row["VolumeName"].rsplit("_", 1)[0]
        truth = json.loads((root / "truth" / "ct_rate" / f"{study}.json").read_text())
        assert {label: int(row[label]) for label in LABELS} == {k: int(v) for k, v in truth["present"].items()}
        assert reports[row["VolumeName"]]["Findings_EN"] == truth["report"]["findings"]


def test_ctrg_slices_run_from_superior_to_inferior(written):
    root, _ = written
    cases = json.loads((root / "ctrg" / "chest_ctrg_jpg.json").read_text())
    assert len(cases) == 2
    slices = [np.asarray(Image.open(root / "ctrg" / path)).astype(float) for path in cases[0]["image_path"]]
    lung_fraction = [(pixels[8:24, 8:24] < 60).mean() for pixels in slices]
    assert np.mean(lung_fraction[: len(slices) // 2]) > np.mean(lung_fraction[len(slices) // 2 :])  # the abdomen comes last


def test_a_set_is_independent_of_workers_and_interruptions(written, tmp_path):
    root, _ = written
    generate(tmp_path, SMALL, workers=2)
    names = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for name in names:
        if name.suffix in (".json", ".csv", ".jpg"):
            assert (root / name).read_bytes() == (tmp_path / name).read_bytes(), name
    interrupted = next(tmp_path.glob("truth/ct_rate/train_2_a.json"))
    content = interrupted.read_bytes()
    interrupted.unlink()
    mark = tmp_path / "phantom.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"complete": False}))
    assert generate(tmp_path, SMALL, workers=1)["new"] == 1
    assert interrupted.read_bytes() == content


def test_a_folder_with_other_settings_is_refused(written):
    root, _ = written
    with pytest.raises(ValueError, match="grid"):
        generate(root, PhantomSettings(train_patients=5, valid_patients=3, ctrg_cases=2, grid=48, seed=4), workers=1)
