"""Intervals and comparisons of prediction tables: what they average, what they rest on, and when they are withheld."""

import numpy as np
import pandas as pd
import pytest
from finetune.small_tables import prediction_table

from mg3d.evaluation.tables import format_rows
from mg3d.finetune.scoring import compare_tables, comparison_rows, score_table
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.classification import Classification
from mg3d.finetune.tasks.segmentation import Segmentation
from mg3d.metrics.classification import auroc, macro_auroc

RANDOM = np.random.default_rng(0)


def classification(outputs=("a", "b"), **options):
    return Classification(FinetuneSettings(n_bootstrap=200), outputs=outputs, metric="auroc", **options)


def segmentation(n_bootstrap=200):
    return Segmentation(FinetuneSettings(n_bootstrap=n_bootstrap), outputs=("lesion",), patch_size=(8, 8, 8))


def scores_of(task_type, table):
    return {score.name: score for score in score_table(task_type, table)}


def compared(task_type, *tables):
    return {row.name: row for row in compare_tables(task_type, tables, (None, None))}


def labels_with(positives, cases=200):
    """[cases, L] with so many positives of each label."""
    return np.stack([RANDOM.permutation(cases) < count for count in positives], 1).astype(int)


def test_a_comparison_of_a_finding_with_one_positive_has_neither_interval_nor_p():
    labels = labels_with((1,))
    tables = [prediction_table(classification(("a",)), labels, scores) for scores in (0.9 - 0.6 * labels, 0.1 + 0.8 * labels)]
    row = compared(classification(("a",)), *tables)["auroc/a"]
    assert row.difference.difference == 1
    assert row.difference.p < 0.02  # of the bootstrap, which hardly ever draws anything else
    assert row.no_interval == "too few positives (1)"
    printed = next(line for line in format_rows(comparison_rows([row])))
    assert (printed["difference"], printed["p"], printed["p (Holm)"]) == ("1.000 [too few positives (1)]", "", "")


def test_p_of_findings_is_corrected_for_their_number():
    labels = labels_with((60, 70, 80, 90))
    better = labels + RANDOM.normal(0, (1, 1.5, 1.5, 1.5), labels.shape)
    worse = labels + RANDOM.normal(0, 1.5, labels.shape)
    task_type = classification(tuple("abcd"))
    rows = compared(task_type, *(prediction_table(task_type, labels, 1 / (1 + np.exp(-part))) for part in (worse, better)))
    p = np.array([rows[f"auroc/{name}"].difference.p for name in "abcd"])
    adjusted = np.array([rows[f"auroc/{name}"].p_holm for name in "abcd"])
    order = np.argsort(p)
    assert adjusted[order[0]] == pytest.approx(min(1, 4 * p[order[0]]))
    assert (adjusted >= p).all()
    assert np.isnan(rows["auroc"].p_holm)  # the mean is one test


def test_a_case_that_one_run_alone_predicts_supports_the_comparison():
    """Patient 7 has no lesion. The first run finds none there, so its Dice is undefined; the second finds one, with Dice 0."""
    patients = [str(number) for number in range(8)]
    first, second = np.append(np.full(7, 0.5), np.nan), np.append(np.full(7, 0.6), 0.0)
    tables = [pd.DataFrame({"case_id": patients, "patient_id": patients, "dice/lesion": dice}) for dice in (first, second)]
    for pair in (tables, tables[::-1]):
        row = compared(segmentation(), *pair)["dice/lesion"]
        assert row.difference.patients == 8
        assert abs(row.difference.difference) == pytest.approx(7 * 0.6 / 8 - 0.5)
    assert row.difference.p > 0.5


def test_the_interval_of_a_macro_auroc_is_withheld_if_one_of_its_labels_is_rare():
    labels = labels_with((100, 1))
    table = prediction_table(classification(), labels, RANDOM.random(labels.shape))
    scores = scores_of(classification(), table)
    assert scores["auroc"].value == pytest.approx(macro_auroc(labels, table[["score/a", "score/b"]].to_numpy()))
    assert [scores[name].no_interval for name in ("auroc", "auroc/a", "auroc/b")] == ["too few positives (1)", ""] + [
        "too few positives (1)"
    ]
    assert np.isnan(scores["auroc"].low)
    assert scores["auroc/a"].low < scores["auroc/a"].value < scores["auroc/a"].high


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_interval_of_a_balanced_accuracy_is_withheld_if_a_class_is_rare(exclusive):
    """A sensitivity of four patients is half of the value; of exclusive classes every column has some positives."""
    positive = np.arange(60) < 4
    labels = np.stack([positive, ~positive] if exclusive else [positive, positive], 1).astype(int)
    task_type = classification(exclusive=exclusive)
    scores = scores_of(task_type, prediction_table(task_type, labels, RANDOM.random(labels.shape)))
    found = {name: score.no_interval for name, score in scores.items() if "balanced_accuracy" in name}
    assert len(found) == (1 if exclusive else 3)
    assert set(found.values()) == {"too few positives (4)"}


def test_a_mean_names_the_outputs_that_are_undefined():
    labels = labels_with((90, 80, 0))
    task_type = classification(("a", "b", "nodule"))
    scores = scores_of(task_type, prediction_table(task_type, labels, RANDOM.random(labels.shape)))
    assert (scores["auroc"].without, scores["auroc"].no_interval) == ("nodule", "")
    assert scores["auroc"].value == pytest.approx((scores["auroc/a"].value + scores["auroc/b"].value) / 2)
    assert scores["auroc/nodule"].no_interval == "undefined"
    assert scores["auroc/a"].without == ""
    table = prediction_table(task_type, labels, RANDOM.random(labels.shape))
    rows = {
        row["score"]: row["difference"]
        for row in format_rows(comparison_rows(compare_tables(task_type, [table] * 2, [None] * 2)))
    }
    assert (rows["auroc"], rows["auroc/nodule"]) == ("0.000 [0.000, 0.000], without nodule", "undefined")


def test_four_patients_have_no_interval():
    table = pd.DataFrame({"case_id": list("abcd"), "patient_id": list("abcd"), "dice/lesion": [0.1, 0.5, 0.6, 0.9]})
    score = scores_of(segmentation(), table)["dice"]
    assert (score.value, score.no_interval, score.patients) == (0.525, "too few patients (4)", 4)
    enough = pd.DataFrame({"case_id": list("abcdef"), "patient_id": list("abcdef"), "dice/lesion": 0.5})
    assert scores_of(segmentation(), enough)["dice"].no_interval == ""
    assert scores_of(segmentation(n_bootstrap=0), enough)["dice"].no_interval == "n_bootstrap=0"
    row = compared(segmentation(), table, table.assign(**{"dice/lesion": 0.9}))["dice"]
    assert row.no_interval == "too few patients (4)"


def folds_with_different_scales(cases=120):
    """Two folds, each ranked well; the scores of the second are lower throughout."""
    labels, fold = labels_with((cases // 2, cases // 3), cases), np.arange(cases) % 2
    scores = 0.3 + 0.2 * labels + RANDOM.normal(0, 0.05, labels.shape) - 0.28 * fold[:, None]
    return prediction_table(classification(), labels, scores.clip(0, 1)).assign(fold=fold)


def test_auroc_of_folds_is_the_mean_over_folds_and_brier_score_is_pooled():
    table = folds_with_different_scales()
    scores = scores_of(classification(), table)
    each = [[auroc(part[f"target/{name}"].to_numpy(), part[f"score/{name}"].to_numpy()) for _, part in table.groupby("fold")]
            for name in "ab"]  # fmt: skip
    assert scores["auroc/a"].value == pytest.approx(np.mean(each[0]))
    assert scores["auroc/a"].value > 0.95
    assert scores["auroc"].value == pytest.approx(np.mean(each))
    assert auroc(table["target/a"].to_numpy(), table["score/a"].to_numpy()) < 0.9  # pooled, of scores without a common scale
    assert scores["auroc/a"].folds == pytest.approx(
        {"mean": np.mean(each[0]), "sd": np.std(each[0], ddof=1), "min": min(each[0]), "max": max(each[0])}
    )
    assert scores["auroc/a"].low <= scores["auroc/a"].value <= scores["auroc/a"].high
    assert scores["brier"].value == pytest.approx(scores_of(classification(), table.drop(columns="fold"))["brier"].value)
    assert not [name for name in scores if name.startswith("fold")]
    assert scores_of(classification(), table.drop(columns="fold"))["auroc"].folds is None


def test_a_fold_without_positives_is_named_and_one_with_few_withholds_the_interval():
    table = folds_with_different_scales()
    none = table.assign(**{"target/a": np.where(table["fold"] == 1, 0, table["target/a"])})
    assert scores_of(classification(), none)["auroc/a"].without == "fold 1"
    few = table.copy()
    positive = few.index[(few["fold"] == 1) & (few["target/a"] == 1)]
    few.loc[positive[3:], "target/a"] = 0
    assert scores_of(classification(), few)["auroc/a"].no_interval == "too few positives (3) in fold 1"


def test_runs_on_several_folds_are_compared_within_folds():
    table = folds_with_different_scales()
    shifted = table.assign(**{"score/a": table["score/a"] + 0.28 * table["fold"]})  # the same ranking within each fold
    row = compared(classification(), table, shifted)["auroc/a"]
    assert (row.difference.difference, row.difference.p) == (0, 1)


def test_figures_of_several_folds_have_a_curve_per_fold():
    (_, figure), *_ = classification().figures(folds_with_different_scales())
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [name.partition(" (")[0] for name in names] == ["a, fold 0", "a, fold 1", "b, fold 0", "b, fold 1"]


def test_resamples_without_a_case_of_a_fold_have_the_scores_of_the_others():
    """Three folds of one patient each: nearly every resample lacks one or two of them."""
    task_type = Classification(FinetuneSettings(n_bootstrap=20), outputs=("a", "b"), metric="auroc")
    table = prediction_table(task_type, [(1, 1), (1, 0), (0, 0)], [(0.9, 0.6), (0.8, 0.2), (0.4, 0.9)]).assign(fold=[0, 1, 2])
    assert "auroc" in {score.name for score in score_table(task_type, table)}
