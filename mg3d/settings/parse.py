"""From a flat mapping of words and values to `Settings`, with every mistake told in one sentence."""

import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal

from mg3d.settings.encoders import ENCODERS, unread
from mg3d.settings.objectives import OBJECTIVES
from mg3d.settings.schema import Settings, volume_shape


def defaults() -> dict[str, Any]:
    """Every setting's name and default, flat, as lists instead of tuples (what Sacred and JSON keep)."""
    return flatten(Settings())


def flatten(settings: Settings) -> dict[str, Any]:
    """The settings as one flat mapping of builtins."""
    flat = {}
    for group in fields(settings):
        part = getattr(settings, group.name)
        for entry in fields(part):
            value = getattr(part, entry.name)
            flat[entry.name] = list(value) if isinstance(value, tuple) else value
    return flat


def refuse_unknown(names: Iterable[str], known: Iterable[str], what: str = "setting") -> None:
    """Raises ValueError for the first name that is not known, with the nearest known ones."""
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`python main.py print_config` lists them all"
            raise ValueError(f"unknown {what} {name!r}; {hint}")


def parse(flat: Mapping[str, Any]) -> Settings:
    """Typed settings from flat names and values.

    Raises:
        ValueError: unknown name, wrong type, value out of range or settings that contradict each other.
    """
    refuse_unknown(flat, defaults())
    groups = {}
    for group in fields(Settings):
        kind = typing.get_type_hints(Settings)[group.name]
        hints = typing.get_type_hints(kind)
        groups[group.name] = kind(**{name: convert_value(name, flat[name], hint) for name, hint in hints.items() if name in flat})
    settings = Settings(**groups)
    _check_ranges(settings)
    _check_together(settings)
    _check_contrast_and_cache(settings)
    return settings


def refuse_unread(names: Iterable[str], settings: Settings) -> None:
    """Raises ValueError for a vision setting, named by the user, that the chosen kind of encoder does not read.

    What a preset word has set for another kind is no mistake: `tiny unet` leaves the small Swin's depths unread.
    """
    kind = settings.vision.vision_encoder
    for name in names:
        if name in unread(settings.vision):
            raise ValueError(f"{name} is not read by vision_encoder={kind}, which reads {', '.join(ENCODERS[kind].reads)}")


def convert_value(name: str, value: Any, hint: Any) -> Any:
    """The value of a setting as its type; ValueError with what was expected otherwise."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name}={value!r}: expected a list such as {name}='[...]'")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise ValueError(f"{name}={value!r}: expected {len(kinds)} values, found {len(value)}")
        return tuple(convert_value(name, item, kind) for item, kind in zip(value, kinds, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value}: a finite number is expected")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        kind = hint.__name__ if isinstance(hint, (type, types.GenericAlias)) else hint
        raise ValueError(f"{name}={value!r}: expected {kind}, found {type(value).__name__}")
    return value


_AT_LEAST: dict[str, float] = {
    "image_size": 32, "max_text_len": 8, "num_workers": 0, "sentence_views": 0,
    "embed_dim": 1, "patch_size": 1, "window_size": 1, "hidden_size": 1,
    "embedding_size": 1, "fusion_layers": 1, "fusion_heads": 1, "mim_patch_size": 1, "learning_rate": 0, "head_lr_multiplier": 0,
    "weight_decay": 0, "warmup_steps": 0, "max_steps": 1, "grad_clip": 0, "per_gpu_batchsize": 1, "batch_size": 1, "devices": 0,
    "num_nodes": 1, "val_interval": 1, "val_batches": 0, "log_interval": 1, "max_minutes": 0, "seed": 0, "tiny_vocabulary": 50,
    "tiny_text_width": 1, "tiny_text_layers": 1, "tiny_text_heads": 1, "pool_queries": 1,
    "augment_rotation_deg": 0, "grad_cache_chunk": 0,
    "caption_layers": 1, **{f"weight_{name}": 0 for name in OBJECTIVES},
}  # fmt: skip
RELEASED_HEADS = 8
"""Heads of the released report pooler, `SentenceAttentionPool`."""
_SHARES = (
    "negated_view_fraction", "mim_mask_ratio", "mlm_probability", "ssm_same_above", "ssm_differ_below", "caption_label_smoothing",
    "augment_shift", "augment_width", "augment_noise", "load_minimum_coverage",
)  # fmt: skip


def _check_ranges(settings: Settings) -> None:
    flat = flatten(settings)
    for name, least in _AT_LEAST.items():
        if flat[name] < least:
            raise ValueError(f"{name}={flat[name]}: must be at least {least}")
    size, (least, most) = settings.data.volume_size, settings.augment.augment_crop
    if size and (len(size) != 3 or any(side < 32 or side % 32 for side in size)):
        raise ValueError(f"volume_size={size}: three multiples of 32 are expected, voxels along z, y, x; or none at all")
    if settings.augment.augment_width == 1:
        raise ValueError("augment_width=1.0: must be smaller than 1, or no window would be left")
    if any(not 0 <= beta < 1 for beta in settings.optim.betas):
        raise ValueError(f"betas={settings.optim.betas}: both must be at least 0 and smaller than 1")
    shares = settings.data.dataset_weights
    if shares and (min(shares) < 0 or sum(shares) == 0):
        raise ValueError(f"dataset_weights={shares}: none may be negative, and one must be more than 0")
    if not 0 < least <= most <= 1:
        raise ValueError(f"augment_crop={settings.augment.augment_crop}: 0 < smallest <= largest <= 1 is expected")
    for name in _SHARES:
        if not 0 <= flat[name] <= 1:
            raise ValueError(f"{name}={flat[name]}: must lie between 0 and 1")


def _check_together(settings: Settings) -> None:
    data, vision, text, model = settings.data, settings.vision, settings.text, settings.model
    optim, run = settings.optim, settings.run
    kind, encoder = vision.vision_encoder, ENCODERS[vision.vision_encoder]
    patch_size, stride, has_stages = encoder.patch_size(vision), encoder.stride(vision), "depths" in encoder.reads
    channels = [vision.embed_dim * 2**stage for stage in range(len(vision.depths))]
    undivided = [width for width, heads in zip(channels, vision.num_heads) if heads < 1 or width % heads]
    fused = settings.loss.weight_cml + settings.loss.weight_dcl + settings.loss.weight_ssm > 0
    sides = volume_shape(data.image_size, data.volume_size)
    asked = f"volume_size={data.volume_size}" if data.volume_size else f"image_size={data.image_size}"
    fits = f"multiples of {stride} fit" if data.volume_size else f"a multiple of {4 * stride} fits"
    rules = [
        (bool(data.volume_size) or data.image_size % 32 == 0, f"image_size={data.image_size}: must be a multiple of 32"),
        (all(side % stride == 0 for side in sides),
         f"{asked}: the volume's sides {sides} must be multiples of {stride} voxels, the stride of this "
         f"{kind} encoder; {fits}"),
        (all(side % model.mim_patch_size == 0 for side in sides),
         f"mim_patch_size={model.mim_patch_size} does not divide the volume {sides}"),
        (model.mim_patch_size % patch_size == 0,
         f"mim_patch_size={model.mim_patch_size} must be a multiple of patch_size={patch_size}"),
        (kind != "nnunet" or vision.embed_dim % 2 == 0,
         f"embed_dim={vision.embed_dim} must be even: the first block of nnunet has half as many channels"),
        (not has_stages or len(vision.depths) == len(vision.num_heads),
         f"depths={vision.depths} and num_heads={vision.num_heads} differ in length"),
        (not has_stages or (1 <= len(vision.depths) <= 4 and min(vision.depths) >= 1),
         f"depths={vision.depths}: one to four stages of at least one block each are expected"),
        (not has_stages or not undivided,
         f"num_heads={vision.num_heads}: the heads of each stage must divide its channels, {channels} "
         f"with embed_dim={vision.embed_dim}"),
        (model.hidden_size % model.fusion_heads == 0,
         f"fusion_heads={model.fusion_heads} does not divide hidden_size={model.hidden_size}"),
        (model.wiring == "paper" or not fused or model.hidden_size % RELEASED_HEADS == 0,
         f"wiring={model.wiring} pools reports with {RELEASED_HEADS} heads, which do not divide hidden_size={model.hidden_size}"),
        (model.mim_decoder != "conv" or settings.loss.weight_mim == 0 or 2 * model.hidden_size >= stride,
         f"mim_decoder=conv halves hidden_size={model.hidden_size} until it has undone the stride {stride}, and nothing is left; "
         f"use at least {stride // 2}, or mim_decoder=linear"),
        (text.text_encoder != "tiny" or text.tiny_text_width % text.tiny_text_heads == 0,
         f"tiny_text_heads={text.tiny_text_heads} does not divide tiny_text_width={text.tiny_text_width}"),
        (bool(data.datasets), "datasets=[]: name at least one data set, e.g. datasets='[\"ct_rate\"]'"),
        (len(set(data.datasets)) == len(data.datasets), f"datasets={data.datasets} names one twice"),
        (optim.warmup_steps < optim.max_steps,
         f"warmup_steps={optim.warmup_steps} must be smaller than max_steps={optim.max_steps}"),
        (optim.batch_size >= optim.per_gpu_batchsize,
         f"batch_size={optim.batch_size} is smaller than per_gpu_batchsize={optim.per_gpu_batchsize}"),
        (data.window_hu[0] < data.window_hu[1], f"window_hu={data.window_hu}: the lower bound comes first"),
        (not data.dataset_weights or len(data.dataset_weights) == len(data.datasets),
         f"dataset_weights={data.dataset_weights} needs one weight for each of datasets={data.datasets}"),
        (any(getattr(settings.loss, entry.name) > 0 for entry in fields(settings.loss)),
         "every loss weight is 0: nothing to learn"),
        (run.load_path or not (run.load_patch_merging or run.load_entry or run.load_prefix),
         "load_patch_merging, load_entry and load_prefix say how load_path is read, which is not set"),
        (model.ssm_differ_below < model.ssm_same_above,
         f"ssm_differ_below={model.ssm_differ_below} must be smaller than ssm_same_above={model.ssm_same_above}"),
        (text.text_encoder != "tiny" or not text.freeze_text,
         "text_encoder=tiny starts from random weights and cannot be frozen; set freeze_text=False"),
    ]  # fmt: skip
    _require(rules)


def _check_contrast_and_cache(settings: Settings) -> None:
    vision, text, model, optim, loss = settings.vision, settings.text, settings.model, settings.optim, settings.loss
    rules = [
        (model.contrast != "sigmoid" or model.wiring == "paper",
         f"contrast=sigmoid needs wiring=paper: the temperature of wiring={model.wiring} is constant"),
        (optim.grad_cache_chunk == 0 or vision.vision_encoder != "unet" or vision.norm_statistics == "instance",
         "grad_cache_chunk would change what norm_statistics=batch measures; use norm_statistics=instance or grad_cache_chunk=0"),
        (not text.text_cache or text.freeze_text,
         f"text_cache={text.text_cache!r} holds features that do not change; use freeze_text=True or no cache"),
        (not text.text_cache or model.wiring == "paper",
         f"wiring={model.wiring} reads padding tokens, which a text_cache does not hold; use wiring=paper or no text_cache"),
        (optim.text_negatives >= 0, f"text_negatives={optim.text_negatives}: 0 or more reports per volume are expected"),
        (optim.text_negatives == 0 or bool(text.text_cache),
         "text_negatives reads reports from a text_cache, which is not set; make one with tools/cache_text.py"),
        (optim.text_negatives == 0 or loss.weight_cml > 0, "text_negatives are negatives of CML, whose weight_cml is 0"),
        (optim.text_negatives == 0 or model.wiring == "paper",
         f"text_negatives needs wiring=paper: wiring={model.wiring} does not contrast images with reports"),
    ]  # fmt: skip
    _require(rules)


def _require(rules: Iterable[tuple[Any, str]]) -> None:
    for holds, sentence in rules:
        if not holds:
            raise ValueError(sentence)
