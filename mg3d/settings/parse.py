"""Presets and flat `name=value` settings to typed `Settings`; every mistake is a ValueError of one sentence."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mg3d.settings.encoders import ENCODERS, unread
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import Settings, objective_weights, volume_shape

RELEASED_HEADS = 8
"""Attention heads of the released report pooling, `SentenceAttentionPool`."""


def defaults() -> dict[str, Any]:
    """Flat setting -> default, with lists instead of tuples (as Sacred and JSON store them)."""
    return flatten(Settings())


def flatten(settings: Settings) -> dict[str, Any]:
    """Flat setting -> value, as builtins."""
    values = {name: value for group in fields(settings) for name, value in vars(getattr(settings, group.name)).items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def resolve(presets: Sequence[str], updates: Mapping[str, Any]) -> Settings:
    """Typed settings from presets, of which the last wins, and settings by name, which win over presets."""
    refuse_unknown(presets, PRESETS, "preset")
    refuse_unknown(updates, defaults())
    flat: dict[str, Any] = {}
    for preset in presets:
        flat |= PRESETS[preset]
    settings = parse(flat | dict(updates))
    _refuse_unread(updates, settings)
    return settings


def parse(flat: Mapping[str, Any]) -> Settings:
    """Typed settings from flat names and values; what is not given has its default.

    Raises:
        ValueError: unknown name, wrong type, value out of range or settings that contradict each other.
    """
    refuse_unknown(flat, defaults())
    groups = {}
    for name, group in get_type_hints(Settings).items():
        given = {field.name: as_tuple(flat[field.name]) for field in fields(group) if field.name in flat}
        try:
            groups[name] = group(**given)
        except ValidationError as error:
            raise ValueError(first_sentence(error, given)) from error
    settings = Settings(**groups)
    for rules in (_value_rules, _encoder_rules, _model_rules):
        for is_valid, sentence in rules(settings):
            if not is_valid:
                raise ValueError(sentence)
    return settings


def refuse_unknown(names: Iterable[str], known: Iterable[str], what: str = "setting") -> None:
    """Raises ValueError for the first unknown name, with similar known ones."""
    known = list(known)
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(similar)}?" if similar else "`python main.py print_config` lists all settings"
            raise ValueError(f"unknown {what} {name!r}; {hint}")


def _refuse_unread(names: Iterable[str], settings: Settings) -> None:
    """Raises ValueError for a setting by name that the chosen encoder ignores; presets may set those (`tiny unet`)."""
    kind = settings.vision.vision_encoder
    for name in names:
        if name in unread(settings.vision):
            raise ValueError(f"{name} is not read by vision_encoder={kind}, which reads {', '.join(ENCODERS[kind].reads)}")


def convert_value(name: str, value: Any, kind: Any) -> Any:
    """The value converted to `kind`; ValueError if that is not possible without changing it."""
    try:
        return TypeAdapter(kind, config={"strict": True, "allow_inf_nan": False}).validate_python(as_tuple(value))
    except ValidationError as error:
        raise ValueError(first_sentence(error, {name: value}, name)) from error


def as_tuple(value: Any) -> Any:
    """Lists as tuples, which typed settings hold."""
    return tuple(value) if isinstance(value, list) else value


def first_sentence(error: ValidationError, values: Mapping[str, Any], name: str = "") -> str:
    """The first mistake of a validation in one sentence; `name` where the value alone was validated."""
    detail = error.errors(include_url=False)[0]
    name = name or str(detail["loc"][0])
    expected = {"missing": "more values are required", "tuple_type": f"must be a list such as {name}='[...]'"}.get(detail["type"])
    return f"{name}={values[name]!r}: {expected or detail['msg'].replace('Input should', 'must').replace('Tuple should', 'must')}"


Rules = list[tuple[Any, str]]
"""(whether it holds, the sentence if it does not)."""


def _value_rules(settings: Settings) -> Rules:
    data, optim, run, crop = settings.data, settings.optim, settings.run, settings.augment.augment_crop
    size, weights = data.volume_size, data.dataset_weights
    return [
        (not size or (len(size) == 3 and all(side >= 32 and side % 32 == 0 for side in size)),
         f"volume_size={size}: must be three multiples of 32, voxels along z, y, x, or empty"),
        (size or data.image_size % 32 == 0, f"image_size={data.image_size}: must be a multiple of 32"),
        (0 < crop[0] <= crop[1] <= 1, f"augment_crop={crop}: must satisfy 0 < minimum <= maximum <= 1"),
        (data.window_hu[0] < data.window_hu[1], f"window_hu={data.window_hu}: must be (lower, upper)"),
        (data.datasets, "datasets=[]: name at least one data set, such as datasets='[\"ct_rate\"]'"),
        (len(set(data.datasets)) == len(data.datasets), f"datasets={data.datasets} contains a data set twice"),
        (not weights or sum(weights) > 0, f"dataset_weights={weights}: at least one must be greater than 0"),
        (not weights or len(weights) == len(data.datasets),
         f"dataset_weights={weights} needs one weight for each of datasets={data.datasets}"),
        (max(optim.betas) < 1, f"betas={optim.betas}: must be less than 1"),
        (optim.warmup_steps < optim.max_steps,
         f"warmup_steps={optim.warmup_steps} must be less than max_steps={optim.max_steps}; "
         f"also set warmup_steps={optim.max_steps // 10}"),
        (optim.batch_size >= optim.per_gpu_batchsize,
         f"batch_size={optim.batch_size} is less than per_gpu_batchsize={optim.per_gpu_batchsize}"),
        (objective_weights(settings.loss), "every loss weight is 0; set at least one greater than 0"),
        (run.load_path or not (run.load_patch_merging or run.load_entry or run.load_prefix),
         "load_patch_merging, load_entry and load_prefix describe the file of load_path, which is not set"),
    ]  # fmt: skip


def _encoder_rules(settings: Settings) -> Rules:
    data, vision, model = settings.data, settings.vision, settings.model
    kind, encoder = vision.vision_encoder, ENCODERS[vision.vision_encoder]
    patch_size, stride, has_stages = encoder.patch_size(vision), encoder.stride(vision), "depths" in encoder.reads
    channels = [vision.embed_dim * 2**stage for stage in range(len(vision.depths))]
    shape = volume_shape(data.image_size, data.volume_size)
    given = f"volume_size={data.volume_size}" if data.volume_size else f"image_size={data.image_size}"
    shown = stride[0] if len(set(stride)) == 1 else stride
    suggestion = f"multiples of {shown}" if data.volume_size else f"a multiple of {4 * math.lcm(*stride)}"
    return [
        (all(side % step == 0 for side, step in zip(shape, stride, strict=True)),
         f"{given}: volume {shape} must be divisible by {shown} voxels, the stride of this {kind} encoder; use {suggestion}"),
        (settings.loss.weight_mim == 0 or all(side % model.mim_patch_size == 0 for side in shape),
         f"mim_patch_size={model.mim_patch_size} does not divide the volume {shape}"),
        (settings.loss.weight_mim == 0 or all(model.mim_patch_size % side == 0 for side in patch_size),
         f"mim_patch_size={model.mim_patch_size} must be a multiple of patch_size={vision.patch_size}"),
        (kind != "nnunet" or vision.embed_dim % 2 == 0,
         f"embed_dim={vision.embed_dim} must be even: the first block of nnunet has half as many channels"),
        (not has_stages or len(vision.depths) == len(vision.num_heads),
         f"depths={vision.depths} and num_heads={vision.num_heads} differ in length"),
        (not has_stages or (1 <= len(vision.depths) <= 4 and min(vision.depths) >= 1),
         f"depths={vision.depths}: must be one to four stages of at least one block"),
        (not has_stages or all(heads >= 1 and width % heads == 0 for width, heads in zip(channels, vision.num_heads)),
         f"num_heads={vision.num_heads} must divide the channels of each stage, {channels} with embed_dim={vision.embed_dim}"),
        (model.mim_decoder != "conv" or settings.loss.weight_mim == 0 or 2 * model.hidden_size >= max(stride),
         f"mim_decoder=conv halves hidden_size={model.hidden_size} at each of its steps up from stride {shown}; use "
         f"hidden_size={max(stride) // 2} or more, or mim_decoder=linear"),
    ]  # fmt: skip


def _model_rules(settings: Settings) -> Rules:
    vision, text, model, optim, loss = settings.vision, settings.text, settings.model, settings.optim, settings.loss
    contrasts = loss.weight_cml + loss.weight_dcl + loss.weight_ssm > 0
    return [
        (model.hidden_size % model.fusion_heads == 0,
         f"fusion_heads={model.fusion_heads} does not divide hidden_size={model.hidden_size}"),
        (model.wiring == "paper" or not contrasts or model.hidden_size % RELEASED_HEADS == 0,
         f"wiring={model.wiring} pools reports with {RELEASED_HEADS} heads, which do not divide hidden_size={model.hidden_size}"),
        (model.ssm_differ_below < model.ssm_same_above,
         f"ssm_differ_below={model.ssm_differ_below} must be less than ssm_same_above={model.ssm_same_above}"),
        (text.text_encoder != "tiny" or text.tiny_text_width % text.tiny_text_heads == 0,
         f"tiny_text_heads={text.tiny_text_heads} does not divide tiny_text_width={text.tiny_text_width}"),
        (text.text_encoder != "tiny" or not text.freeze_text,
         "text_encoder=tiny is trained from scratch and cannot be frozen; set freeze_text=False"),
        (model.contrast != "sigmoid" or model.wiring == "paper",
         f"contrast=sigmoid needs wiring=paper: the temperature of wiring={model.wiring} is constant"),
        (optim.grad_cache_chunk == 0 or vision.vision_encoder != "unet" or vision.norm_statistics == "instance",
         "grad_cache_chunk changes the batch statistics of the U-Net; use norm_statistics=instance or grad_cache_chunk=0"),
        (not text.text_cache or text.freeze_text,
         f"text_cache={text.text_cache!r} needs a frozen text encoder; set freeze_text=True or leave text_cache empty"),
        (not text.text_cache or model.wiring == "paper",
         f"wiring={model.wiring} reads padding tokens, which a text_cache does not hold; use wiring=paper or no text_cache"),
        (optim.text_negatives == 0 or text.text_cache,
         "text_negatives needs text_cache, which is not set; create one with tools/cache_text.py"),
        (optim.text_negatives == 0 or loss.weight_cml > 0, "text_negatives are negatives of CML, but weight_cml is 0"),
        (optim.text_negatives == 0 or model.wiring == "paper",
         f"text_negatives needs wiring=paper: wiring={model.wiring} does not contrast images with reports"),
    ]  # fmt: skip
