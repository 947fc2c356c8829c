"""Makes the cache of a frozen text encoder's features: every distinct report of training and validation, once."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mg3d.datasets.text_cache import FEATURES, INDEX, ORIGIN, ids_key, write_index
from mg3d.datasets.tokenizer import encode_report
from mg3d.files import replacing_folder, write_json
from mg3d.models.build import build_text_encoder
from mg3d.settings.schema import Settings
from mg3d.training.build import build_data, build_tokenizer
from mg3d.training.trainer import resolve_accelerator

REPORTS_AT_ONCE = 64


@torch.no_grad()
def cache_text(settings: Settings) -> dict[str, Any]:
    """Writes the folder that `text_cache` names, whole or not at all; returns what it was made from.

    Computed in float32, on the GPU where there is one. Masked reports and views are drawn anew each time and are not in it.

    Raises:
        ValueError: the folder holds something else than a cache, which would be lost.
    """
    folder = Path(settings.text.text_cache)
    _refuse_to_replace(folder)
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
    with replacing_folder(folder) as beside:
        shape = (origin["tokens"], text.width)
        features = np.lib.format.open_memmap(beside / FEATURES, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for first in range(0, len(distinct), REPORTS_AT_ONCE):
            rows = [torch.from_numpy(ids) for _, ids in distinct[first : first + REPORTS_AT_ONCE]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id).to(device)
            real = torch.arange(ids.shape[1], device=device) < torch.tensor([len(row) for row in rows], device=device)[:, None]
            values = text(ids, real)[real]
            features[start : start + len(values)] = values.cpu().numpy()
            start += len(values)
        features.flush()
        write_index(beside, [key for key, _ in distinct], lengths)
        write_json(beside / ORIGIN, origin)
    return origin


def _refuse_to_replace(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {FEATURES, INDEX, ORIGIN}):
        raise ValueError(f"text_cache={folder} is there and holds other things than a cache; name a new or an empty folder")
