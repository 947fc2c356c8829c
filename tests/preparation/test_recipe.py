"""Options of the preprocessing, and the provenance that is written to index files."""

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from small_raw import LPS, SPACING, CtRateTree, chest, source_options

from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import PrepareOptions, prepare
from mg3d.preparation.sources.ct_rate import list_ct_rate
from mg3d.preparation.voxels import make_volume

STORED = (32, 24, 16)
CHOICES = {
    "default": {},
    "shape": {"shape": (32, 64, 96)},
    "body": {"crop": "body"},
    "mm": {"crop": "mm", "crop_mm": (100.0, 60.0, 50.0)},
    "other mm": {"crop": "mm", "crop_mm": (100.0, 60.0, 51.0)},
    "trilinear": {"resize": "trilinear"},
    "uint8": {"dtype": "uint8"},
    "other window": {"dtype": "uint8", "uint8_window": (-1000.0, 200.0)},
}


@pytest.fixture
def volume(tree):
    """Prepares one volume [x, y, z] with a recipe."""

    def make(recipe, stored=None, affine=LPS):
        tree.add("valid_1_a_1")
        unsaid = {"Rows": "", "Columns": "", "NumberofSlices": ""}
        shown = chest(7).transpose(2, 1, 0) if stored is None else stored
        tree.add("train_1_a_1", stored=shown, affine=affine, row=unsaid)
        record = next(r for r in list_ct_rate(tree.write(), source_options()).records if r.split == "train")
        return make_volume(record, tree.root / "dataset", recipe)

    return make


def test_every_option_changes_the_hash():
    digests = {name: Recipe(**choice).digest("ct_rate") for name, choice in CHOICES.items()}
    assert len(set(digests.values())) == len(CHOICES)
    assert Recipe(uint8_window=(-900.0, 900.0)).digest("ct_rate") == digests["default"]
    assert Recipe(dtype="uint8").digest("ctrg") == Recipe().digest("ctrg")


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_a_recipe_is_restored_from_its_provenance(choice):
    recipe = Recipe(**choice)
    steps = json.loads(json.dumps(recipe.provenance("ct_rate")))
    assert Recipe.from_provenance(steps) == recipe
    assert Recipe.from_provenance(steps).provenance("custom") == recipe.provenance("ct_rate")


@pytest.mark.parametrize("step", ["crop", "resize"])
def test_unknown_steps_are_refused(step):
    with pytest.raises(ValueError, match="unknown crop or resize"):
        Recipe.from_provenance(Recipe().provenance("custom") | {step: {"kind": "by eye", "kernel": "by eye", "zyx": [1, 2, 3]}})
    with pytest.raises(ValueError, match="unknown crop or resize"):
        Recipe.from_provenance({})


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_all_48_orientations_give_the_same_voxels(volume, choice):
    recipe = Recipe(**{"shape": STORED, **choice})
    expected, facts = volume(recipe)
    whole = nib.Nifti1Image(chest(7).transpose(2, 1, 0), LPS)
    axes = [("R", "L"), ("A", "P"), ("S", "I")]
    codes = [code for order in itertools.permutations(axes) for code in itertools.product(*order)]
    assert len(set(codes)) == 48
    for code in codes if not choice else codes[5::11]:
        change = nib.orientations.ornt_transform(nib.io_orientation(LPS), nib.orientations.axcodes2ornt(code))
        turned = whole.as_reoriented(change)
        image, its_facts = volume(recipe, np.asarray(turned.dataobj), turned.affine)
        np.testing.assert_array_equal(image, expected)
        assert its_facts["spacing_mm"] == pytest.approx(facts["spacing_mm"])


def test_uint8_is_the_window_in_256_levels(volume):
    low, high = -1000.0, 200.0
    hu, _ = volume(Recipe(shape=STORED))
    stored, _ = volume(Recipe(shape=STORED, dtype="uint8", uint8_window=(low, high)))
    assert stored.dtype == np.uint8
    expected = (hu.clip(low, high) - low) / (high - low) * 255
    assert np.abs(stored - expected).max() <= 0.5 + 0.5 * 255 / (high - low) + 1e-3
    assert (stored.min(), stored.max()) == (0, 255)
    values = np.array([low, low + 1200 / 255 * 7.4, high])
    assert np.round((values - low) / (high - low) * 255).tolist() == [0, 7, 255]
    assert Recipe(dtype="uint8", uint8_window=(low, high)).intensity("ct_rate") == {
        "unit": "hu8", "dtype": "uint8", "clip": [-1024, 3071], "window": [low, high],
    }  # fmt: skip


def test_a_crop_in_mm_has_the_expected_spacing(volume):
    image, facts = volume(Recipe(shape=STORED, crop="mm", crop_mm=(320.0, 144.0, 96.0)))
    assert facts["spacing_mm"] == pytest.approx([10.0, 6.0, 6.0])
    assert (image[:3] == -1000).all()  # the volume is 130 mm long
    assert (image[-3:] == -1000).all()
    assert image.max() > 0


def test_a_body_crop_excludes_the_air_around_it(volume):
    wide = np.pad(chest(7), ((6, 6), (20, 20), (25, 25)), constant_values=-1000)
    whole, _ = volume(Recipe(shape=STORED, crop="fraction"), wide.transpose(2, 1, 0))
    body, facts = volume(Recipe(shape=STORED, crop="body"), wide.transpose(2, 1, 0))
    assert (body > -300).mean() > 2 * (whole > -300).mean()
    # At most the body and 10 mm on either side: 22 + 2 * 2 slices, 13 + 2 * 3 rows, 16 + 2 * 3 columns
    largest = np.array([26, 19, 22]) * SPACING / STORED
    assert (np.array(facts["spacing_mm"]) <= largest + 1e-6).all()


@pytest.mark.parametrize(
    "choice",
    [
        {"crop": "mm"},
        {"crop_mm": (100.0, 100.0, 100.0)},
        {"crop": "mm", "crop_mm": (100.0, 100.0, 5.0)},
        {"crop": "mm", "crop_mm": (100.0, float("nan"), 50.0)},
        {"uint8_window": (200.0, -1000.0)},
        {"uint8_window": (-2000.0, 200.0)},
    ],
)
def test_impossible_options_are_refused(choice):
    with pytest.raises(ValueError, match=r"crop|uint8_window"):
        Recipe(**choice)


def test_crops_in_mm_are_refused_for_volumes_without_hu(tmp_path):
    root = CtRateTree(tmp_path / "raw").root
    root.mkdir()
    with pytest.raises(ValueError, match=r"which CTRG-Chest-548K does not have"):
        prepare(PrepareOptions(out=tmp_path / "out", roots={"ctrg": root}, recipe=Recipe(crop="body")))
    assert not (tmp_path / "out").exists()
