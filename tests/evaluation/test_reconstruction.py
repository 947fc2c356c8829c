import numpy as np
import pytest
import torch

from mg3d.evaluation.reconstruction import BODY_ABOVE, ReconstructionError

SHAPE = (4, 2, 6)


def random_volume(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_errors_over_batches_equal_those_of_all_masked_voxels_at_once():
    mean, error = random_volume(1, *SHAPE, seed=0), ReconstructionError(random_volume(1, *SHAPE, seed=0))
    prediction, target = random_volume(5, 1, *SHAPE, seed=1), random_volume(5, 1, *SHAPE, seed=2)
    masked = random_volume(5, 1, *SHAPE, seed=3) < 0.3
    for rows in (slice(0, 3), slice(3, 5)):
        error.update(prediction[rows], target[rows], masked[rows])
    model_errors, baselines = {"masked": [], "masked_body": []}, {"masked": [], "masked_body": []}
    for voxel in np.ndindex(*target.shape):
        if not masked[voxel]:
            continue
        names = ("masked", "masked_body") if target[voxel] > 0.25 else ("masked",)
        for name in names:
            model_errors[name].append(float(prediction[voxel] - target[voxel]) ** 2)
            baselines[name].append(float(mean[voxel[1:]] - target[voxel]) ** 2)
    result = error.result()
    for name in model_errors:
        assert result[name] == pytest.approx(np.mean(model_errors[name]), rel=1e-5)
        assert result[f"{name}_mean_image"] == pytest.approx(np.mean(baselines[name]), rel=1e-5)
        assert result[f"{name}_ratio"] == pytest.approx(np.mean(model_errors[name]) / np.mean(baselines[name]), rel=1e-5)


def test_the_body_threshold_is_minus_500_hu():
    assert BODY_ABOVE == (-500 - -1000) / (1000 - -1000)


def test_without_masked_voxels_all_errors_are_nan():
    error = ReconstructionError(torch.zeros(1, *SHAPE))
    prediction, target = random_volume(2, 1, *SHAPE, seed=0), random_volume(2, 1, *SHAPE, seed=1)
    error.update(prediction, target, torch.zeros(2, 1, *SHAPE, dtype=torch.bool))
    assert all(np.isnan(value) for value in error.result().values())
