"""Predicted cost of a run from its settings: parameters, FLOPs, memory, time and disk; optionally from measured steps."""

import math
from typing import NamedTuple

import torch

from mg3d.benchmarks.step import StepCost, measure_step
from mg3d.benchmarks.synthetic import MASKED_FRACTION, VIEW_TOKENS, random_batch, random_bert
from mg3d.benchmarks.timing import BenchmarkOptions
from mg3d.models.build import build_model
from mg3d.models.flops import Part, ReportShape, count_step, needed_flops
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import tiny_text_encoder
from mg3d.settings.schema import Settings, volume_shape
from mg3d.training.trainer import plan_batches

SAFE_MEMORY_FRACTION = 0.8
"""Up to this fraction of a device's memory a prediction counts as fitting; temporary buffers are not counted."""
TRAINED_BYTES, FROZEN_BYTES = 16, 4
"""Bytes per parameter: float32 weight, gradient and two Adam moments; or the weight alone."""
CHECKPOINTS, CHECKPOINT_BYTES = 2, 12
"""`last` and `best`; weight and two Adam moments per parameter."""


class Device(NamedTuple):
    """Published specifications of an accelerator."""

    name: str
    bf16_flops: float
    """Dense bfloat16 FLOP/s."""
    float32_flops: float
    """FLOP/s with TF32 off."""
    memory_gb: float


DEVICES = {
    "h200": Device("NVIDIA H200 SXM, published", 989e12, 67e12, 141),
    "h100": Device("NVIDIA H100 SXM, published", 989e12, 67e12, 80),
    "a100": Device("NVIDIA A100 SXM, published", 312e12, 19.5e12, 80),
}


class Plan(NamedTuple):
    """Prediction for one configuration; times are None without a device speed."""

    parts: list[Part]
    trained: int
    """Trainable parameters."""
    frozen: int
    step_flops: float
    """Of an optimizer step over the whole batch."""
    memory_gb: float
    """Lower bound per device: weights, gradients, Adam moments, and activations of a micro-batch or GradCache chunk."""
    checkpoint_gb: float
    volume_mb: float
    """One volume on disk, int16."""
    step_s: float | None
    run_h: float | None
    """Wall-clock time of `max_steps`."""


def random_weights(settings: Settings) -> MG3D:
    """The model with random weights and no download; a text encoder other than `tiny` is a BERT-base."""
    text = settings.text
    if text.text_encoder == "tiny":
        encoder = tiny_text_encoder(
            vocab_size=text.tiny_vocabulary, width=text.tiny_text_width, layers=text.tiny_text_layers, heads=text.tiny_text_heads,
            max_positions=settings.data.max_text_len,
        )  # fmt: skip
    else:
        encoder = random_bert(frozen=text.freeze_text)
    return build_model(settings, encoder)


def predict(
    settings: Settings, *, devices: int, peak_flops: float | None, utilisation: float | None, measured: StepCost | None,
    sentences: int = 12,
) -> Plan:  # fmt: skip
    """The plan for `devices` devices.

    The step time comes from `measured` (a micro-batch on one device, see `calibrate`), or else from `utilisation` of
    `peak_flops`; scaling to more devices is assumed to be linear.

    Raises:
        ValueError: `batch_size` cannot be divided over the devices.
    """
    per_device = plan_batches(settings, devices).per_rank
    model, data = random_weights(settings), settings.data
    shape = volume_shape(data.image_size, data.volume_size)
    views, is_cached = (data.sentence_views, min(VIEW_TOKENS, data.max_text_len)), bool(settings.text.text_cache)
    report = ReportShape(data.max_text_len, sentences, *views, MASKED_FRACTION, is_cached=is_cached)
    parts = count_step(model, shape, report)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    chunk = min(per_device, settings.optim.grad_cache_chunk or per_device)
    activations = sum(part.saved_bytes for part in parts) * chunk / (2 if "bf16" in settings.run.precision else 1)
    flops, step_s = float(needed_flops(parts) * settings.optim.batch_size), None
    if measured is not None:
        step_s = measured.seconds * settings.optim.batch_size / (per_device * devices)
    elif peak_flops is not None:
        step_s = flops / (peak_flops * utilisation * devices)
    return Plan(
        parts, trained, frozen, flops,
        memory_gb=(trained * TRAINED_BYTES + frozen * FROZEN_BYTES + activations) / 1e9,
        checkpoint_gb=(trained * CHECKPOINT_BYTES + frozen * FROZEN_BYTES) * CHECKPOINTS / 1e9,
        volume_mb=math.prod(shape) * 2 / 1e6,
        step_s=step_s,
        run_h=None if step_s is None else step_s * settings.optim.max_steps / 3600,
    )  # fmt: skip


def calibrate(settings: Settings, *, devices: int, device: str, threads: int, sentences: int = 12) -> StepCost:
    """Measure steps on random volumes here, each with the micro-batch of one of `devices` devices."""
    torch.set_num_threads(threads)
    data, precision = settings.data, "bf16" if "bf16" in settings.run.precision else "32"
    options = BenchmarkOptions(
        size=volume_shape(data.image_size, data.volume_size), batch=plan_batches(settings, devices).per_rank, device=device,
        precision=precision, tokens=data.max_text_len, sentences=sentences, threads=threads,
    )  # fmt: skip
    model = random_weights(settings).train()
    batch = random_batch(options, vocab_size=model.text.vocabulary_size, patch_size=settings.model.mim_patch_size)
    return measure_step(model, settings, batch, options)


def describe_fit(needed_gb: float, available_gb: float) -> str:
    """Whether a run fits into the memory of a device, as a phrase."""
    if needed_gb > available_gb:
        return f"does not fit into {available_gb:.3g} GB: lower per_gpu_batchsize, set grad_cache_chunk or gradient_checkpointing"
    if needed_gb > SAFE_MEMORY_FRACTION * available_gb:
        return f"close to the limit of {available_gb:.3g} GB, without temporary buffers: check with --calibrate on such a device"
    return f"fits into {available_gb:.3g} GB"
