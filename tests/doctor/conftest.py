import shutil

import pytest
from planted_faults import FaultySet
from small_doctor import SETTINGS

from mg3d.phantom.generate import generate
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import PrepareOptions, prepare


@pytest.fixture(scope="session")
def clean_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    generate(root, SETTINGS, workers=1)
    return root


@pytest.fixture
def raw_set(clean_set, tmp_path):
    """A copy to plant faults into."""
    shutil.copytree(clean_set, tmp_path / "set")
    return FaultySet(tmp_path / "set", SETTINGS)


@pytest.fixture(scope="session")
def clean_arrows(clean_set, tmp_path_factory):
    out = tmp_path_factory.mktemp("arrows")
    (out / "phantom.json").write_text("{}")
    roots = {"ct_rate": clean_set / "ct_rate", "ctrg": clean_set / "ctrg"}
    prepare(PrepareOptions(out=out, roots=roots, recipe=Recipe(shape=(32, 24, 32))))
    return out
