"""What a file of weights contains: naming, encoders, patch merging, precision, preprocessing, provenance."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from mg3d.checkpoints.detection import DetectedEncoder, detect_encoder, is_parameter, is_released
from mg3d.checkpoints.key_mapping import MappedKeys, encoder_shapes, map_keys
from mg3d.checkpoints.patch_merging import Merging, merging_of_file, mg3d_metadata, norms_of_file, stored_settings
from mg3d.checkpoints.read import CheckpointFile, read_checkpoint
from mg3d.checkpoints.released_names import part_of
from mg3d.datasets.schema import DATASETS
from mg3d.settings.schema import CROP, volume_shape

RELEASED_PREPROCESSING: dict[str, Any] = {
    "axes": "z y x, +z superior, +y posterior, +x left",
    "shape": [128, 96, 128],
    "crop_fraction": list(CROP),
    "window_hu": [-1000.0, 1000.0],
    "range": [0.0, 1.0],
    "text": "lower case, at most 250 tokens",
}
"""Input of the released weights: central fraction of each axis, resized, intensity window mapped to [0, 1]."""
_PROVENANCE = ("epoch", "global_step", "pytorch-lightning_version", "format", "iteration", "current_epoch")


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Description of a file of weights."""

    path: str
    layout: str
    """Format of the file, and key path of the state dict in it."""
    style: str
    """Whose names the tensors have: `mg3d`, `released`, `encoder`, `bert` or `unknown`."""
    description: str
    prefix: str
    """Prefix of the names."""
    encoder: str
    """Preset of the image encoder, or its architecture (`swin`, `unet`, `nnunet`, `nnunet_v2_*`), or `none`."""
    width: int | None
    details: dict[str, Any]
    """depths, num_heads, window_size, patch_size ... of the image encoder, as far as the file shows them."""
    coverage: float | None
    """Fraction of the image encoder's parameters that the file contains; None: unknown."""
    text: dict[str, int] | None
    """layers, width, vocabulary and positions of the text encoder."""
    merging: Merging
    """Patch merging of a Swin; `none` for other encoders."""
    merging_source: str
    norm_statistics: str
    """Norm statistics of a U-Net; `none` for other encoders."""
    precision: dict[str, int]
    """dtype -> number of tensors."""
    parts: dict[str, tuple[int, int]]
    """Part of the model -> (tensors, parameters)."""
    preprocessing: dict[str, Any] | None
    provenance: dict[str, Any]
    """What the file states about its origin: step, epoch, settings, package version."""

    def json(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def __str__(self) -> str:
        stored = self.provenance.get("provenance")  # of an exported folder
        provenance = self.provenance | (stored if isinstance(stored, dict) else {})
        coverage = "unknown" if self.coverage is None else f"{self.coverage:.1%} of its parameters"
        rows = [
            ("file", self.path),
            ("layout", self.layout),
            ("names", self.description + (f", prefix {self.prefix!r}" if self.prefix else "")),
            ("encoder", f"{self.encoder}, width {self.width}" if self.width else self.encoder),
            ("", _list(self.details)),
            ("coverage", coverage if self.width else "no image encoder"),
            ("patch merging", "" if self.merging == "none" else f"{self.merging} ({self.merging_source})"),
            ("norm statistics", "" if self.norm_statistics == "none" else self.norm_statistics),
            ("text encoder", _list(self.text or {}) or "none"),
            ("precision", ", ".join(f"{kind} x {count}" for kind, count in self.precision.items())),
            ("preprocessing", json.dumps(self.preprocessing) if self.preprocessing else "not stated"),
            ("provenance", _list({k: v for k, v in provenance.items() if not isinstance(v, (dict, list))}) or "not stated"),
        ]
        lines = [f"{name:16}{value}" for name, value in rows if value]
        parts = [f"{'':16}{part:20}{count:5} tensors {size / 1e6:9.3f} M" for part, (count, size) in self.parts.items()]
        return "\n".join([*lines, "parts", *parts])


def _list(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def inspect_checkpoint(path: str | Path, *, prefix: str | None = None, entry: str | None = None) -> CheckpointInfo:
    """Describes a file; `entry` and errors as in `read_checkpoint`, `prefix` as in `map_keys`."""
    file = read_checkpoint(path, entry=entry)
    return checkpoint_info(file, map_keys(file.tensors, prefix=prefix))


def checkpoint_info(file: CheckpointFile, mapped: MappedKeys) -> CheckpointInfo:
    """Describes a file that was read and whose tensors were renamed."""
    encoder = image_encoder(mapped.tensors)
    merging, source = merging_of_file(file, mapped, encoder)
    metadata = mg3d_metadata(file)
    stored = {name: metadata[name] for name in ("package_version", "provenance", "settings") if name in metadata}
    return CheckpointInfo(
        path=str(file.path),
        layout=file.format + (f", state dict in {file.entry!r}" if file.entry else ""),
        style=mapped.style,
        description=mapped.description,
        prefix=mapped.prefix,
        encoder=encoder.name if encoder else "none",
        width=encoder.width if encoder else None,
        details=({"in_channels": encoder.in_channels} | encoder.details) if encoder else {},
        coverage=encoder.coverage if encoder else None,
        text=text_encoder_sizes(mapped.tensors),
        merging=merging,
        merging_source=source,
        norm_statistics=norms_of_file(file, mapped, encoder),
        precision=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in mapped.tensors.values())),
        parts=_parts(mapped.tensors),
        preprocessing=_preprocessing(file, is_released=mapped.style == "released" and is_released(encoder)),
        provenance={name: file.metadata[name] for name in _PROVENANCE if name in file.metadata} | stored,
    )


def image_encoder(tensors: Mapping[str, Tensor]) -> DetectedEncoder | None:
    """The image encoder among renamed tensors."""
    return detect_encoder(encoder_shapes(tensors))


def text_encoder_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int] | None:
    """Sizes of the text encoder among renamed tensors."""
    words = tensors.get("text.bert.embeddings.word_embeddings.weight")
    if words is None or words.ndim != 2:
        return None
    layers = {name.split(".")[4] for name in tensors if name.startswith("text.bert.encoder.layer.")}
    positions = tensors.get("text.bert.embeddings.position_embeddings.weight")
    count = len(positions) if positions is not None and positions.ndim else 0
    return {"layers": len(layers), "width": words.shape[1], "vocabulary": words.shape[0], "positions": count}


def _preprocessing(file: CheckpointFile, *, is_released: bool) -> dict[str, Any] | None:
    metadata = mg3d_metadata(file)
    if isinstance(metadata.get("preprocessing"), dict):
        return metadata["preprocessing"]
    with suppress(KeyError, TypeError, ValueError):  # no or incomplete settings
        return preprocessing_of(stored_settings(file), training_recipe(metadata))
    return RELEASED_PREPROCESSING if is_released else None


def training_recipe(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Preparation recipe of the training volumes (of the first data set in HU); None if the file does not store it."""
    preprocessing = metadata.get("preprocessing")
    if isinstance(preprocessing, Mapping) and preprocessing.get("recipe"):
        return preprocessing["recipe"]
    recipes = metadata.get("recipes") or {}
    return next((recipe for name, recipe in recipes.items() if recipe and name in DATASETS and DATASETS[name].unit == "hu"), None)


def preprocessing_of(settings: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Input that weights trained with these flat settings need; without a recipe, with the preparation's default crop."""
    defaults = {name: value for name, value in RELEASED_PREPROCESSING.items() if recipe is None or name != "crop_fraction"}
    return defaults | ({} if recipe is None else {"recipe": dict(recipe)}) | {
        "shape": list(volume_shape(settings["image_size"], settings.get("volume_size", ()))),
        "window_hu": list(settings["window_hu"]),
        "text": f"lower case, at most {settings['max_text_len']} tokens",
    }


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    parts: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        if is_parameter(name):
            part = part_of(name)
            count, size = parts.get(part, (0, 0))
            parts[part] = (count + 1, size + tensor.numel())
    return parts
