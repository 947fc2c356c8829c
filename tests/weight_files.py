"""A small Swin encoder, and files of weights that load into it or are refused."""

import pytest
import torch

from mg3d.checkpoints.load import load_weights
from mg3d.models.vision.swin import SwinEncoder


def small_swin(**changes):
    sizes = {"embed_dim": 12, "window_size": 3, "depths": (2, 1), "num_heads": (2, 3)}
    return SwinEncoder(**(sizes | changes))


def saved(content, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def assert_refused(model, content, message, tmp_path, **options):
    """Loading raises ValueError, and the model keeps its weights."""
    path = saved(content, tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(model, path, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
