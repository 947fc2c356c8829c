"""What a run will cost: parameters, FLOPs, memory, time and disk, from its settings and perhaps some steps taken here."""

import math
from typing import NamedTuple

import torch
from transformers import BertConfig, BertModel

from mg3d.benchmarks.batches import MASKED_WORDS, VIEW_TOKENS, VOCABULARY, random_batch
from mg3d.benchmarks.step import Measured, measure_step
from mg3d.benchmarks.timing import Options
from mg3d.models.build import build_model
from mg3d.models.flops import Part, ReportShape, count_step, needed_flops
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder, tiny_text_encoder
from mg3d.settings.schema import Settings, objective_weights, volume_shape
from mg3d.training.objectives import build_losses
from mg3d.training.trainer import plan_batches

ROOMY = 0.8
"""Share of a device's memory up to which what is counted is said to fit: buffers for the moment are not counted."""
ADAM_BYTES, FROZEN_BYTES = 16, 4
"""Bytes of a parameter: weight, gradient and two averages in float32; or the weight alone."""
CHECKPOINTS, CHECKPOINT_BYTES = 2, 12
"""`last` and `best`; weight and two averages."""


class Device(NamedTuple):
    """A processor, by the numbers its maker has published."""

    name: str
    bf16_flops: float
    """Dense matrix products, a second."""
    float32_flops: float
    """On GPUs with TF32 off."""
    memory_gb: float


DEVICES = {
    "h200": Device("NVIDIA H200 SXM, published", 989e12, 67e12, 141),
    "h100": Device("NVIDIA H100 SXM, published", 989e12, 67e12, 80),
    "a100": Device("NVIDIA A100 SXM, published", 312e12, 19.5e12, 80),
}


class Plan(NamedTuple):
    """What is predicted of one configuration; seconds and hours are None where nothing says how fast the device is."""

    parts: list[Part]
    trained: int
    frozen: int
    step_flops: float
    """Needed for all volumes of an optimiser step."""
    memory_gb: float
    """At least, on one device: weights, gradients, Adam, what a pass keeps, or with `grad_cache_chunk` a chunk of it."""
    checkpoint_gb: float
    volume_mb: float
    """One volume on disk, int16."""
    step_s: float | None
    run_h: float | None
    """Wall clock of `max_steps`."""


def stand_in(settings: Settings) -> MG3D:
    """The model with random weights, without a download: a report encoder that is not `tiny` is of BERT-base's size."""
    text = settings.text
    if text.text_encoder == "tiny":
        encoder = tiny_text_encoder(
            vocab_size=text.tiny_vocabulary, width=text.tiny_text_width, layers=text.tiny_text_layers, heads=text.tiny_text_heads,
            max_positions=settings.data.max_text_len,
        )  # fmt: skip
    else:
        bert = BertModel(BertConfig(vocab_size=VOCABULARY), add_pooling_layer=False)
        encoder = TextEncoder(bert, frozen=text.freeze_text)
    return build_model(settings, encoder)


def predict(
    settings: Settings, *, devices: int, peak_flops: float | None, utilisation: float | None, measured: Measured | None,
    sentences: int = 12,
) -> Plan:  # fmt: skip
    """The plan for `devices` devices.

    A step's time is that of `measured` (a pass on one device, as `calibrate` takes it), or else what `utilisation` of
    `peak_flops` gives; more devices are taken to be as fast each.

    Raises:
        ValueError: the devices cannot share `batch_size` evenly.
    """
    per_device = plan_batches(settings, devices).per_rank
    model, data = stand_in(settings), settings.data
    shape = volume_shape(data.image_size, data.volume_size)
    views, is_cached = (data.sentence_views, min(VIEW_TOKENS, data.max_text_len)), bool(settings.text.text_cache)
    report = ReportShape(data.max_text_len, sentences, *views, MASKED_WORDS, is_cached=is_cached)
    parts = count_step(model, shape, report)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    held = min(per_device, settings.optim.grad_cache_chunk or per_device)
    kept = sum(part.kept_bytes for part in parts) * held / (2 if "bf16" in settings.run.precision else 1)
    flops, step_s = float(needed_flops(parts) * settings.optim.batch_size), None
    if measured is not None:
        step_s = measured.seconds * settings.optim.batch_size / (per_device * devices)
    elif peak_flops is not None:
        step_s = flops / (peak_flops * utilisation * devices)
    return Plan(
        parts, trained, frozen, flops,
        memory_gb=(trained * ADAM_BYTES + frozen * FROZEN_BYTES + kept) / 1e9,
        checkpoint_gb=(trained * CHECKPOINT_BYTES + frozen * FROZEN_BYTES) * CHECKPOINTS / 1e9,
        volume_mb=math.prod(shape) * 2 / 1e6,
        step_s=step_s,
        run_h=None if step_s is None else step_s * settings.optim.max_steps / 3600,
    )  # fmt: skip


def calibrate(settings: Settings, *, devices: int, device: str, threads: int, sentences: int = 12) -> Measured:
    """Takes steps of this configuration here, each a pass of random volumes as one of `devices` devices takes it."""
    torch.set_num_threads(threads)
    data, precision = settings.data, "bf16" if "bf16" in settings.run.precision else "32"
    options = Options(
        size=volume_shape(data.image_size, data.volume_size), batch=plan_batches(settings, devices).per_rank, device=device,
        precision=precision, tokens=data.max_text_len, sentences=sentences, threads=threads,
    )  # fmt: skip
    model = stand_in(settings).train()
    losses = build_losses(settings.model, list(objective_weights(settings.loss)))
    batch = random_batch(options, vocabulary=model.text.vocabulary_size, cube=settings.model.mim_patch_size)
    return measure_step(model, losses, settings, batch, options)


def verdict(needed_gb: float, there_gb: float) -> str:
    """Whether it fits, in words."""
    if needed_gb > there_gb:
        return f"does not fit into {there_gb:.3g} GB: lower per_gpu_batchsize or set grad_cache_chunk or gradient_checkpointing"
    if needed_gb > ROOMY * there_gb:
        return f"close to the {there_gb:.3g} GB there are, and buffers come on top: measure it with --calibrate on such a device"
    return f"fits into {there_gb:.3g} GB"
