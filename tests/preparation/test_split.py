"""Val is carved out of train so that nobody who was trained on is ever judged on, however the download grows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.preparation.split import VAL_FRACTION, draw_val_patients

PEOPLE = [f"ct_rate/train_{number}" for number in range(1, 3001)]
FEW = settings(max_examples=200, deadline=None, derandomize=True)


@FEW
@given(
    arrivals=st.permutations(PEOPLE[:60]),
    cuts=st.lists(st.integers(2, 60), min_size=2),
    count=st.integers(1, 8),
    seed=st.integers(),
)
def test_nobody_moves_from_train_to_val_when_patients_arrive(arrivals, cuts, count, seed):
    before = None
    for cut in sorted(cuts):
        here = arrivals[:cut]
        val, _ = draw_val_patients(here, count, seed)
        assert 1 <= len(val) <= count
        assert len(val) < len(here)
        if before is not None and len(before[1]) > len(before[0]) + 1:  # else all but one were val, for want of patients
            assert not (before[1] - before[0]) & val
        before = val, set(here)


def test_val_does_not_depend_on_order_and_repetition_but_on_the_seed():
    val, _ = draw_val_patients(PEOPLE, 20, 3)
    assert draw_val_patients([*reversed(PEOPLE), *PEOPLE[:50]], 20, 3)[0] == val
    assert draw_val_patients(PEOPLE, 20, 4)[0] != val


def test_a_large_set_has_the_count_and_a_small_one_a_tenth():
    val, note = draw_val_patients(PEOPLE, 100, 0)
    assert (len(val), note) == (100, None)
    val, note = draw_val_patients(PEOPLE, 500, 0)
    assert len(val) == pytest.approx(VAL_FRACTION * len(PEOPLE), abs=60)
    assert note == f"val has {len(val)} of 3000 training patients instead of 500: at most about a tenth is used"
    assert draw_val_patients(PEOPLE, 0, 0) == (set(), "no patient was moved from train to val: val is empty")
    assert [len(draw_val_patients(PEOPLE[:many], 5, 0)[0]) for many in (0, 1, 2)] == [0, 0, 1]


def test_a_growing_download_keeps_its_val_until_the_count_is_reached():
    grown = [draw_val_patients(PEOPLE[:many], 200, 1)[0] for many in (500, 1000, 1500)]
    assert grown[0] < grown[1] < grown[2]
    full, _ = draw_val_patients(PEOPLE, 200, 1)
    assert len(full) == 200
    assert {person for person in full if person in set(PEOPLE[:1500])} <= grown[2]
