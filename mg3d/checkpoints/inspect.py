"""The passport of a file of weights: what it is, told from its tensors alone; no network is built."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mg3d.checkpoints.families import EncoderShape, covered, encoder_shape, is_parameter
from mg3d.checkpoints.layout import part_of
from mg3d.checkpoints.merging import Merging, holds_released_encoder, identity_of, merging_of_file, norms_of_file, settings_of
from mg3d.checkpoints.read import CheckpointFile, read_checkpoint
from mg3d.checkpoints.styles import ELSEWHERE, Named, bring_to_our_names, vision_shapes
from mg3d.datasets.schema import DATASETS
from mg3d.settings.schema import CROP, volume_shape

RELEASED_PREPROCESSING: dict[str, Any] = {
    "axes": "z y x, +z superior, +y posterior, +x left",
    "shape": [128, 96, 128],
    "kept_share": list(CROP),
    "window_hu": [-1000.0, 1000.0],
    "range": [0.0, 1.0],
    "text": "lower case, at most 250 tokens",
}
"""How volumes reach the released weights: central share of each axis, resized, window to [0, 1] (the original's CT-RATE data)."""
_FACTS = ("epoch", "global_step", "pytorch-lightning_version", "format", "iteration", "current_epoch")


@dataclasses.dataclass(frozen=True)
class Passport:
    """What a file of weights is."""

    path: str
    layout: str
    """Format of the file, and where in it the tensors lie."""
    style: str
    """`mg3d`, `released`, `encoder`, `bert` or `unknown`: whose names the tensors have."""
    family: str
    """The same in words."""
    prefix: str
    """What stands before the names."""
    encoder: str
    """The preset word that builds the image encoder, or its kind: `swin`, `unet`, `nnunet`, `nnunet_v2_*`, `none`."""
    width: int | None
    details: dict[str, Any]
    """depths, num_heads, window_size, patch_size ... of the image encoder, as far as the file holds it."""
    coverage: float | None
    """Share of the parameters of such an encoder (of the preset's, where one builds it) that is there; None: not known."""
    text: dict[str, int] | None
    """layers, width, vocabulary, positions of the text encoder."""
    merging: Merging
    """Patch merging of a Swin; `none` for other encoders."""
    merging_source: str
    norm_statistics: str
    """What the norms of a U-Net measured; `none` for other encoders."""
    precision: dict[str, int]
    """Type of numbers -> tensors of it."""
    parts: dict[str, tuple[int, int]]
    """Part, in our names -> (tensors, numbers in them), without tables of positions and running statistics."""
    preprocessing: dict[str, Any] | None
    provenance: dict[str, Any]
    """What the file says about its making: step, epoch, settings, package."""

    def json(self) -> str:
        """The passport as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def __str__(self) -> str:
        return "\n".join(f"{name:14}{value}" for name, value in self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        details = ", ".join(f"{name} {value}" for name, value in self.details.items())
        share = "not known" if self.coverage is None else f"{self.coverage:.1%} of its parameters"
        text = ", ".join(f"{name} {value}" for name, value in (self.text or {}).items())
        stored = self.provenance.get("provenance")  # of an exported folder, with the steps of its run
        everything = self.provenance | (stored if isinstance(stored, dict) else {})
        told = [f"{name} {value}" for name, value in everything.items() if not isinstance(value, (dict, list))]
        rows = [
            ("file", self.path),
            ("layout", self.layout),
            ("kind", self.family + (f", names behind {self.prefix!r}" if self.prefix else "")),
            ("encoder", f"{self.encoder}, width {self.width}" if self.width else self.encoder),
            ("", details),
            ("coverage", share if self.width else "no image encoder"),
            ("patch merging", f"{self.merging} ({self.merging_source})"),
            ("norms measure", "" if self.norm_statistics == "none" else self.norm_statistics),
            ("text encoder", text or "none"),
            ("precision", ", ".join(f"{kind} x {count}" for kind, count in self.precision.items())),
            ("preprocessing", json.dumps(self.preprocessing) if self.preprocessing else "not stated in the file"),
            ("provenance", ", ".join(told) or "not stated in the file"),
            ("parts", ""),
        ]
        rows += [("", f"{part:20}{count:5} tensors {size / 1e6:9.3f} M") for part, (count, size) in self.parts.items()]
        return [row for row in rows if row[1] or row[0] == "parts"]


def inspect_checkpoint(path: str | Path, *, prefix: str | None = None, entry: str | None = None) -> Passport:
    """The passport of a file; `entry` and `prefix` as in `read_checkpoint` and `bring_to_our_names`, which refuse."""
    file = read_checkpoint(path, entry=entry)
    return passport(file, bring_to_our_names(file.tensors, prefix=prefix))


def passport(file: CheckpointFile, named: Named) -> Passport:
    """The passport of a file that was read and whose tensors were brought to our names."""
    shape = vision_shape(named.tensors)
    merging, source = merging_of_file(file, named, shape)
    return Passport(
        path=str(file.path),
        layout=file.layout + (f", tensors in {file.entry!r}" if file.entry else ""),
        style=named.style,
        family=named.family,
        prefix=named.prefix,
        encoder=shape.name if shape else "none",
        width=shape.width if shape else None,
        details=({"in_channels": shape.in_channels} | shape.details) if shape else {},
        coverage=covered(shape, vision_shapes(named.tensors)) if shape else None,
        text=text_shape(named.tensors),
        merging=merging,
        merging_source=source,
        norm_statistics=norms_of_file(file, named, shape),
        precision=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in named.tensors.values())),
        parts=_parts(named.tensors),
        preprocessing=_preprocessing(file, named),
        provenance=_provenance(file),
    )


def vision_shape(tensors: Mapping[str, Tensor]) -> EncoderShape | None:
    """The image encoder among tensors under our names."""
    return encoder_shape(vision_shapes(tensors))


def text_shape(tensors: Mapping[str, Tensor]) -> dict[str, int] | None:
    """Sizes of the text encoder among tensors under our names."""
    words = tensors.get("text.bert.embeddings.word_embeddings.weight")
    if words is None or words.ndim != 2:
        return None
    layers = {name.split(".")[4] for name in tensors if name.startswith("text.bert.encoder.layer.")}
    positions = tensors.get("text.bert.embeddings.position_embeddings.weight")
    return {
        "layers": len(layers),
        "width": words.shape[1],
        "vocabulary": words.shape[0],
        "positions": len(positions) if positions is not None and positions.ndim else 0,
    }


def _preprocessing(file: CheckpointFile, named: Named) -> dict[str, Any] | None:
    identity = identity_of(file)
    if isinstance(identity.get("preprocessing"), dict):
        return identity["preprocessing"]
    if settings := settings_of(file):
        try:
            return preprocessing_of(settings, training_recipe(identity))
        except (KeyError, TypeError, ValueError):  # not all of them are there, or they are none
            return None
    return RELEASED_PREPROCESSING if holds_released_encoder(named) else None


def training_recipe(identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the volumes that weights were trained on were prepared, as index files tell it; None where the file does not say.

    Of several data sets it is that of the first whose volumes are in HU.
    """
    saved = identity.get("preprocessing")
    if isinstance(saved, Mapping) and saved.get("recipe"):
        return saved["recipe"]
    recipes = identity.get("recipes") or {}
    return next((told for name, told in recipes.items() if told and name in DATASETS and DATASETS[name].unit == "hu"), None)


def preprocessing_of(settings: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What volumes and reports must look like for weights trained with these flat settings, on volumes prepared by `recipe`.

    Without a recipe the share that is kept of each axis is that of the preparation's default.
    """
    usual = {name: value for name, value in RELEASED_PREPROCESSING.items() if recipe is None or name != "kept_share"}
    return usual | ({} if recipe is None else {"recipe": dict(recipe)}) | {
        "shape": list(volume_shape(settings["image_size"], settings.get("volume_size", ()))),
        "window_hu": list(settings["window_hu"]),
        "text": f"lower case, at most {settings['max_text_len']} tokens",
    }


def _provenance(file: CheckpointFile) -> dict[str, Any]:
    told = {name: file.facts[name] for name in _FACTS if name in file.facts}
    identity = identity_of(file)
    for name in ("package_version", "patch_merging", "provenance", "settings"):
        if name in identity:
            told[name] = identity[name]
    return told


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    parts: dict[str, tuple[int, int]] = {}
    learned = {name: tensor for name, tensor in tensors.items() if is_parameter(name)}
    for name, tensor in learned.items():
        part = part_of(name) + (" (not of ours)" if name.startswith(ELSEWHERE) else "")
        count, size = parts.get(part, (0, 0))
        parts[part] = (count + 1, size + tensor.numel())
    return parts
