"""Two ways of doing one thing, timed in turn."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Comparison(NamedTuple):
    """Ours beside another way."""

    name: str
    ours: str
    """What was timed."""
    theirs: str
    our_seconds: float
    """Median of the rounds."""
    their_seconds: float
    goal: float | None = None
    """The ratio that ours should reach."""
    note: str = ""
    """What else was seen: the outputs' largest difference, memory."""

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.their_seconds / self.our_seconds


def compare(
    name: str, ours: tuple[str, Callable[[], object]], theirs: tuple[str, Callable[[], object]], *, rounds: int,
    goal: float | None = None, note: str = "",
) -> Comparison:  # fmt: skip
    """Times both in turn, `rounds` times each after one that does not count, so that a slow spell of the machine hits both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        for kept, (_, work) in zip(seconds, (ours, theirs), strict=True):
            began = time.perf_counter()
            work()
            kept += [time.perf_counter() - began] if round_ else []
    return Comparison(name, ours[0], theirs[0], *(statistics.median(kept) for kept in seconds), goal=goal, note=note)
