"""GradCache chunks against the whole batch."""

import pytest
import torch
from saved_tensors import saved_tensors
from small_model import WIRINGS, build, random_batch

from mg3d.training.chunks import features_in_chunks


def gradients(wiring, chunk, model=None):
    torch.manual_seed(1)  # of dropout
    model = model or build(wiring)
    value = sum(model.losses(features_in_chunks(model, random_batch(7), chunk)).values())
    value.backward()
    return value.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_chunks_have_the_losses_and_gradients_of_the_whole_batch(wiring, chunk):
    value, expected = gradients(wiring, 0)
    theirs, found = gradients(wiring, chunk)
    torch.testing.assert_close(theirs, value)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-11, msg=name)


def test_the_encoder_reads_each_chunk_twice_and_never_more_than_a_chunk():
    model, sizes = build(), []
    encode = model.vision.encode
    model.vision.encode = lambda volume, mask=None: sizes.append(len(volume)) or encode(volume, mask)
    gradients("paper", 3, model)
    assert max(sizes) == 3
    assert sizes.count(3) == 2 * sizes.count(1)  # 3 + 3 + 1 patients, each time clean and masked
    assert sizes.count(1) == 4


def test_graphs_of_chunks_are_not_saved():
    assert saved_values(1) < saved_values(0) / 20


def saved_values(chunk):
    """Values that CML saves for its gradient."""
    with saved_tensors() as saved:
        features_in_chunks(build(objectives=("cml",)), random_batch(7), chunk)
    return sum(tensor.numel() for tensor in saved)
