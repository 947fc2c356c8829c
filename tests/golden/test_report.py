import subprocess
import sys
from pathlib import Path


def test_help_tells_what_it_takes_and_runs_nothing():
    command = [sys.executable, str(Path(__file__).with_name("report.py")), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--fast" in done.stdout
    assert "5.4 GiB" in done.stdout
    assert "passed" not in done.stdout
