import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from mg3d.metrics.clinical import clinical_efficacy

REFERENCE = np.array([[1, 1, 0, 0], [0, 1, -1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
GENERATED = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, -1], [0, 0, 0, 0]])


@pytest.mark.filterwarnings("error")
def test_clinical_efficacy_by_hand():
    found = clinical_efficacy(REFERENCE, GENERATED)
    # Finding 0: 1 tp, 1 fn. Finding 1: the same. Finding 2: 2 fp, and 1 unknown entry. Finding 3: undefined.
    assert found["label_precision"].tolist() == pytest.approx([1, 1, 0, np.nan], nan_ok=True)
    assert found["label_recall"].tolist() == pytest.approx([1 / 2, 1 / 2, 0, np.nan], nan_ok=True)
    assert found["label_f1"].tolist() == pytest.approx([2 / 3, 2 / 3, 0, np.nan], nan_ok=True)
    assert found["macro_precision"] == pytest.approx(2 / 3)
    assert found["macro_recall"] == pytest.approx(1 / 3)
    assert found["macro_f1"] == pytest.approx(4 / 9)
    # Pooled: 2 tp, 2 fp, 2 fn.
    assert found["micro_precision"] == found["micro_recall"] == found["micro_f1"] == 0.5
    # Reports: precision and recall 1 of 2; all correct; one invented; one missed; the last is undefined.
    assert found["example_precision"] == found["example_recall"] == found["example_f1"] == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    assert (found["labels"], found["examples"]) == (3, 4)


def test_values_match_scikit_learn_where_everything_is_defined():
    random = np.random.default_rng(0)
    reference, generated = (random.random((30, 18)) < 0.4 for _ in range(2))
    found = clinical_efficacy(reference.astype(int), generated.astype(int))
    for average, name in (("micro", "micro"), ("macro", "macro"), ("samples", "example")):
        values = precision_recall_fscore_support(reference, generated, average=average, zero_division=0)[:3]
        assert [found[f"{name}_{part}"] for part in ("precision", "recall", "f1")] == pytest.approx(values)


@pytest.mark.filterwarnings("error")
def test_no_finding_on_either_side_is_nan_and_no_generated_finding_scores_0():
    empty = clinical_efficacy(np.zeros((3, 2)), np.zeros((3, 2)))
    assert np.isnan([empty["micro_f1"], empty["macro_f1"], empty["example_f1"], empty["micro_precision"]]).all()
    assert (empty["labels"], empty["examples"]) == (0, 0)
    silent = clinical_efficacy(np.ones((3, 2)), np.zeros((3, 2)))
    names = [f"{mean}_{score}" for mean in ("micro", "macro", "example") for score in ("precision", "recall", "f1")]
    assert {silent[name] for name in names} == {0.0}


def test_labels_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        clinical_efficacy(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="expected \\[reports, findings\\]"):
        clinical_efficacy(np.zeros(3), np.zeros(3))
