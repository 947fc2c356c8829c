import pytest
import torch

from mg3d.models.standardise import MIN_DEVIATION, VoxelStandardiser

SHAPE = (4, 3, 5)


def test_it_changes_nothing_until_it_is_fitted():
    volume = torch.rand(2, 1, *SHAPE)
    assert torch.equal(VoxelStandardiser(SHAPE)(volume), volume)


def test_fitted_volumes_have_no_mean_and_unit_deviation_at_every_voxel():
    volumes = torch.rand(50, 1, *SHAPE)
    standardise = VoxelStandardiser(SHAPE)
    standardise.fit(iter(volumes))
    seen = standardise(volumes)
    torch.testing.assert_close(seen.mean(0), torch.zeros(1, *SHAPE), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(1, *SHAPE), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardise.restore(seen), volumes)


def test_quiet_voxels_are_not_blown_up():
    standardise = VoxelStandardiser(SHAPE)
    standardise.fit(torch.full((3, 1, *SHAPE), 0.25))
    seen = standardise(torch.full((1, 1, *SHAPE), 0.30))
    torch.testing.assert_close(seen, torch.full((1, 1, *SHAPE), 0.05 / MIN_DEVIATION))


def test_statistics_are_part_of_the_weights():
    first, second = VoxelStandardiser(SHAPE), VoxelStandardiser(SHAPE)
    first.fit(torch.rand(4, 1, *SHAPE))
    second.load_state_dict(first.state_dict())
    volume = torch.rand(2, 1, *SHAPE)
    assert torch.equal(first(volume), second(volume))
    assert not list(first.parameters())


def test_other_sizes_and_empty_sets_are_refused():
    with pytest.raises(ValueError, match="Prepare volumes of that size"):
        VoxelStandardiser(SHAPE)(torch.zeros(1, 1, 4, 3, 6))
    with pytest.raises(ValueError, match="needs training volumes"):
        VoxelStandardiser(SHAPE).fit([])
