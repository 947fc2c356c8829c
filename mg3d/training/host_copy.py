"""Values of a device on the host, without waiting for the device."""

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor that is started here and read later, best after a step: then the device has finished it."""

    def __init__(self, tensor: Tensor) -> None:
        on_device = tensor.device.type != "cpu"
        self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_device)
        self._values.copy_(tensor, non_blocking=True)
        self._copied = torch.cuda.current_stream(tensor.device).record_event() if on_device else None

    def tolist(self) -> list[float]:
        """The values; waits if the copy is not finished."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
