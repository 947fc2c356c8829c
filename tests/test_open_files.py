"""What containers and shared machines limit."""

import resource
from pathlib import Path

import pytest
from small_arrow import write_split

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import index_path


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
