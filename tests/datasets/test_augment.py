import numpy as np
import pytest
import torch
from small_arrow import COLLATOR, SHAPE, small_tokenizer, write_split

from mg3d.datasets import augment
from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.collate import Collator
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import to_intensities
from mg3d.settings.schema import AugmentSettings

WINDOW = (-1000.0, 1000.0)
ALL = AugmentSettings(
    augment_crop=(0.6, 0.9), augment_rotation_deg=20.0, augment_shift=0.1, augment_width=0.2, augment_noise=0.05
)


def random_voxels(seed=0, shape=SHAPE, count=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1000, 1000, (count, 1, *shape), generator=generator).to(torch.int16)


def draws(settings, count=200, shape=SHAPE):
    return [augment.draw_params(settings, shape, WINDOW, np.random.default_rng([7, seed])) for seed in range(count)]


def affine(linear, shift=(0.0, 0.0, 0.0)):
    return torch.tensor(np.concatenate([linear, np.array(shift)[:, None]], 1)[None], dtype=torch.float32)


def test_disabled_augmentation_draws_the_identity():
    for params in draws(AugmentSettings(), 20):
        assert (params.affine == np.eye(3, 4)).all()
        assert params.window == WINDOW
        assert params.noise_std == 0
    assert not augment.is_enabled(AugmentSettings())
    assert augment.is_enabled(ALL)


def test_the_identity_is_bit_exact_in_a_batch_with_other_transforms():
    voxels = random_voxels(count=2)
    moved = augment.resample(voxels, torch.cat([affine(np.eye(3)), affine(0.5 * np.eye(3))]))
    assert torch.equal(moved[0], voxels[0].float())
    assert not torch.equal(moved[1], voxels[1].float())


def test_a_crop_of_half_the_side_is_the_enlarged_center():
    depth, height, width = SHAPE
    z, y, x = np.meshgrid(*(np.arange(side) for side in SHAPE), indexing="ij")
    ramp = torch.from_numpy(100.0 * z + 10.0 * y + x)[None, None]
    seen = augment.resample(ramp, affine(0.5 * np.eye(3)))[0, 0].numpy()
    where = [side / 4 + (np.arange(side) + 0.5) / 2 - 0.5 for side in (depth, height, width)]
    expected = 100 * where[0][:, None, None] + 10 * where[1][:, None] + where[2]
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


def test_crops_stay_inside_the_volume_and_reach_every_side():
    boxes = np.array([params.affine for params in draws(AugmentSettings(augment_crop=(0.5, 0.8)))])
    side, middle = boxes[:, [0, 1, 2], [0, 1, 2]], boxes[:, :, 3]
    assert np.allclose(side, side[:, :1])
    assert 0.5 <= side.min() < 0.52
    assert 0.78 < side.max() <= 0.8
    assert np.abs(middle).max(1).shape == (200,)
    assert (np.abs(middle) <= 1 - side + 1e-6).all()
    assert (np.abs(middle / (1 - side)).max(0) > 0.95).all()


def test_a_rotation_by_90_degrees_rotates_each_axial_slice():
    shape = (3, 8, 8)
    voxels = random_voxels(1, shape)
    linear = augment.linear_map(shape, 1.0, np.pi / 2, 1.0)
    rotated = augment.resample(voxels, affine(linear))[0, 0]
    quarter_turns = [torch.rot90(voxels[0, 0].float(), k, (1, 2)) for k in (1, 3)]
    assert min(float((rotated - turn).abs().max()) for turn in quarter_turns) < 1e-2


def test_a_rotation_preserves_lengths_in_a_non_square_plane():
    linear = augment.linear_map((5, 12, 24), 1.0, 0.3, 1.0)
    pixels = np.diag([24 / 2, 12 / 2, 5 / 2])
    moved = pixels @ linear @ np.linalg.inv(pixels)
    np.testing.assert_allclose(moved @ moved.T, np.eye(3), atol=1e-12)


def test_a_flip_exchanges_only_left_and_right():
    voxels = random_voxels(2)
    flipped = augment.resample(voxels, affine(augment.linear_map(SHAPE, 1.0, 0.0, -1.0)))
    np.testing.assert_allclose(flipped, voxels.float().flip(-1), atol=1e-2)
    signs = {float(np.sign(params.affine[0, 0])) for params in draws(AugmentSettings(augment_flip=True), 30)}
    assert signs == {-1.0, 1.0}
    assert all(np.linalg.det(params.affine[:, :3]) > 0 for params in draws(ALL))


def test_windows_are_jittered_within_their_limits():
    windows = np.array([params.window for params in draws(AugmentSettings(augment_shift=0.1, augment_width=0.25))])
    width, middle = windows[:, 1] - windows[:, 0], windows.mean(1)
    assert 1500 <= width.min() < 1550
    assert 2450 < width.max() <= 2500
    assert -200 <= middle.min() < -180
    assert 180 < middle.max() <= 200


def test_noise_has_its_standard_deviation_and_depends_on_its_seed():
    grey = torch.full((2, 1, 24, 20, 16), 0.5)
    deviation = torch.tensor([0.05, 0.1])
    noisy = augment.add_noise(grey.clone(), deviation, [3, 4])
    assert [round(float(volume.std()), 3) for volume in noisy] == pytest.approx([0.05, 0.1], rel=0.05)
    swapped = augment.add_noise(grey.clone(), deviation.flip(0), [4, 3])
    assert torch.equal(swapped.flip(0), noisy)
    bright = augment.add_noise(torch.ones_like(grey), deviation, [3, 4])
    assert 0.5 < float(bright.min()) < 1
    assert float(bright.max()) == 1


def test_settings_do_not_affect_each_others_draws():
    crop = {"augment_crop": (0.5, 0.8)}
    for first, second in zip(draws(AugmentSettings(**crop)), draws(AugmentSettings(**crop, augment_noise=1)), strict=True):
        assert (first.affine == second.affine).all()
        assert first.noise_seed == second.noise_seed


@pytest.fixture(scope="module")
def collators(tmp_path_factory):
    tokenizer = small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "words")
    return {name: Collator(tokenizer, augmentation=value, **COLLATOR) for name, value in (("plain", None), ("augmented", ALL))}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    def noise(number, shape):
        return np.random.default_rng(number).integers(-1000, 1000, shape).astype(np.int16)

    path = write_split(tmp_path_factory.mktemp("arrow"), "ct_rate", "train", patients=6, voxels=noise)
    return Studies(VolumeIndex(path), text_unit="clause", window_hu=WINDOW)


def test_a_transform_depends_on_the_sample_and_epoch_not_on_the_batch(studies, collators):
    together = to_intensities(collators["augmented"]([studies.sample(study, (5, 1, study)) for study in (4, 2, 3)]).volume)
    alone = to_intensities(collators["augmented"]([studies.sample(2, (5, 1, 2))]).volume)
    assert torch.equal(together[1], alone[0])
    later = to_intensities(collators["augmented"]([studies.sample(2, (5, 2, 2))]).volume)
    assert not torch.equal(later, alone)


def test_text_and_patch_masks_do_not_depend_on_augmentation(studies, collators):
    samples = [studies.sample(study, (5, 1, study)) for study in (4, 2, 3)]
    plain, augmented = (collators[name](samples) for name in ("plain", "augmented"))
    drawn = [name for name in plain._fields if torch.is_tensor(getattr(plain, name))]
    assert len(drawn) > 10
    for name in drawn:
        assert torch.equal(getattr(plain, name), getattr(augmented, name)), name
    assert torch.equal(plain.volume.voxels, augmented.volume.voxels)
    assert plain.volume.affine.shape == (3, 0, 4)
    assert augmented.volume.affine.shape == (3, 3, 4)
    assert len(augmented.volume.noise_seed) == 3
