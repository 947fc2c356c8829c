import pytest
import torch
from torch.nn import functional as F

from mg3d.models.pooling import PlacePool


def test_a_place_pool_is_a_sum_of_one_linear_map_for_every_place():
    torch.manual_seed(0)
    pool = PlacePool(8, 5).double()
    tokens = torch.rand(3, 5, 8, dtype=torch.float64)
    expected = pool.join.bias.repeat(3, 1)
    for patient in range(3):
        for place in range(5):
            reduced = pool.reduce.weight @ F.layer_norm(tokens[patient, place], (8,)) + pool.reduce.bias
            expected[patient] += pool.join.weight[:, 2 * place : 2 * place + 2] @ reduced
    torch.testing.assert_close(pool(tokens), expected)


def test_a_place_pool_tells_places_apart():
    torch.manual_seed(0)
    pool = PlacePool(8, 5)
    tokens = torch.rand(1, 5, 8)
    assert (pool(tokens) - pool(tokens.flip(1))).abs().max() > 1e-2


def test_a_place_pool_refuses_another_number_of_tokens():
    with pytest.raises(ValueError, match="built for 5 image tokens and got 6"):
        PlacePool(8, 5)(torch.zeros(1, 6, 8))
