import pytest
from released_files import pretraining_model


@pytest.fixture(scope="package")
def released_model():
    """The pre-training model of the released preset around a small BERT; tests load into it."""
    return pretraining_model("swin_b", "mg3d_released")
