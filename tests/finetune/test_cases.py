from collections import Counter
from pathlib import Path

import pytest

from mg3d.finetune.cases import Case, assign_folds, check_cases, divide, shared_patients


def cases(patients=10, scans=2, test=0, **named):
    made = [
        Case(case_id=f"c{p}-{s}", patient_id=f"p{p}", image=Path("x"), target=(p % 3,), **named)
        for p in range(patients)
        for s in range(scans)
    ]
    return made + [Case(case_id=f"t{p}", patient_id=f"q{p}", image=Path("x"), part="test") for p in range(test)]


def test_a_patient_is_in_one_fold_only():
    folds = {}
    for case in assign_folds(cases(), 3, seed=0):
        folds.setdefault(case.patient_id, set()).add(case.fold)
    assert {len(found) for found in folds.values()} == {1}
    assert {fold for found in folds.values() for fold in found} == {0, 1, 2}


def test_folds_are_equal_for_equal_seeds_whatever_the_order_of_the_cases():
    one = {case.case_id: case.fold for case in assign_folds(cases(), 3, seed=1)}
    other = {case.case_id: case.fold for case in assign_folds(cases()[::-1], 3, seed=1)}
    assert one == other
    assert one != {case.case_id: case.fold for case in assign_folds(cases(), 3, seed=2)}


def test_classes_are_spread_over_the_folds():
    made = assign_folds(cases(patients=30, scans=1), 5, seed=0)
    counts = Counter((case.fold, case.target) for case in made)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_folds_of_the_data_set_and_test_cases_are_left_alone():
    made = assign_folds(cases(fold=4, test=2), 3, seed=0)
    assert {case.fold for case in made if case.part == "train"} == {4}
    assert {case.fold for case in made if case.part == "test"} == {-1}


def test_parts_are_disjoint_and_complete():
    made = assign_folds(cases(test=3), 4, seed=0)
    parts = divide(made, fold=2, folds=4)
    assert len(parts.test) == 3
    assert sorted(c.case_id for part in parts for c in part) == sorted(c.case_id for c in made)
    assert {c.fold for c in parts.val} == {2}
    assert 2 not in {c.fold for c in parts.train}
    assert shared_patients(parts) == []


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_out_of_range_is_named(fold):
    with pytest.raises(ValueError, match=rf"fold={fold}: there are 5 folds, 0 to 4"):
        divide(cases(), fold=fold, folds=5)


def test_too_few_patients_for_the_folds_are_counted():
    with pytest.raises(ValueError, match="2 patients cannot be divided into 5 folds"):
        assign_folds(cases(patients=2), 5, seed=0)


def test_a_case_that_occurs_twice_is_named():
    with pytest.raises(ValueError, match=r"1 cases occur twice.*c0-0"):
        check_cases([*cases(1, 1), *cases(1, 1)], where=Path("root"))


def test_an_empty_root_is_told_with_a_hint():
    with pytest.raises(ValueError, match="one level too high or too low"):
        check_cases([], where=Path("root"))
