"""What names and shapes of an image encoder do not show and yet decides its features: patch merging, statistics of norms.

MONAI changed the patch merging of its Swin and kept names and shapes; batch norms hold running statistics that some programs read
and others do not. Weights in the wrong one give other features and no error.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import nn

from mg3d.checkpoints.families import EncoderShape, is_released
from mg3d.checkpoints.read import CheckpointFile
from mg3d.checkpoints.styles import Named, vision_shapes
from mg3d.settings.schema import PatchMerging

Merging = Literal[PatchMerging, "unknown", "none"]


def identity_of(file: CheckpointFile) -> dict[str, Any]:
    """What one of our own files says about itself; {} for others."""
    identity = file.facts.get("mg3d")
    return identity if isinstance(identity, dict) else {}


def settings_of(file: CheckpointFile) -> Mapping[str, Any]:
    """The flat settings that one of our own files was trained with; {} for others."""
    settings = identity_of(file).get("settings")
    return settings if isinstance(settings, Mapping) else {}


def holds_released_encoder(named: Named) -> bool:
    """Whether names, and names and shapes behind them, are those of weights that MG-3D released."""
    return named.style == "released" and is_released(vision_shapes(named.tensors))


def merging_of_file(file: CheckpointFile, named: Named, shape: EncoderShape | None) -> tuple[Merging, str]:
    """The patch merging that the weights were trained with, and how that is known."""
    if shape is None or shape.kind != "swin":
        return "none", "only a Swin has one"
    entries = [entry.get("patch_merging") for entry in (identity_of(file), settings_of(file))]
    stored = {entry for entry in entries if isinstance(entry, str)} - {"", "none"}
    if len(stored) > 1:
        return "unknown", f"the file contradicts itself: {' and '.join(sorted(map(repr, stored)))} are stored in it"
    if stored and (told := stored.pop()) in get_args(PatchMerging):
        return told, "stored in the file"
    if holds_released_encoder(named):
        return "legacy", "true of all released MG-3D weights"
    return "unknown", "MONAI computed several under one name, and the tensors are alike; ask whoever trained it"


def merging_of(model: nn.Module) -> PatchMerging | None:
    """Patch merging that a model or encoder computes; None without a Swin.

    Raises:
        ValueError: it mixes several, or has one that is not known here.
    """
    from monai.networks.nets import swin_unetr  # a passport needs no network: not at the top

    from mg3d.models.vision.swin import LegacyPatchMerging

    known: dict[type, PatchMerging] = {
        LegacyPatchMerging: "legacy", swin_unetr.PatchMerging: "monai", swin_unetr.PatchMergingV2: "monai_v2",
    }  # fmt: skip
    merges = [module for name, module in model.named_modules() if name.endswith(".downsample") and hasattr(module, "reduction")]
    found = {type(module) for module in merges}
    strange = sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in found - known.keys())
    if strange or len(found) > 1:
        told = strange or sorted(known[kind] for kind in found)
        raise ValueError(
            f"the model's patch merging is {' and '.join(told)}; build it with one of {', '.join(get_args(PatchMerging))} alone"
        )
    return known[found.pop()] if found else None


def agree_on_merging(path: str, files: tuple[Merging, str], models: PatchMerging | None, users: str | None) -> Merging:
    """The one patch merging of file, model and the user's word.

    Raises:
        ValueError: they differ, or nobody knows the file's.
    """
    known, source = files
    if users and users not in get_args(PatchMerging):
        raise ValueError(f"merging={users!r}: expected {' or '.join(get_args(PatchMerging))}")
    if known == "none" or models is None:
        return "none"
    if known == "unknown" and not users:
        raise ValueError(
            f"{path} does not tell its patch merging ({source}), and a wrong guess gives other features without any error: find "
            "out and say merging='legacy' (MG-3D, early MONAI), 'monai' (MONAI's default) or 'monai_v2' (its mergingv2) "
            "(load_patch_merging=... on the command line)"
        )
    if users and known not in ("unknown", users):
        raise ValueError(f"{path} has patch merging {known!r} ({source}), not merging={users!r}")
    agreed = users or known
    if agreed != models:
        raise ValueError(
            f"{path} was trained with patch merging {agreed!r} and the model computes {models!r}: equal names and shapes, "
            f"other features; build the model with patch_merging={agreed}"
        )
    return agreed


def norms_of_file(file: CheckpointFile, named: Named, shape: EncoderShape | None) -> str:
    """What the norms of a U-Net measured in training: `batch`, `instance`, `unknown`, or `none` for other encoders."""
    if shape is None or shape.kind != "unet":
        return "none"
    stored = settings_of(file).get("norm_statistics")
    return str(stored or ("batch" if holds_released_encoder(named) else "unknown"))


def agree_on_norms(path: str, files: str, encoder: nn.Module) -> list[str]:
    """Sentences on what the norms of file and encoder measure, where that differs and gives the same for one volume at a time.

    Raises:
        ValueError: they never give the same: the encoder reads running statistics, and the file's training did not.
    """
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d)]
    ours = str(getattr(norms[0], "statistics", "running")) if norms else "none"
    if "none" in (files, ours) or files == ours:
        return []
    if files == "unknown":
        if ours == "running":
            return []
        return [f"the file does not tell what its norms measured (Models Genesis: running ones); the model's measure each {ours}"]
    if ours == "running":
        raise ValueError(
            f"{path} was trained with norm_statistics={files!r} and the model reads running statistics: equal names and shapes, "
            "other features; build the U-Net of this package"
        )
    return [
        f"the file was trained with norm_statistics={files!r}, the model computes {ours!r}: equal for one volume at a time, "
        "other features in larger batches"
    ]
