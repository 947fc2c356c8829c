"""What autograd saves for the backward pass."""

from contextlib import contextmanager

import torch


@contextmanager
def saved_tensors():
    """Yields a list that receives the tensors saved within the block, without parameters."""
    saved = []

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def storage_bytes(tensors):
    """Size of the distinct storages of these tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
