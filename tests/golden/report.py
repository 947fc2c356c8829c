"""Runs the golden tests and prints, as a Markdown table, how far each component lies from the record."""

import argparse
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

FORMATS = ("float32", "float64")


class Deviations:
    """A pytest plugin that keeps the largest deviation of every test function, over its parameters."""

    def __init__(self):
        self.largest = defaultdict(dict)

    def pytest_runtest_logreport(self, report):
        kept = [value for name, value in report.user_properties if name == "deviation"]
        if report.when != "call" or not kept:
            return
        file, test = report.nodeid.split("::")
        row = self.largest[Path(file).stem.removeprefix("test_"), test.split("[")[0].removeprefix("test_").replace("_", " ")]
        number = dict(report.user_properties)["dtype"]
        row[number] = max(row.get(number, 0.0), *kept)

    def table(self):
        """Lines of Markdown."""
        yield "| part | component | " + " | ".join(FORMATS) + " |"
        yield "|---" * (2 + len(FORMATS)) + "|"
        for (part, component), row in sorted(self.largest.items(), key=lambda item: item[0][0]):
            numbers = (f"{row[number]:.1e}" if number in row else "" for number in FORMATS)
            yield f"| {part} | {component} | {' | '.join(numbers)} |"


def main(words=None):
    """Exit status of pytest; `words` in place of the command line's."""
    parser = argparse.ArgumentParser(description=f"{__doc__} About 3 minutes on two CPU cores and 5.4 GiB of memory.")
    parser.add_argument("--fast", action="store_true", help="float32 alone: about a minute")
    chosen = parser.parse_args(words)
    deviations, begin = Deviations(), time.monotonic()
    here = Path(__file__).parent
    arguments = [str(here), *(["-m", "not slow"] if chosen.fast else [])]
    status = pytest.main(arguments, plugins=[deviations])
    print("\n".join(deviations.table()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{time.monotonic() - begin:.0f} s, peak memory {peak:.1f} GiB")
    return status


if __name__ == "__main__":
    sys.exit(main())
