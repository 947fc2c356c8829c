"""Patch merging and norm statistics: they decide the features of an encoder, but are invisible in names and shapes.

MONAI changed the patch merging of its Swin and kept all names and shapes; batch norms may or may not use running statistics.
Weights in the wrong variant give different features and no error.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import nn

from mg3d.checkpoints.detection import DetectedEncoder, is_released
from mg3d.checkpoints.key_mapping import MappedKeys
from mg3d.checkpoints.read import CheckpointFile
from mg3d.settings.schema import PatchMerging

Merging = Literal[PatchMerging, "unknown", "none"]


def mg3d_metadata(file: CheckpointFile) -> dict[str, Any]:
    """What mg3d stored about a model in the file; {} for files of other programs."""
    metadata = file.metadata.get("mg3d")
    return metadata if isinstance(metadata, dict) else {}


def stored_settings(file: CheckpointFile) -> Mapping[str, Any]:
    """The flat settings that mg3d stored in the file; {} for files of other programs."""
    settings = mg3d_metadata(file).get("settings")
    return settings if isinstance(settings, Mapping) else {}


def merging_of_file(file: CheckpointFile, mapped: MappedKeys, encoder: DetectedEncoder | None) -> tuple[Merging, str]:
    """The patch merging that the weights were trained with, and how it is known."""
    if encoder is None or encoder.architecture != "swin":
        return "none", "only Swin has one"
    stored = stored_settings(file).get("patch_merging")
    if stored in get_args(PatchMerging):
        return stored, "stored in the file"
    if mapped.style == "released" and is_released(encoder):
        return "legacy", "all released MG-3D weights"
    return "unknown", "not stored in the file; the variants have identical tensors"


def merging_of(model: nn.Module) -> PatchMerging | None:
    """The patch merging that a model or encoder computes; None without a Swin.

    Raises:
        ValueError: several variants, or an unknown one.
    """
    from monai.networks.nets import swin_unetr

    from mg3d.models.vision.swin import LegacyPatchMerging

    known: dict[type, PatchMerging] = {
        LegacyPatchMerging: "legacy", swin_unetr.PatchMerging: "monai", swin_unetr.PatchMergingV2: "monai_v2",
    }  # fmt: skip
    layers = [module for name, module in model.named_modules() if name.endswith(".downsample") and hasattr(module, "reduction")]
    found = sorted({known.get(type(layer), type(layer).__qualname__) for layer in layers})
    if len(found) > 1 or not set(found) <= set(get_args(PatchMerging)):
        raise ValueError(
            f"the model's patch merging is {' and '.join(found)}; it must be exactly one of {', '.join(get_args(PatchMerging))}"
        )
    return found[0] if found else None


def agree_on_merging(path: str, of_file: tuple[Merging, str], of_model: Merging | None, given: str | None) -> Merging:
    """The patch merging that file, model and argument `merging` agree on.

    Raises:
        ValueError: they differ, or the file's is unknown and none is given.
    """
    known, source = of_file
    if given and given not in get_args(PatchMerging):
        raise ValueError(f"merging={given!r}: must be one of {', '.join(get_args(PatchMerging))}")
    if known == "none" or of_model is None:
        return "none"
    if known == "unknown" and not given:
        raise ValueError(
            f"{path}: the patch merging is unknown ({source}), and the wrong one gives different features without an error. Pass "
            "merging='legacy' (MG-3D, early MONAI), 'monai' (MONAI's default) or 'monai_v2' (its mergingv2); "
            "on the command line load_patch_merging=... or --merging ..."
        )
    if given and known not in ("unknown", given):
        raise ValueError(f"{path} has patch merging {known!r} ({source}), not merging={given!r}")
    merging = given or known
    if merging != of_model:
        raise ValueError(
            f"{path} was trained with patch merging {merging!r}, but the model computes {of_model!r}: same names and shapes, "
            f"different features. Build the model with patch_merging={merging}"
        )
    return merging


def norms_of_file(file: CheckpointFile, mapped: MappedKeys, encoder: DetectedEncoder | None) -> str:
    """Norm statistics that a U-Net was trained with: `batch`, `instance`, `unknown`, or `none` for other encoders."""
    if encoder is None or encoder.architecture != "unet":
        return "none"
    default = "batch" if mapped.style == "released" and is_released(encoder) else "unknown"
    return str(stored_settings(file).get("norm_statistics") or default)


def compare_norms(path: str, of_file: str, encoder: nn.Module) -> list[str]:
    """Notes on norm statistics of file and encoder that differ, but agree for one volume at a time.

    Raises:
        ValueError: they never agree: the encoder uses running statistics, and the weights were trained without.
    """
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d)]
    of_model = str(getattr(norms[0], "statistics", "running")) if norms else "none"
    if "none" in (of_file, of_model) or of_file == of_model or (of_file, of_model) == ("unknown", "running"):
        return []
    if of_model == "running":
        raise ValueError(
            f"{path} was trained with norm_statistics={of_file!r}, but the model uses running statistics: same names and shapes, "
            "different features. Use mg3d's U-Net"
        )
    if of_file == "unknown":
        return [f"norm statistics of the file are unknown (Models Genesis: running); the model uses {of_model} statistics"]
    return [
        f"the file was trained with norm_statistics={of_file!r}, the model uses {of_model!r}: equal for one volume at a time, "
        "different for larger batches"
    ]
