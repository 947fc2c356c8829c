"""Roofline prediction: an operator takes as long as its FLOPs or its memory traffic need, whichever is longer."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mg3d.benchmarks.timing import median_seconds
from mg3d.models.flops import Part
from mg3d.models.vision.windows import window_attention, window_attention_backward
from mg3d.training.speed import peak_flops

PRODUCT_EFFICIENCY, ATTENTION_EFFICIENCY, TRAFFIC_EFFICIENCY = 0.7, 0.35, 0.8
"""Assumed fractions of published peaks that large products, attention with narrow heads, and streaming kernels reach."""
LAUNCH_S = 6e-6
"""Assumed time in which the CPU launches one operator on a GPU, without torch.compile."""
ADAM_BYTES = 28
"""Traffic per parameter of AdamW in float32: weight, gradient and two moments are read, all but the gradient written."""
WINDOW, ATTENTION_HEADS, HEAD_CHANNELS = 7, 6, 16
"""Of the attention that `measure_chip` times: as in the second stage of Swin-B."""
LARGE = 16 << 20
"""Values of a tensor that does not fit into a cache."""


class Chip(NamedTuple):
    """Speed of a device: published (`CHIPS`) or measured (`measure_chip`)."""

    name: str
    half_flops: float
    """Dense bfloat16 FLOP/s."""
    float32_flops: float
    """Dense float32 FLOP/s, on a GPU with TF32."""
    bytes_per_s: float
    """Memory bandwidth."""
    memory_gb: float
    product_efficiency: float = PRODUCT_EFFICIENCY
    """Fraction of the peak that products reach; the next two likewise."""
    attention_efficiency: float = ATTENTION_EFFICIENCY
    traffic_efficiency: float = TRAFFIC_EFFICIENCY
    launch_s: float = LAUNCH_S
    """CPU time per operator, which passes while the device computes; 0 on a CPU."""

    def peak(self, *, is_half: bool) -> float:
        """FLOP/s in this precision."""
        return self.half_flops if is_half else self.float32_flops


CHIPS = {
    "a100": Chip("NVIDIA A100 SXM 80 GB", 312e12, 156e12, 2039e9, 80),
    "h100": Chip("NVIDIA H100 SXM", 989e12, 494e12, 3350e9, 80),
    "h200": Chip("NVIDIA H200 SXM", 989e12, 494e12, 4800e9, 141),
    "b200": Chip("NVIDIA B200 (HGX)", 2250e12, 1100e12, 7700e9, 180),
    "l40s": Chip("NVIDIA L40S", 362e12, 183e12, 864e9, 48),
    "rtx4090": Chip("NVIDIA GeForce RTX 4090", 165e12, 82.6e12, 1008e9, 24),
    "rtx5090": Chip("NVIDIA GeForce RTX 5090", 209e12, 105e12, 1792e9, 32),
}
"""Sources: NVIDIA's data sheets of A100, H100, H200, L40S and HGX B200 (values without sparsity), and the white papers of the Ada
and Blackwell GPU architectures (products accumulated in float32)."""


class PartTime(NamedTuple):
    """Predicted time of a part of an optimizer step on one device."""

    name: str
    seconds: float
    bound: str
    """What limits it: `products`, `attention`, `memory` or `launches`."""
    bytes: float
    """Memory traffic."""


def predict_part(part: Part, chip: Chip, *, is_half: bool, volumes: int, launches: int) -> PartTime:
    """Forward and backward passes of `volumes` volumes, computed in `launches` micro-batches or chunks.

    A lower bound of what eager PyTorch needs: no operator overlaps with another, and each reaches the chip's efficiency.
    """
    size, times = 0.5 if is_half else 1.0, dict.fromkeys(("products", "attention", "memory"), 0.0)
    operations = [*part.forward, *part.backward]
    for operation in operations:
        kind = "attention" if "attention" in operation.name else "products"
        efficiency = chip.attention_efficiency if kind == "attention" else chip.product_efficiency
        compute_s = operation.flops / (efficiency * chip.peak(is_half=is_half))
        traffic_s = size * operation.bytes / (chip.traffic_efficiency * chip.bytes_per_s)
        times[kind if compute_s > traffic_s else "memory"] += part.passes * volumes * max(compute_s, traffic_s)
    launch_s = part.passes * launches * len(operations) * chip.launch_s
    bound = "launches" if launch_s > sum(times.values()) else max(times, key=times.__getitem__)
    traffic = part.passes * volumes * size * sum(operation.bytes for operation in operations)
    return PartTime(part.name, max(launch_s, sum(times.values())), bound, traffic)


def predict_optimizer(parameters: int, chip: Chip) -> PartTime:
    """AdamW over this number of parameters."""
    traffic = float(parameters * ADAM_BYTES)
    return PartTime("optimizer", traffic / (chip.traffic_efficiency * chip.bytes_per_s), "memory", traffic)


def measure_chip(device: torch.device, memory_gb: float, *, is_half: bool) -> Chip:
    """Speed of this device in a large product, in window attention with its backward pass, and in adding two large tensors."""
    precision = torch.bfloat16 if is_half else torch.float32

    def seconds(work: Callable[[], object]) -> float:
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        return median_seconds(work, synchronize=wait, min_total_s=0.5)

    def random(*shape: int) -> Tensor:
        return 0.05 * torch.randn(shape, device=device, dtype=precision)

    product = peak_flops(device, "bf16-mixed" if is_half else "32-true")
    heads, tokens, channels = ATTENTION_HEADS, WINDOW**3, ATTENTION_HEADS * HEAD_CHANNELS
    features = random(1, *[2 * WINDOW] * 3, channels)
    parameters = [random(*shape) for shape in ((channels,), (channels,), (3 * channels, channels), (3 * channels,))]
    parameters.append(random(heads, tokens, tokens))
    options = {"window": [WINDOW] * 3, "shift": [WINDOW // 2] * 3, "eps": 1e-5}

    def attend() -> None:
        window_attention(features, parameters, **options)
        window_attention_backward(features, features, parameters, **options)

    with FlopCounterMode(display=False) as counter:
        attend()
    attention = counter.get_total_flops() / seconds(attend)
    terms = random(LARGE), random(LARGE)
    bandwidth = 3 * terms[0].nbytes / seconds(lambda: terms[0] + terms[1])
    return Chip(
        f"this {device.type}, measured", product, product, bandwidth, memory_gb, product_efficiency=1.0,
        attention_efficiency=attention / product, traffic_efficiency=1.0,
        launch_s=LAUNCH_S if device.type == "cuda" else 0.0,
    )  # fmt: skip
