import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mg3d.datasets.studies import ReportText
from mg3d.evaluation.negation_and_laterality import (
    mirror_rows,
    negation_rows,
    side_rows,
    sided_prompts,
    swap_report_sides,
    swap_sides,
)
from mg3d.evaluation.tables import Bootstrap
from mg3d.glossary import LABELS

BOOTSTRAP = Bootstrap(20, 0)
LEFT, RIGHT = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def test_sides_are_swapped_as_whole_words_and_back():
    text = "Left lower lobe; RIGHT hilum, right-sided and bright. Leftover."
    assert swap_sides(text) == "Right lower lobe; LEFT hilum, left-sided and bright. Leftover."
    assert swap_sides(swap_sides(text)) == text
    assert sided_prompts()[2 * LABELS.index("Pleural effusion")] == "There is pleural effusion on the left."


def test_swapped_reports_keep_their_sentences():
    report = ReportText("Left effusion. A right nodule.", ((0, 14), (15, 30)))
    swapped = swap_report_sides(report)
    assert [swapped.report[start:end] for start, end in swapped.sentence_spans] == ["Right effusion.", "A left nodule."]


def test_a_model_that_ignores_negation_is_detected():
    labels = np.tile([[1], [0], [1], [0]], 18)
    volumes = F.normalize(torch.tensor([[1.0, 0.2], [0.2, 1.0], [1.0, 0.1], [0.3, 1.0]]), dim=1)
    reads = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).expand(18, 2, 2)
    ignores = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).flip(0).expand(18, 2, 2)
    good = negation_rows(volumes, reads, labels, np.arange(4), bootstrap=BOOTSTRAP)[-1]
    bad = negation_rows(volumes, ignores, labels, np.arange(4), bootstrap=BOOTSTRAP)[-1]
    columns = ("present, closer to X", "absent, closer to no X")
    assert [good[name]["value"] for name in columns] == [1, 1]
    assert [bad[name]["value"] for name in columns] == [0, 0]
    assert bad["cosine of X and no X"] == pytest.approx(0.6)
    assert (good["AUROC of X alone"]["value"], good["AUROC of the pair"]["value"]) == (1, 1)


def test_mirrored_volumes_separate_models_that_know_sides_from_those_that_do_not():
    volumes = reports = torch.cat([LEFT, RIGHT, LEFT])
    mirrored = torch.cat([RIGHT, LEFT, RIGHT])
    knows = mirror_rows(volumes, mirrored, reports, mirrored, np.arange(3), bootstrap=BOOTSTRAP)
    assert [row["accuracy"]["value"] for row in knows] == [1, 1, 1]
    blind = mirror_rows(volumes, volumes, reports, mirrored, np.arange(3), bootstrap=BOOTSTRAP)
    assert [row["accuracy"]["value"] for row in blind] == [1, 0, 0]


def test_the_true_side_of_a_mirrored_volume_is_the_opposite():
    prompts = torch.stack([LEFT, RIGHT], 1).expand(18, 2, 2)
    sides = np.full((4, 18), -1, np.int8)
    sides[:, 3] = [1, 0, 1, -1]
    volumes, mirrored = torch.cat([LEFT, RIGHT, LEFT, RIGHT]), torch.cat([RIGHT, LEFT, RIGHT, LEFT])
    (row,) = side_rows(volumes, mirrored, prompts, sides, np.arange(4), bootstrap=BOOTSTRAP)
    assert (row["finding"], row["left"], row["right"]) == (LABELS[3], 2, 1)
    assert (row["AUROC, volumes"]["value"], row["AUROC, mirrored volumes"]["value"]) == (1, 1)
    (blind,) = side_rows(volumes, volumes, prompts, sides, np.arange(4), bootstrap=BOOTSTRAP)
    assert blind["AUROC, mirrored volumes"]["value"] == 0
