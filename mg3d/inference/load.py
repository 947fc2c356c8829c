"""From a path or name to a model that answers, whatever was saved there."""

import sys
from pathlib import Path

import torch

from mg3d.checkpoints.info import RELEASED_PREPROCESSING, CheckpointInfo, checkpoint_info
from mg3d.checkpoints.key_mapping import map_keys
from mg3d.checkpoints.load import load_weights
from mg3d.checkpoints.patch_merging import mg3d_metadata
from mg3d.checkpoints.pretrained import Pretrained, from_pretrained, from_run
from mg3d.checkpoints.read import read_checkpoint
from mg3d.checkpoints.resolve import CONFIG, find_local
from mg3d.datasets.tokenizer import load_tokenizer
from mg3d.inference.model import ScanModel
from mg3d.models.build import build_vision
from mg3d.settings.parse import parse
from mg3d.settings.presets import PRESETS


def load(
    path: str | Path, *, device: str = "auto", tokenizer: str | Path | None = None, batch: int = 4, revision: str | None = None
) -> ScanModel:
    """A model that answers, from what lies at `path`; a line on the error stream says what of its preparation is not known.

    Args:
        path: a folder that mg3d saved, a run's folder (its last checkpoint), `RUN/last` or `RUN/best`, a checkpoint of a run, a
            released file or another image encoder that is known (which then embeds scans and reads no text), or a hub id.
        device: `cpu`, `cuda`, `cuda:1` ...; auto = the GPU where there is one.
        tokenizer: a folder or hub name; when left out it is found with the model or beside the run's checkpoints.
        batch: most scans in one pass.
        revision: of a hub id.

    Raises:
        FileNotFoundError: there is nothing of that name, here or on the hub.
        ValueError: it is something else, or lacks a part; says which.
    """
    where = _device(device)
    found = find_local(path)
    if found is None:
        pretrained = from_pretrained(path, revision=revision)
    elif (found / CONFIG).is_file():
        pretrained = from_pretrained(found)
    else:
        file = read_checkpoint(found)
        if "text_config" not in mg3d_metadata(file):
            return _told(_encoder_alone(checkpoint_info(file, map_keys(file.tensors)), where, batch))
        pretrained = from_run(found, tokenizer=tokenizer)
    if tokenizer is not None:
        pretrained = pretrained._replace(tokenizer=load_tokenizer(str(tokenizer)))
    return _told(_whole(pretrained, where, batch))


def _told(model: ScanModel) -> ScanModel:
    if model.preprocessing.note:
        print(f"mg3d: {model.preprocessing.note}", file=sys.stderr)
    return model


def _whole(pretrained: Pretrained, device: torch.device, batch: int) -> ScanModel:
    pretrained.model.text.check_vocabulary(
        len(pretrained.tokenizer) if pretrained.tokenizer is not None else pretrained.model.text.vocabulary_size
    )
    return ScanModel(
        pretrained.model,
        settings=pretrained.settings,
        tokenizer=pretrained.tokenizer,
        config=pretrained.config,
        device=device,
        batch=batch,
    )


def _encoder_alone(found: CheckpointInfo, device: torch.device, batch: int) -> ScanModel:
    """An image encoder that a preset builds, with a file's weights."""
    if found.encoder not in PRESETS:
        raise ValueError(
            f"{found.path} ({found.description}, encoder {found.encoder}) stores no settings, and no preset builds that "
            "encoder; build one and fill it with mg3d.load_weights, then mg3d.save_pretrained gives a folder that can be loaded"
        )
    settings = parse(PRESETS[found.encoder])
    vision = build_vision(settings)
    load_weights(vision, found.path)
    config = {"preprocessing": found.preprocessing or RELEASED_PREPROCESSING, "provenance": found.provenance}
    return ScanModel(vision, settings=settings, tokenizer=None, config=config, device=device, batch=batch)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0][:80]}); try cpu or auto") from error
    return torch.device(name)
