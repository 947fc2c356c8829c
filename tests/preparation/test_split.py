"""The validation split: no patient moves from train to val when the download grows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.preparation.split import VAL_FRACTION, draw_val_patients

PATIENTS = [f"ct_rate/train_{number}" for number in range(1, 3001)]
EXAMPLES = settings(max_examples=200, deadline=None, derandomize=True)


@EXAMPLES
@given(
    arrivals=st.permutations(PATIENTS[:60]),
    cuts=st.lists(st.integers(2, 60), min_size=2),
    count=st.integers(1, 8),
    seed=st.integers(),
)
def test_no_patient_moves_from_train_to_val_when_patients_arrive(arrivals, cuts, count, seed):
    before = None
    for cut in sorted(cuts):
        here = arrivals[:cut]
        val, _ = draw_val_patients(here, count, seed)
        assert 1 <= len(val) <= count
        assert len(val) < len(here)
        if before is not None and len(before[1]) > len(before[0]) + 1:  # otherwise all patients but one were val
            assert not (before[1] - before[0]) & val
        before = val, set(here)


def test_val_does_not_depend_on_order_and_repetition_but_on_the_seed():
    val, _ = draw_val_patients(PATIENTS, 20, 3)
    assert draw_val_patients([*reversed(PATIENTS), *PATIENTS[:50]], 20, 3)[0] == val
    assert draw_val_patients(PATIENTS, 20, 4)[0] != val


def test_a_large_set_has_the_count_and_a_small_one_a_tenth():
    val, note = draw_val_patients(PATIENTS, 100, 0)
    assert (len(val), note) == (100, None)
    val, note = draw_val_patients(PATIENTS, 500, 0)
    assert len(val) == pytest.approx(VAL_FRACTION * len(PATIENTS), abs=60)
    assert note == f"val has {len(val)} of 3000 training patients instead of 500: at most about a tenth is used"
    assert draw_val_patients(PATIENTS, 0, 0) == (set(), "no patient was moved from train to val: val is empty")
    assert [len(draw_val_patients(PATIENTS[:many], 5, 0)[0]) for many in (0, 1, 2)] == [0, 0, 1]


def test_a_growing_download_keeps_its_val_until_the_count_is_reached():
    grown = [draw_val_patients(PATIENTS[:many], 200, 1)[0] for many in (500, 1000, 1500)]
    assert grown[0] < grown[1] < grown[2]
    full, _ = draw_val_patients(PATIENTS, 200, 1)
    assert len(full) == 200
    assert {patient for patient in full if patient in set(PATIENTS[:1500])} <= grown[2]
