"""Fixtures of the golden tests. Encoder outputs are computed once per number format and shared by all of them."""

import pytest
import torch
from golden.harness import Comparison, Encoded


@pytest.fixture(scope="session", params=[torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)],
                ids=["float32", "float64"])  # fmt: skip
def dtype(request):
    return request.param


@pytest.fixture(scope="session")
def encoded(dtype):
    return Encoded(dtype)


@pytest.fixture
def compare(record_property):
    return Comparison(record_property)
