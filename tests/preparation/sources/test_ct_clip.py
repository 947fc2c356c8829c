"""CT-RATE volumes of which only CT-CLIP's preprocessed arrays are there."""

import numpy as np
import pytest
from small_raw import SHAPE, CtRateTree, chest

from mg3d.preparation.recipe import Recipe
from mg3d.preparation.sources.ct_rate import list_ct_rate
from mg3d.preparation.voxels import make_volume

HU = chest(7).clip(-1000, 1000)


@pytest.fixture
def tree(tmp_path):
    tree = CtRateTree(tmp_path / "ct_rate")
    tree.add("train_1_a_1")
    tree.add("train_2_b_3", file=False)
    tree.add("valid_1_a_1")
    tree.write()
    return tree


def put(base, inside):
    path = base / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, (HU.transpose(0, 2, 1) / 1000).astype(np.float32))


def scan(tree):
    return list_ct_rate(tree.root, val_patients=0, seed=0)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("name", ["train_2_b_3.npz", "train_2_b_3.nii.gz.npz"])
@pytest.mark.parametrize("folder", ["train_2b", "train_2_b"])
def test_both_spellings_of_folders_and_of_names_are_found(tree, folder, name, beside):
    put(tree.root if beside else tree.root / "dataset", f"train_preprocessed/train_2/{folder}/{name}")
    found = scan(tree)
    assert not found.refused
    record = next(record for record in found.records if record.volume_id == "ct_rate/train_2_b_3")
    assert (record.study_id, record.patient_id, record.reconstruction) == ("ct_rate/train_2_b", "ct_rate/train_2", 3)
    assert (record.reader, record.table) == ("ct_clip", None)
    assert record.source == f"train_preprocessed/train_2/{folder}/{name}"
    image, facts = make_volume(record, found.root, Recipe(shape=(32, 24, 16)))
    assert (facts["source_shape"], facts["hu_source"]) == (list(SHAPE), "ct_clip")
    assert any("1 volumes of train are CT-CLIP's arrays" in note for note in found.notes)
    tree.add("train_3_a_1", hu=HU)
    tree.write()
    found = scan(tree)
    whole = next(record for record in found.records if record.volume_id == "ct_rate/train_3_a_1")
    np.testing.assert_allclose(image, make_volume(whole, found.root, Recipe(shape=(32, 24, 16)))[0], atol=1)


def test_a_corrected_or_raw_volume_is_preferred_to_its_array(tree):
    put(tree.root / "dataset", "train_preprocessed/train_1/train_1a/train_1_a_1.npz")
    found = scan(tree)
    assert [record.reader for record in found.records if record.volume_id == "ct_rate/train_1_a_1"] == ["nifti"]
    assert not any("CT-CLIP" in note for note in found.notes)


def test_arrays_of_valid_are_test_and_those_in_the_wrong_tree_are_left_out(tree):
    put(tree.root / "dataset", "valid_preprocessed/valid_1/valid_1a/valid_1_a_1.npz")
    put(tree.root / "dataset", "valid_preprocessed/train_2/train_2b/train_2_b_3.npz")
    tree.path("valid_1_a_1", "valid_fixed").unlink()
    found = scan(tree)
    assert [(r.reader, r.split) for r in found.records if r.volume_id == "ct_rate/valid_1_a_1"] == [("ct_clip", "test")]
    assert any("1 files of valid have a name that CT-RATE does not use" in note for note in found.notes)
