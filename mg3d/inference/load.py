"""Load a `ScanModel` from any checkpoint, folder or hub id."""

import sys
from pathlib import Path
from typing import Any

from mg3d.checkpoints.info import RELEASED_PREPROCESSING, CheckpointInfo, checkpoint_info
from mg3d.checkpoints.key_mapping import map_keys
from mg3d.checkpoints.load import load_weights
from mg3d.checkpoints.patch_merging import mg3d_metadata
from mg3d.checkpoints.pretrained import from_pretrained, from_run
from mg3d.checkpoints.read import read_checkpoint
from mg3d.checkpoints.resolve import CONFIG, find_local
from mg3d.datasets.tokenizer import load_tokenizer
from mg3d.inference.scan_model import ScanModel
from mg3d.models.build import build_vision
from mg3d.precision import find_device, inference_precision
from mg3d.settings.parse import parse
from mg3d.settings.presets import PRESETS


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    tokenizer: str | Path | None = None,
    batch: int = 4,
    revision: str | None = None,
) -> ScanModel:
    """Load a model for inference. A warning on stderr names what the checkpoint does not record of its preprocessing.

    Args:
        path: folder of a run (its last checkpoint), `RUN/last`, `RUN/best`, checkpoint of a run, folder of `save_pretrained`,
            hub id, or a released file or other known image encoder (which embeds scans only).
        device: `cpu`, `cuda`, `cuda:1` ...; `auto` uses the GPU if available.
        precision: `32-true`, `bf16-mixed` or `16-mixed`; `auto` is that of the training on a GPU, and float32 on a CPU.
        tokenizer: folder or hub name; by default the one stored with the model or the run.
        batch: maximum number of scans per forward pass.
        revision: revision of a hub id.

    Raises:
        FileNotFoundError: the path does not exist, locally or on the hub.
        ValueError: it is not a model, or a part is missing.
    """
    target, parts = find_device(device), _load_parts(path, tokenizer=tokenizer, revision=revision)
    trained = parts["settings"].run.precision
    model = ScanModel(**parts, device=target, batch=batch, precision=inference_precision(precision, target, trained=trained))
    if model.preprocessing.note:
        print(f"mg3d: warning: {model.preprocessing.note}", file=sys.stderr)
    return model


def _load_parts(path: str | Path, *, tokenizer: str | Path | None, revision: str | None) -> dict[str, Any]:
    """Model, settings, tokenizer and config of a `ScanModel`."""
    local = find_local(path)
    if local is None:
        pretrained = from_pretrained(path, revision=revision)
    elif (local / CONFIG).is_file():
        pretrained = from_pretrained(local)
    else:
        file = read_checkpoint(local)
        if "mg3d_finetune" in file.metadata:
            raise ValueError(
                f"{local} is a fine-tuned checkpoint. Use it with mode=predict of its fine-tuning task (downstream/README.md)."
            )
        if "text_config" not in mg3d_metadata(file):
            return _image_encoder(checkpoint_info(file, map_keys(file.tensors)))
        pretrained = from_run(local, tokenizer=tokenizer)
    if tokenizer is not None:
        pretrained = pretrained._replace(tokenizer=load_tokenizer(str(tokenizer)))
    if pretrained.tokenizer is not None:
        pretrained.model.text.check_vocabulary(len(pretrained.tokenizer))
    return pretrained._asdict()


def _image_encoder(info: CheckpointInfo) -> dict[str, Any]:
    """An image encoder built by a preset, with the weights of a file."""
    if info.encoder not in PRESETS:
        raise ValueError(
            f"{info.path} ({info.description}, encoder {info.encoder}) does not record its architecture, and no preset "
            "has this encoder. Build the model, fill it with mg3d.load_weights and save it with mg3d.save_pretrained."
        )
    settings = parse(PRESETS[info.encoder])
    vision = build_vision(settings)
    load_weights(vision, info.path)
    config = {"preprocessing": info.preprocessing or RELEASED_PREPROCESSING, "provenance": info.provenance}
    return {"model": vision, "settings": settings, "tokenizer": None, "config": config}
