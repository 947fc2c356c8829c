"""Load a `ScanModel` from any checkpoint, folder or hub id."""

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
from mg3d.inference.scan_model import ScanModel
from mg3d.models.build import build_vision
from mg3d.settings.parse import parse
from mg3d.settings.presets import PRESETS


def load(
    path: str | Path, *, device: str = "auto", tokenizer: str | Path | None = None, batch: int = 4, revision: str | None = None
) -> ScanModel:
    """Load a model for inference. A warning on stderr names what the checkpoint does not record of its preprocessing.

    Args:
        path: folder of a run (its last checkpoint), `RUN/last`, `RUN/best`, checkpoint of a run, folder of `save_pretrained`,
            hub id, or a released file or other known image encoder (which embeds scans only).
        device: `cpu`, `cuda`, `cuda:1` ...; `auto` uses the GPU if available.
        tokenizer: folder or hub name; by default the one stored with the model or the run.
        batch: maximum number of scans per forward pass.
        revision: revision of a hub id.

    Raises:
        FileNotFoundError: the path does not exist, locally or on the hub.
        ValueError: it is not a model, or a part is missing.
    """
    where = _device(device)
    found = find_local(path)
    if found is None:
        pretrained = from_pretrained(path, revision=revision)
    elif (found / CONFIG).is_file():
        pretrained = from_pretrained(found)
    else:
        file = read_checkpoint(found)
        if "mg3d_finetune" in file.metadata:
            raise ValueError(
                f"{found} is a fine-tuned checkpoint. Use it with mode=predict of its fine-tuning task (downstream/README.md)."
            )
        if "text_config" not in mg3d_metadata(file):
            return _warn(_image_encoder(checkpoint_info(file, map_keys(file.tensors)), where, batch))
        pretrained = from_run(found, tokenizer=tokenizer)
    if tokenizer is not None:
        pretrained = pretrained._replace(tokenizer=load_tokenizer(str(tokenizer)))
    return _warn(_full_model(pretrained, where, batch))


def _warn(model: ScanModel) -> ScanModel:
    if model.preprocessing.note:
        print(f"mg3d: warning: {model.preprocessing.note}", file=sys.stderr)
    return model


def _full_model(pretrained: Pretrained, device: torch.device, batch: int) -> ScanModel:
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


def _image_encoder(found: CheckpointInfo, device: torch.device, batch: int) -> ScanModel:
    """An image encoder built by a preset, with the weights of a file."""
    if found.encoder not in PRESETS:
        raise ValueError(
            f"{found.path} ({found.description}, encoder {found.encoder}) does not record its architecture, and no preset "
            "has this encoder. Build the model, fill it with mg3d.load_weights and save it with mg3d.save_pretrained."
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
        raise ValueError(f"device {name!r} is not available ({str(error).splitlines()[0][:80]}). Use cpu or auto.") from error
    return torch.device(name)
