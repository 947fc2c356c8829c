import numpy as np
import pytest
import torch

from mg3d.evaluation.reconstruction import BODY_ABOVE, ReconstructionError

SHAPE = (4, 2, 6)


def drawn(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_errors_over_batches_are_those_of_all_hidden_voxels_at_once():
    mean, error = drawn(1, *SHAPE, seed=0), ReconstructionError(drawn(1, *SHAPE, seed=0))
    prediction, target = drawn(5, 1, *SHAPE, seed=1), drawn(5, 1, *SHAPE, seed=2)
    hidden = drawn(5, 1, *SHAPE, seed=3) < 0.3
    for rows in (slice(0, 3), slice(3, 5)):
        error.update(prediction[rows], target[rows], hidden[rows])
    ours, rivals = {"hidden": [], "hidden_body": []}, {"hidden": [], "hidden_body": []}
    for place in np.ndindex(*target.shape):
        if not hidden[place]:
            continue
        names = ("hidden", "hidden_body") if target[place] > 0.25 else ("hidden",)
        for name in names:
            ours[name].append(float(prediction[place] - target[place]) ** 2)
            rivals[name].append(float(mean[place[1:]] - target[place]) ** 2)
    result = error.result()
    for name in ours:
        assert result[name] == pytest.approx(np.mean(ours[name]), rel=1e-5)
        assert result[f"{name}_mean_image"] == pytest.approx(np.mean(rivals[name]), rel=1e-5)
        assert result[f"{name}_ratio"] == pytest.approx(np.mean(ours[name]) / np.mean(rivals[name]), rel=1e-5)


def test_body_begins_at_minus_500_hu():
    assert BODY_ABOVE == (-500 - -1000) / (1000 - -1000)


def test_predicting_the_mean_image_is_as_good_as_the_mean_image():
    mean = drawn(1, *SHAPE, seed=0)
    error = ReconstructionError(mean)
    error.update(mean.expand(3, 1, *SHAPE), drawn(3, 1, *SHAPE, seed=1), torch.ones(3, 1, *SHAPE, dtype=torch.bool))
    assert error.result()["hidden_ratio"] == error.result()["hidden_body_ratio"] == 1.0


def test_nothing_hidden_is_no_perfect_score():
    error = ReconstructionError(torch.zeros(1, *SHAPE))
    error.update(drawn(2, 1, *SHAPE, seed=0), drawn(2, 1, *SHAPE, seed=1), torch.zeros(2, 1, *SHAPE, dtype=torch.bool))
    assert all(np.isnan(value) for value in error.result().values())
