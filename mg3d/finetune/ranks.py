"""Work that the first process does for all of them, also before there is a process group."""

import time
from collections.abc import Callable

from mg3d.training.run import is_first_rank

LONGEST_WAIT_S = 7200.0
LOOK_S = 0.5


def first_does(work: Callable[[], None], *, done: Callable[[], bool], what: str) -> None:
    """The first process does the work; the others wait until it is done.

    what: what it makes, for the sentence of those that waited in vain.

    Raises:
        ValueError: nothing was there after LONGEST_WAIT_S.
    """
    if is_first_rank():
        work()
        return
    end = time.monotonic() + LONGEST_WAIT_S
    while not done():
        if time.monotonic() > end:
            raise ValueError(
                f"{what} is not there after {LONGEST_WAIT_S / 60:.0f} minutes; the first process makes it on a disk that all "
                "of them must see: run the command once with one process, and then again"
            )
        time.sleep(LOOK_S)
