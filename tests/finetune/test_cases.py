from collections import Counter
from pathlib import Path

import pytest

from mg3d.finetune.cases import FinetuneCase, assign_folds, draw_cases, require_cases, split_fold


def cases(patients=10, scans=2, test=0, **options):
    made = [
        FinetuneCase(case_id=f"c{p}-{s}", patient_id=f"p{p}", image=Path("x"), target=(p % 3,), **options)
        for p in range(patients)
        for s in range(scans)
    ]
    return made + [FinetuneCase(case_id=f"t{p}", patient_id=f"q{p}", image=Path("x"), split="test") for p in range(test)]


def test_folds_are_by_patient_and_independent_of_the_order_of_cases():
    first, second = assign_folds(cases(), 3, seed=1), assign_folds(cases()[::-1], 3, seed=1)
    folds = {}
    for case in first:
        folds.setdefault(case.patient_id, set()).add(case.fold)
    assert {len(result) for result in folds.values()} == {1}
    assert {fold for result in folds.values() for fold in result} == {0, 1, 2}
    assert {case.case_id: case.fold for case in first} == {case.case_id: case.fold for case in second}
    assert first != assign_folds(cases(), 3, seed=2)


def test_folds_are_stratified_by_class():
    made = assign_folds(cases(patients=30, scans=1), 5, seed=0)
    counts = Counter((case.fold, case.target) for case in made)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_official_folds_and_test_cases_are_unchanged():
    made = assign_folds(cases(fold=4, test=2), 3, seed=0)
    assert {case.fold for case in made if case.split == "train"} == {4}
    assert {case.fold for case in made if case.split == "test"} == {-1}


def test_splits_are_disjoint_and_complete():
    made = assign_folds(cases(test=3), 4, seed=0)
    split = split_fold(made, fold=2, folds=4)
    assert len(split.test) == 3
    assert sorted(c.case_id for part in split for c in part) == sorted(c.case_id for c in made)
    assert {c.fold for c in split.val} == {2}
    assert 2 not in {c.fold for c in split.train}


@pytest.mark.parametrize(
    ("count", "targets"), [(1, "a"), (2, "ab"), (3, "abc"), (5, "aaabc"), (0, "aaaaaaaabc"), (99, "aaaaaaaabc")]
)
def test_fewer_cases_have_every_target_if_possible(count, targets):
    listed = [
        FinetuneCase(case_id=str(i), patient_id="p", image=None, target=(target,)) for i, target in enumerate("aaaaaabcaa")
    ]
    drawn = draw_cases(listed, count)
    assert sorted(case.target[0] for case in drawn) == sorted(targets)
    assert [int(case.case_id) for case in drawn] == sorted(int(case.case_id) for case in drawn)


def test_a_patient_in_training_and_evaluation_is_refused():
    made = [*cases(2, 1, fold=0), *cases(2, 1, fold=1)]
    with pytest.raises(ValueError, match=r"2 patients are in training and evaluation, such as \['p0', 'p1'\]"):
        split_fold(made, fold=0, folds=2)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: split_fold(cases(), fold=5, folds=5), "fold=5: expected 0 to 4"),
        (lambda: assign_folds(cases(patients=2), 5, seed=0), "2 patients cannot be divided into 5 folds"),
        (lambda: require_cases([*cases(1, 1), *cases(1, 1)], where=Path("root")), "1 case names are not unique.*c0-0"),
        (lambda: require_cases([], where=Path("root")), "one level too high or too low"),
    ],
)
def test_unusable_cases_are_refused(work, message):
    with pytest.raises(ValueError, match=message):
        work()
