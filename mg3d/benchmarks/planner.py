"""Predicted cost of a run from its settings: parameters, FLOPs, memory, disk, and time by roofline or from measured steps."""

import math
from typing import NamedTuple

import torch

from mg3d.benchmarks.roofline import Chip, PartTime, measure_chip, predict_optimizer, predict_part
from mg3d.benchmarks.step import StepCost, measure_step
from mg3d.benchmarks.synthetic import MASKED_FRACTION, VIEW_TOKENS, random_batch, random_bert
from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow
from mg3d.models.build import build_model
from mg3d.models.flops import Part, ReportShape, count_step, needed_flops
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import tiny_text_encoder
from mg3d.precision import resolve_precision
from mg3d.settings.parse import parse
from mg3d.settings.schema import Settings, volume_shape
from mg3d.training.trainer import plan_batches

SAFE_MEMORY_FRACTION = 0.8
"""Up to this fraction of a device's memory a prediction counts as fitting; temporary buffers are not counted."""
TRAINED_BYTES, FROZEN_BYTES = 16, 4
"""Bytes per parameter: float32 weight, gradient and two Adam moments; or the weight alone."""
CHECKPOINTS, CHECKPOINT_BYTES = 2, 12
"""`last` and `best`; weight and two Adam moments per parameter."""


class Plan(NamedTuple):
    """Prediction for one configuration; times are None without a device speed."""

    parts: list[Part]
    times: list[PartTime]
    """Of the parts, in their order, and of the optimizer, per step and device; empty without a chip."""
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
    """Of an optimizer step."""
    mfu: float | None
    """FLOPs per step over what the chip's published peak would compute in that time."""
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
    settings: Settings, *, devices: int, chip: Chip | None = None, precision: str = "32-true",
    measured: StepCost | None = None, sentences: int = 12,
) -> Plan:  # fmt: skip
    """The plan for `devices` devices; precision: Lightning's, resolved.

    The step time comes from `measured` (a micro-batch on one device, see `calibrate`), or else from the roofline of `chip`;
    scaling to more devices is assumed to be linear.

    Raises:
        ValueError: `batch_size` cannot be divided over the devices.
    """
    batches, data, optim = plan_batches(settings, devices), settings.data, settings.optim
    model, is_half = random_weights(settings), "16" in precision
    shape = volume_shape(data.image_size, data.volume_size)
    views, is_cached = (data.sentence_views, min(VIEW_TOKENS, data.max_text_len)), bool(settings.text.text_cache)
    report = ReportShape(data.max_text_len, sentences, *views, MASKED_FRACTION, is_cached=is_cached)
    parts = count_step(model, shape, report)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    chunk = min(batches.per_rank, optim.grad_cache_chunk or batches.per_rank)
    activations = sum(part.saved_bytes for part in parts) * chunk / (2 if is_half else 1)
    flops, step_s, times = float(needed_flops(parts) * optim.batch_size), None, []
    if measured is not None:
        step_s = measured.seconds * optim.batch_size / (batches.per_rank * devices)
    elif chip is not None:
        volumes = optim.batch_size // devices
        launches = batches.accumulation_steps * -(-batches.per_rank // chunk)
        times = [predict_part(part, chip, is_half=is_half, volumes=volumes, launches=launches) for part in parts]
        times.append(predict_optimizer(trained, chip))
        step_s = sum(time.seconds for time in times)
    return Plan(
        parts, times, trained, frozen, flops,
        memory_gb=(trained * TRAINED_BYTES + frozen * FROZEN_BYTES + activations) / 1e9,
        checkpoint_gb=(trained * CHECKPOINT_BYTES + frozen * FROZEN_BYTES) * CHECKPOINTS / 1e9,
        volume_mb=math.prod(shape) * 2 / 1e6,
        step_s=step_s,
        mfu=flops / (step_s * devices * chip.peak(is_half=is_half)) if chip and step_s else None,
        run_h=None if step_s is None else step_s * optim.max_steps / 3600,
    )  # fmt: skip


def calibrate(settings: Settings, *, devices: int, device: str, threads: int, sentences: int = 12) -> StepCost:
    """Measure steps on random volumes here, each with the micro-batch of one of `devices` devices."""
    torch.set_num_threads(threads)
    data, precision = settings.data, "bf16" if "bf16" in resolve_precision(settings.run.precision, device) else "32"
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


def run(options: BenchmarkOptions) -> list[BenchmarkRow]:
    """Predicted against measured steps of Swin-B with a tiny text encoder, at three volume sizes."""
    torch.set_num_threads(options.threads)
    precision = "bf16-mixed" if options.precision == "bf16" else "32-true"
    chip = measure_chip(torch.device(options.device), 0.0, is_half=options.precision == "bf16")
    rows = []
    for size in ((32, 32, 64),) if options.quick else ((64, 64, 64), (96, 96, 96), options.size):
        settings = parse({"text_encoder": "tiny", "freeze_text": False, "volume_size": list(size), "precision": precision,
                          "per_gpu_batchsize": 1, "batch_size": 1})  # fmt: skip
        predicted = predict(settings, devices=1, chip=chip, precision=precision).step_s
        measured = calibrate(settings, devices=1, device=options.device, threads=options.threads).seconds
        note = f"{options.device}, {options.precision}; above 1: slower than predicted"
        rows.append(BenchmarkRow(f"step, {'x'.join(map(str, size))}", "predicted", "measured", predicted, measured, note=note))
    return rows
