"""Disable network access in all tests. Set before any library reads these variables."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """Name of a folder of downstream/ -> a small synthetic set, made once per test run."""
    from mg3d.phantom.downstream.registry import TINY, write_set

    root = tmp_path_factory.mktemp("synthetic_finetune")

    def make(name, **options):
        cases, voxels = TINY
        parent = root / repr(sorted(options.items())).strip("[]").replace("/", "_")
        return write_set(name, parent, cases=cases, voxels_in_plane=voxels, **options)

    return make
