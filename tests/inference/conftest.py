import pytest
import small_inference
from small_raw import chest

import mg3d


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """A small untrained model saved by mg3d."""
    return small_inference.save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="package")
def model(folder):
    return mg3d.load(folder, device="cpu", batch=2)


@pytest.fixture(scope="package")
def scans(model):
    return [model.read(chest(seed)) for seed in range(3)]
