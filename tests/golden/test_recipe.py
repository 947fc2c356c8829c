import zlib

import numpy as np
import pytest
from golden import recipe
from golden.harness import recorded


@pytest.mark.parametrize("word", ["volume0", "patch_embed.proj.weight", "input.image"])
def test_the_noise_is_the_recorded_one(word):
    golden = recorded("noise.json")[word]
    assert recipe.noise(word, len(golden)).tolist() == golden


@pytest.mark.parametrize("name", recorded("vision_swinb.json")["weights"])
def test_weights_are_the_recorded_ones(name):
    golden = recorded("vision_swinb.json")["weights"][name]
    shapes = {
        "patch_embed.proj.weight": (48, 1, 2, 2, 2),
        "layers1.0.blocks.0.attn.relative_position_bias_table": (2197, 3),
        "layers4.0.downsample.reduction.weight": (768, 3072),
    }
    values = recipe.weight("vision_encoder." + name, shapes.get(name, (48,)))
    np.testing.assert_allclose(values.ravel()[: len(golden)], golden, rtol=1e-14)


def test_the_volume_is_the_recorded_one():
    golden, volume = recorded("vision_swinb.json")["input"], recipe.volume(0)
    np.testing.assert_allclose(volume.ravel()[:8], golden["first8"], rtol=1e-13)
    np.testing.assert_allclose(volume.ravel()[-8:], golden["last8"], rtol=1e-13)
    np.testing.assert_allclose([volume.mean(), volume.std()], [golden["mean"], golden["std"]], rtol=1e-12)


def test_half_of_the_voxels_are_hidden():
    hidden = recipe.hidden_voxels()
    assert hidden.shape == recipe.VOLUME_SHAPE
    assert hidden.mean() == 0.5


@pytest.mark.parametrize(
    ("name", "checksum"),
    [("ids", 67002619), ("sentence_index", 639771313), ("masked_ids", 3492440358), ("labels", 1246175587)],
)
def test_reports_are_the_recorded_ones(name, checksum):
    assert zlib.crc32(recipe.reports()[name].astype("<i8").tobytes()) == checksum


def test_words_are_asked_as_often_as_recorded():
    assert (recipe.reports()["labels"] >= 0).sum() == recorded("pretrain_step.json")["n_masked"]


def test_two_sentences_are_equal_and_a_third_differs_in_two_words():
    first, second, third = (np.array(recipe.sentence(recipe.REPORTS[b][s])) for b, s in ((0, 1), (1, 0), (2, 2)))
    assert (first == second).all()
    assert (first != third).sum() == 2
