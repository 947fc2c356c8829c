"""Creates the cache of a frozen text encoder's features of all distinct training and validation reports."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mg3d.datasets.text_cache import FEATURES, INDEX, ORIGIN, ids_key, write_index
from mg3d.datasets.tokenizer import encode_report
from mg3d.files import replacing_folder, write_json
from mg3d.models.build import build_text_encoder
from mg3d.models.text.encoder import require_text_encoder
from mg3d.settings.schema import Settings
from mg3d.training.build import build_data, build_tokenizer
from mg3d.training.trainer import resolve_accelerator

BATCH_SIZE = 64


@torch.no_grad()
def cache_text(settings: Settings) -> dict[str, Any]:
    """Writes the folder `text_cache` atomically; returns its metadata.

    Features are computed in float32, on the GPU if there is one. Masked reports and views are random and not cached.

    Raises:
        ValueError: the folder contains files other than a cache, or the text encoder reads fewer than `max_text_len` tokens.
    """
    folder = Path(settings.text.text_cache)
    _refuse_to_replace(folder)
    if settings.text.text_encoder != "tiny":
        require_text_encoder(settings.text.text_encoder, settings.data.max_text_len)
    data = build_data(settings)
    tokenizer = build_tokenizer(settings, folder, data)
    device = torch.device("cuda" if resolve_accelerator(settings.run) == "gpu" else "cpu")
    text = build_text_encoder(settings, len(tokenizer)).to(device)
    parts = [*data.train_parts, *data.val_parts]
    reports = (part.report(study) for part in parts for study in range(len(part)))
    encoded = (encode_report(tokenizer, *report, settings.data.max_text_len).ids for report in reports)
    distinct = sorted({ids_key(ids): ids for ids in encoded}.items(), key=lambda item: len(item[1]))
    lengths = [len(ids) for _, ids in distinct]
    origin = {
        "encoder": text.fingerprint(), "max_text_len": settings.data.max_text_len,
        "reports": len(distinct), "tokens": sum(lengths), "width": text.width,
    }  # fmt: skip
    with replacing_folder(folder) as target:
        shape = (origin["tokens"], text.width)
        features = np.lib.format.open_memmap(target / FEATURES, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for first in range(0, len(distinct), BATCH_SIZE):
            rows = [torch.from_numpy(ids) for _, ids in distinct[first : first + BATCH_SIZE]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id).to(device)
            real = torch.arange(ids.shape[1], device=device) < torch.tensor([len(row) for row in rows], device=device)[:, None]
            values = text(ids, real)[real]
            features[start : start + len(values)] = values.cpu().numpy()
            start += len(values)
        features.flush()
        write_index(target, [key for key, _ in distinct], lengths)
        write_json(target / ORIGIN, origin)
    return origin


def _refuse_to_replace(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {FEATURES, INDEX, ORIGIN}):
        raise ValueError(f"text_cache={folder} contains files other than a cache; use a new or empty folder")
