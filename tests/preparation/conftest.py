import pytest
from small_raw import CtRateTree


@pytest.fixture
def tree(tmp_path):
    return CtRateTree(tmp_path / "ct_rate")


@pytest.fixture
def small_tree(tree):
    """Six patients of train (train_1 twice scanned, with two reconstructions), two of valid."""
    for name in (
        "train_1_a_1",
        "train_1_a_2",
        "train_1_b_1",
        *(f"train_{k}_a_1" for k in range(2, 7)),
        "valid_1_a_1",
        "valid_2_a_1",
    ):
        tree.add(name)
    return tree
