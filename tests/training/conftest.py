import numpy as np
import pytest
from small_arrow import write_split
from small_run import write_arrows


@pytest.fixture
def bright_and_dark(tmp_path):
    """Arrow files whose even patients are bright and whose odd ones are dark; every label follows the patient's number."""

    def voxels(number, shape):
        return np.full(shape, 300 if number % 2 else -700, np.int16)

    for split, patients in (("train", 24), ("val", 10)):
        write_split(tmp_path, "ct_rate", split, patients=patients, shape=(32, 24, 32), voxels=voxels)
    return tmp_path


@pytest.fixture(scope="session")
def arrows(tmp_path_factory):
    """Two tiny data sets."""
    return write_arrows(tmp_path_factory.mktemp("arrows"))
