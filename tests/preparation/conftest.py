import pytest
from small_raw import CtRateTree

from mg3d.preparation import shards
from mg3d.preparation.voxels import make_volume


@pytest.fixture
def tree(tmp_path):
    return CtRateTree(tmp_path / "ct_rate")


@pytest.fixture
def small_tree(tree):
    """Six patients of train (train_1 has two studies, one of them with two reconstructions), two of valid."""
    names = ["train_1_a_1", "train_1_a_2", "train_1_b_1", *(f"train_{k}_a_1" for k in range(2, 7)), "valid_1_a_1", "valid_2_a_1"]
    for name in names:
        tree.add(name)
    return tree


@pytest.fixture
def read(monkeypatch):
    """Ids of the volumes that were read from raw files."""
    ids = []

    def make(record, root, recipe):
        ids.append(record.volume_id)
        return make_volume(record, root, recipe)

    monkeypatch.setattr(shards, "make_volume", make)
    return ids
