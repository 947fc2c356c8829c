"""How fast a run is, logged as it goes: volumes a second, time spent waiting for data, share of the device's ceiling, memory."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import Profiler

from mg3d.distributed import world_size
from mg3d.types import Batch

NEXT_BATCH = "train_dataloader_next"
"""How Lightning calls the wait for the next batch."""
CEILING_SIDE = {"cuda": 8192, "cpu": 512}
"""Device -> rows and columns of the matrices whose product shows the ceiling."""
CEILING_ROUNDS = 5


class DataWait(Profiler):
    """Adds up the time in which training waits for its next batch; looks at nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self._began = 0.0, 0.0

    def start(self, action_name: str) -> None:
        """Called by Lightning before each of its actions."""
        if action_name.endswith(NEXT_BATCH):
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Called by Lightning after each of its actions."""
        if action_name.endswith(NEXT_BATCH):
            self.seconds += time.perf_counter() - self._began

    def summary(self) -> str:
        """Nothing: the numbers are logged by `Speed`."""
        return ""


class Speed(Callback):
    """Logs `speed/...` with every logged step, over what was trained since the last one; validation does not count.

    `volumes_per_second` over all ranks; `data_wait_share` of the first rank's time; `mfu`, the needed FLOPs a second over what
    large matrix products reach on this device in this precision, measured once at the start; `memory_gb`, the most of the GPU's
    memory since the start, or on a CPU the most that the process held. Nothing here waits for the device.

    Args:
        wait: the profiler of the same trainer.
        volume_flops: needed for one volume's share of a step, see `models.flops`; None = no `mfu`.
    """

    def __init__(self, wait: DataWait, *, volume_flops: float | None = None) -> None:
        self.wait, self.volume_flops = wait, volume_flops
        self.ceiling: float | None = None
        self._restart()

    def _restart(self) -> None:
        self._began, self._waited, self._volumes = time.perf_counter(), self.wait.seconds, 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measures the ceiling."""
        if self.volume_flops is not None:
            self.ceiling = matrix_ceiling(module.device, trainer.precision)
        self._restart()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Batch, index: int) -> None:
        """Counts the batch, and logs where a step is logged."""
        self._volumes += len(batch.study_id)
        whole_step = (index + 1) % trainer.accumulate_grad_batches == 0
        if not whole_step or trainer.global_step % trainer.log_every_n_steps:
            return
        seconds = time.perf_counter() - self._began
        rate = self._volumes / seconds
        values = {
            "volumes_per_second": rate * world_size(),
            "data_wait_share": (self.wait.seconds - self._waited) / seconds,
            "memory_gb": memory_bytes(module.device) / 1e9,
        }
        if self.ceiling:
            values["mfu"] = rate * self.volume_flops / self.ceiling
        module.log_dict({f"speed/{name}": value for name, value in values.items()}, rank_zero_only=True)
        self._restart()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begins to count anew."""
        self._restart()


def matrix_ceiling(device: torch.device, precision: str) -> float:
    """FLOPs a second of a large product of random matrices in this precision of Lightning's: the best of some rounds.

    Random, because a GPU needs less power for equal numbers, and is faster than it ever is on real ones.
    """
    side = CEILING_SIDE.get(device.type, CEILING_SIDE["cpu"])
    kind = {"bf": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(precision[:2], torch.float32)
    generator = torch.Generator(device).manual_seed(0)  # its own: nothing that follows may depend on it
    matrix, seconds = torch.randn(side, side, device=device, dtype=kind, generator=generator), []
    for _ in range(CEILING_ROUNDS):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


def memory_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
