import pytest

from mg3d.phantom.downstream.registry import TINY, write_set


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """Name of a folder -> its synthetic set, small, made once per test run."""
    root = tmp_path_factory.mktemp("synthetic_finetune")

    def make(name, **options):
        cases, voxels = TINY
        return write_set(name, root / repr(sorted(options.items())).strip("[]").replace("/", "_"), cases=cases,
                         voxels_in_plane=voxels, **options)  # fmt: skip

    return make
