"""What containers and shared machines limit: user names, open files, shared memory."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from small_arrow import write_split

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import index_path


def test_the_package_imports_for_a_user_id_without_a_name():
    program = """
import pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
import mg3d
import getpass
print(getpass.getuser())
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"uid-{os.getuid()}"


@pytest.fixture
def few_files():
    """A soft limit that leaves room for some ten open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/dev/fd").iterdir()]) + 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_shards_than_open_files_are_allowed_are_read(tmp_path, few_files):
    for number in range(15):
        write_split(tmp_path / str(number), "ct_rate", "train", patients=1)
    indexes = [VolumeIndex(index_path(tmp_path / str(number), "ct_rate", "train")) for number in range(15)]
    assert len([index.volume(0) for index in indexes]) == 15
