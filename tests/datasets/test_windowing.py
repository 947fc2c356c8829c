import numpy as np
import pyarrow as pa
import pytest
import torch
from small_arrow import SHAPE, write_split
from torch.utils.data import DataLoader

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import (
    apply_window,
    convert_volumes,
    move_to_device,
    sample_intensities,
    stack_volumes,
    to_intensities,
    window_bounds,
)
from mg3d.types import Batch, StoredVolumes


def window_and_clip(voxels, low, high):
    """The plain formula, operation by operation, in float32."""
    scaled = voxels.astype(np.float32)
    scaled -= low
    scaled /= high - low
    return np.clip(scaled, 0.0, 1.0)


def bits(values):
    return np.ascontiguousarray(values).view(np.int32)


@pytest.mark.parametrize("window", [(-1000.0, 1000.0), (-1350.0, 150.0), (-160.5, 240.25), (-1024.0, 3071.0)])
def test_windowing_is_bit_identical_to_the_plain_formula(window):
    voxels = np.arange(-2048, 4096, dtype=np.int16).reshape(1, 1, 16, 24, 16)
    ours = apply_window(torch.from_numpy(voxels), torch.tensor([window]))
    assert ours.dtype == torch.float32
    assert (bits(ours.numpy()) == bits(window_and_clip(voxels, *window))).all()


def test_8_bit_volumes_of_an_unknown_window_are_divided_by_255():
    voxels = np.arange(256, dtype=np.uint8).reshape(1, 1, 4, 8, 8)
    ours = apply_window(torch.from_numpy(voxels), torch.tensor([window_bounds("uint8_unknown_window", (-3.0, 5.0))]))
    assert (bits(ours.numpy()) == bits(voxels.astype(np.float32) / 255.0)).all()


def test_the_ends_of_the_window_become_zero_and_one():
    voxels = torch.tensor([-2000, -1000, 0, 500, 1000, 3000], dtype=torch.int16).view(1, 1, 1, 2, 3)
    scaled = apply_window(voxels, torch.tensor([window_bounds("hu", (-1000, 1000))]))
    assert scaled.flatten().tolist() == [0, 0, 0.5, 0.75, 1, 1]
    with pytest.raises(ValueError, match="'mm'"):
        window_bounds("mm", (0, 1))


def test_8_bit_volumes_of_a_known_window_are_read_as_hounsfield_units():
    assert window_bounds("hu8", (-1000.0, 1000.0), (-1000.0, 1000.0)) == (0.0, 255.0)
    assert window_bounds("hu8", (-745.0, 275.0), (-1000.0, 1040.0)) == (31.875, 159.375)
    hu = np.linspace(-1000, 1040, 256)
    window = torch.tensor([window_bounds("hu8", (-500.0, 500.0), (-1000.0, 1040.0))])
    ours = apply_window(torch.arange(256, dtype=torch.uint8).view(1, 1, 4, 8, 8), window)
    np.testing.assert_allclose(ours.flatten(), np.clip((hu + 500) / 1000, 0, 1), atol=1e-6)
    with pytest.raises(ValueError, match=r"intensity\.window"):
        window_bounds("hu8", (-1000.0, 1000.0))


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """Intensity unit -> studies of noise."""
    root, studies = tmp_path_factory.mktemp("units"), {}
    rows = (("hu", -1024, 3071, None), ("uint8_unknown_window", 0, 255, None), ("hu8", 0, 255, [-1100.0, 940.0]))
    for unit, low, high, window in rows:
        rng = np.random.default_rng(len(studies))

        def noise(number, shape, low=low, high=high, unit=unit, rng=rng):
            return rng.integers(low, high + 1, shape).astype(np.int16 if unit == "hu" else np.uint8)

        path = write_split(root / unit, "ct_rate", "train", patients=3, unit=unit, voxels=noise, window=window)
        studies[unit] = Studies(VolumeIndex(path), text_unit="clause", window_hu=(-1000.0, 800.0))
    return studies


def test_a_batch_of_mixed_units_applies_each_volumes_own_window(units):
    samples = [units[unit].sample(study) for study, unit in enumerate(("uint8_unknown_window", "hu", "hu8"))]
    stored = stack_volumes(samples)
    assert stored.voxels.dtype == torch.int16
    assert stored.voxels.shape == (3, 1, *SHAPE)
    together = to_intensities(stored).numpy()
    for row, sample in enumerate(samples):
        assert (bits(together[row]) == bits(sample_intensities(sample))).all()
    assert (bits(together[1]) == bits(window_and_clip(samples[1].volume, -1000.0, 800.0))).all()
    hu = samples[2].volume / 255 * 2040 - 1100
    np.testing.assert_allclose(together[2], np.clip((hu + 1000) / 1800, 0, 1), atol=1e-6)


def test_a_batch_of_8_bit_volumes_stays_8_bit(units):
    samples = [units["uint8_unknown_window"].sample(0), units["hu8"].sample(1)]
    assert stack_volumes(samples).voxels.dtype == torch.uint8


def test_a_sample_is_a_read_only_view_of_the_mapped_file(units):
    volume = units["hu"].sample(1).volume
    assert volume.dtype == np.int16
    assert volume.shape == (1, *SHAPE)
    assert not volume.flags.owndata
    assert not volume.flags.writeable
    before = pa.total_allocated_bytes()
    volumes = [units["hu"].sample(study).volume for study in range(3)]
    assert pa.total_allocated_bytes() - before < volumes[0].nbytes


def test_a_loader_worker_returns_the_same_batch_in_shared_memory(units):
    samples = [units[unit].sample(study) for study in range(2) for unit in ("uint8_unknown_window", "hu")]
    (loaded,) = DataLoader(samples, batch_size=4, collate_fn=stack_volumes, num_workers=1)
    assert loaded.voxels.is_shared()
    assert torch.equal(loaded.voxels, stack_volumes(samples).voxels)
    assert torch.equal(loaded.window, stack_volumes(samples).window)


def test_conversion_changes_only_the_volume_and_is_idempotent(units):
    stored = stack_volumes([units["hu"].sample(0)])
    others = dict.fromkeys(set(Batch._fields) - set(Batch._field_defaults) - {"volume", "study_id"}, torch.zeros(1))
    moved = move_to_device(Batch(volume=stored, study_id=["one"], **others), torch.device("cpu"))
    assert isinstance(moved.volume, StoredVolumes)
    batch = convert_volumes(moved, dtype=torch.float64)
    assert batch.volume.dtype == torch.float64
    assert torch.equal(batch.volume.float(), to_intensities(stored))
    assert convert_volumes(batch) is batch
    assert batch.study_id == ["one"]
