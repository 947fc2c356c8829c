"""dataset.json of the Medical Segmentation Decathlon and of nnU-Net (versions 1 and 2)."""

import json
from pathlib import Path
from typing import Any, NamedTuple


class DatasetDescription(NamedTuple):
    """Content of a dataset.json."""

    structures: tuple[str, ...]
    """Names of the label values 1, 2, ..."""
    modalities: tuple[str, ...]
    """Modality of each channel."""
    pairs: list[tuple[Path, Path]]
    """Image and label map of each training case."""


def read_dataset_json(path: Path, *, channel: int = 0) -> DatasetDescription:
    """The training cases of a dataset.json.

    channel: nnU-Net stores each channel in a file `<case>_<channel>`; the Decathlon stores all in one.

    Raises:
        FileNotFoundError: a label map is missing.
        ValueError: it has another structure, label values with a gap, regions, or no such channel.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        is_v2 = "channel_names" in stored
        modalities = stored["channel_names" if is_v2 else "modality"]
        names = {int(value): name for name, value in stored["labels"].items()} if is_v2 else {
            int(value): str(name) for value, name in stored["labels"].items()}  # fmt: skip
        modalities = tuple(str(modalities[str(index)]) for index in range(len(modalities)))
        pairs = _listed_pairs(path.parent, stored, channel)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a dataset.json of the Decathlon or nnU-Net ({type(error).__name__}: {error})") from error
    if sorted(names) != list(range(len(names))):
        values = ", ".join(map(str, sorted(names)))
        raise ValueError(f"{path} has the label values {values}; expected 0, 1, 2, ... without a gap")
    if channel >= len(modalities):
        raise ValueError(f"channel={channel}: {path.parent.name} has {len(modalities)} image(s), counted from 0")
    if missing := [mask for _, mask in pairs if not mask.is_file()]:
        raise FileNotFoundError(f"there is no mask {missing[0]}, which dataset.json lists")
    return DatasetDescription(tuple(names[value] for value in sorted(names) if value), modalities, pairs)


def _listed_pairs(folder: Path, stored: dict[str, Any], channel: int) -> list[tuple[Path, Path]]:
    if "training" not in stored:  # version 2 lists no cases
        ending = stored["file_ending"]
        masks = sorted(mask for mask in (folder / "labelsTr").glob(f"*{ending}") if not mask.name.startswith("."))
        names = [mask.name.removesuffix(ending) for mask in masks]
        return [(folder / "imagesTr" / f"{name}_{channel:04d}{ending}", mask) for name, mask in zip(names, masks, strict=True)]
    pairs = [(folder / entry["image"], folder / entry["label"]) for entry in stored["training"]]
    return [(_of_channel(image, channel), mask) for image, mask in pairs]


def _of_channel(image: Path, channel: int) -> Path:
    """Version 1 of nnU-Net lists `case.nii.gz` and stores `case_0000.nii.gz`."""
    stem, dot, ending = image.name.partition(".nii")
    with_channel = image.with_name(f"{stem}_{channel:04d}{dot}{ending}")
    return with_channel if not image.exists() and with_channel.exists() else image
