"""The validation split: which training patients are held out as val."""

import hashlib
from collections.abc import Sequence

VAL_FRACTION = 0.1
"""At most this fraction of the training patients becomes val."""


def draw_val_patients(patients: Sequence[str], count: int, seed: int) -> tuple[set[str], str | None]:
    """Patients of train that become val, and a note if fewer than `count` were drawn.

    Each patient is hashed with `seed` to a number in [0, 1). Val are the `count` lowest of those below `VAL_FRACTION` (the single
    lowest if none is below), and never all patients. So no patient moves from train to val when more patients are added, and a
    model trained earlier can be evaluated on val; a val patient may move to train once more than `count` are below the limit.

    Args:
        patients: training patients, in any order.
        count: number of val patients. Small data sets get fewer, about a tenth.
        seed: of the hash.
    """
    if count == 0:
        return set(), "no patient was moved from train to val: val is empty"
    draws = sorted((_hash_fraction(patient, seed), patient) for patient in set(patients))
    below = sum(draw < VAL_FRACTION for draw, _ in draws)
    allowed = min(count, max(1, below), max(len(draws) - 1, 0))
    note = f"val has {allowed} of {len(draws)} training patients instead of {count}: at most about a tenth is used"
    return {patient for _, patient in draws[:allowed]}, note if allowed != count else None


def _hash_fraction(patient: str, seed: int) -> float:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{patient}".encode(), digest_size=6).digest(), "big") / 256**6
