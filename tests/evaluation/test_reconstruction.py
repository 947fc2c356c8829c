import numpy as np
import pytest
import torch

from mg3d.evaluation.reconstruction import BODY_ABOVE, masked_errors

SHAPE = (4, 2, 6)


def random_volume(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_errors_over_batches_equal_those_of_all_masked_voxels_at_once():
    mean = random_volume(1, *SHAPE, seed=0)
    prediction, target = random_volume(5, 1, *SHAPE, seed=1), random_volume(5, 1, *SHAPE, seed=2)
    masked = random_volume(5, 1, *SHAPE, seed=3) < 0.3
    batches = zip(*(part.split(3) for part in (prediction, target, masked)), strict=True)
    result = masked_errors(batches, mean)
    model_errors, baselines = {"masked": [], "masked_body": []}, {"masked": [], "masked_body": []}
    for voxel in np.ndindex(*target.shape):
        if not masked[voxel]:
            continue
        names = ("masked", "masked_body") if target[voxel] > 0.25 else ("masked",)
        for name in names:
            model_errors[name].append(float(prediction[voxel] - target[voxel]) ** 2)
            baselines[name].append(float(mean[voxel[1:]] - target[voxel]) ** 2)
    for name in model_errors:
        assert result[name] == pytest.approx(np.mean(model_errors[name]), rel=1e-5)
        assert result[f"{name}_mean_image"] == pytest.approx(np.mean(baselines[name]), rel=1e-5)
        assert result[f"{name}_ratio"] == pytest.approx(np.mean(model_errors[name]) / np.mean(baselines[name]), rel=1e-5)


def test_the_body_threshold_is_minus_500_hu():
    assert BODY_ABOVE == (-500 - -1000) / (1000 - -1000)


def test_without_masked_voxels_all_errors_are_nan():
    batch = (random_volume(2, 1, *SHAPE, seed=0), random_volume(2, 1, *SHAPE, seed=1), torch.zeros(2, 1, *SHAPE).bool())
    assert all(np.isnan(value) for value in masked_errors([batch], torch.zeros(1, *SHAPE)).values())
