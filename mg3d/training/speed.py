"""Log training speed: volumes per second, time spent waiting for data, model FLOPs utilisation, memory."""

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
"""Lightning's name of the wait for the next training batch."""
PEAK_SIDE = {"cuda": 8192, "cpu": 512}
"""Device -> side of the square matrices whose product gives the peak FLOP/s."""
PEAK_ROUNDS = 5


class DataWait(Profiler):
    """Profiler that only adds up the time in which training waits for its next batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self._start = 0.0, 0.0

    def start(self, action_name: str) -> None:
        """Called by Lightning before each of its actions."""
        if action_name.endswith(NEXT_BATCH):
            self._start = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Called by Lightning after each of its actions."""
        if action_name.endswith(NEXT_BATCH):
            self.seconds += time.perf_counter() - self._start

    def summary(self) -> str:
        """Empty; `Speed` logs the time."""
        return ""


class Speed(Callback):
    """Logs `speed/...` with every logged step, averaged over training since the previous one; validation is excluded.

    `volumes_per_second` over all ranks; `data_wait_fraction` of the first rank's time; `mfu`: required FLOP/s over the FLOP/s of
    large matrix products on this device in this precision, measured at the start; `memory_gb`: peak memory of the GPU since the
    start, on a CPU of the process. Never synchronises with the device.

    Args:
        wait: the trainer's profiler.
        volume_flops: FLOPs of a step per volume, see `models.flops`; None = no `mfu`.
    """

    def __init__(self, wait: DataWait, *, volume_flops: float | None = None) -> None:
        self.wait, self.volume_flops = wait, volume_flops
        self.peak: float | None = None
        self._restart()

    def _restart(self) -> None:
        self._start, self._waited, self._volumes = time.perf_counter(), self.wait.seconds, 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measures the peak FLOP/s."""
        if self.volume_flops is not None:
            self.peak = peak_flops(module.device, trainer.precision)
        self._restart()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Batch, index: int) -> None:
        """Counts the batch, and logs with every logged step."""
        self._volumes += len(batch.study_id)
        completes_step = (index + 1) % trainer.accumulate_grad_batches == 0
        if not completes_step or trainer.global_step % trainer.log_every_n_steps:
            return
        seconds = time.perf_counter() - self._start
        rate = self._volumes / seconds
        values = {
            "volumes_per_second": rate * world_size(),
            "data_wait_fraction": (self.wait.seconds - self._waited) / seconds,
            "memory_gb": peak_memory_bytes(module.device) / 1e9,
        }
        if self.peak:
            values["mfu"] = rate * self.volume_flops / self.peak
        module.log_dict({f"speed/{name}": value for name, value in values.items()}, rank_zero_only=True)
        self._restart()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Excludes the validation."""
        self._restart()


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product in this Lightning precision: the best of several rounds.

    The matrices are random: a GPU is faster on constant values than it ever is on real ones.
    """
    side = PEAK_SIDE.get(device.type, PEAK_SIDE["cpu"])
    dtype = {"bf": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(precision[:2], torch.float32)
    generator = torch.Generator(device).manual_seed(0)  # leaves the global generator unchanged
    matrix, seconds = torch.randn(side, side, device=device, dtype=dtype, generator=generator), []
    for _ in range(PEAK_ROUNDS):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
