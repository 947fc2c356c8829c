"""Run the golden tests and print the largest deviation of each component from the record, as a Markdown table."""

import argparse
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

FORMATS = ("float32", "float64")


class Deviations:
    """A pytest plugin that records the largest deviation of every test function over its parameters."""

    def __init__(self):
        self.largest = defaultdict(dict)

    def pytest_runtest_logreport(self, report):
        deviations = [value for name, value in report.user_properties if name == "deviation"]
        if report.when != "call" or not deviations:
            return
        file, test = report.nodeid.split("::")
        row = self.largest[Path(file).stem.removeprefix("test_"), test.split("[")[0].removeprefix("test_").replace("_", " ")]
        dtype = dict(report.user_properties)["dtype"]
        row[dtype] = max(row.get(dtype, 0.0), *deviations)

    def table(self):
        """Lines of Markdown."""
        yield "| part | component | " + " | ".join(FORMATS) + " |"
        yield "|---" * (2 + len(FORMATS)) + "|"
        for (part, component), row in sorted(self.largest.items(), key=lambda item: item[0][0]):
            numbers = (f"{row[dtype]:.1e}" if dtype in row else "" for dtype in FORMATS)
            yield f"| {part} | {component} | {' | '.join(numbers)} |"


def main(arguments=None):
    """Exit status of pytest."""
    parser = argparse.ArgumentParser(description=f"{__doc__} About 3 minutes on two CPU cores and 5.4 GiB of memory.")
    parser.add_argument("--fast", action="store_true", help="float32 only: about a minute")
    options = parser.parse_args(arguments)
    deviations, begin = Deviations(), time.monotonic()
    selection = ["-m", "not slow"] if options.fast else []
    status = pytest.main([str(Path(__file__).parent), *selection], plugins=[deviations])
    print("\n".join(deviations.table()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{time.monotonic() - begin:.0f} s, peak memory {peak:.1f} GiB")
    return status


if __name__ == "__main__":
    sys.exit(main())
