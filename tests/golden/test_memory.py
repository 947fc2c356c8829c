"""What the golden tests take of a machine."""

import subprocess
import sys
from pathlib import Path

import pytest

MOST_KIB = 8e9 / 1024
MEASURED = """
import resource
import torch
from golden.harness import Encoded
from golden.step import Step

encoded = Encoded(torch.float32)
steps = [Step(preset, encoded) for preset in ("mg3d_released", "mg3d_intended")]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_the_float32_run_needs_less_than_8_gb():
    """Six encoder passes and a step of each released preset, in a process of their own."""
    tests = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", MEASURED], cwd=tests, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 1e6 < int(done.stdout.split()[-1]) < MOST_KIB  # KiB; less than 1 GB would not have held the passes
