"""CT-RATE as a few tiny Arrow rows, and a tiny pre-trained model for them."""

import numpy as np
import torch
from downstream.folders import load
from small_arrow import small_tokenizer, write_split

from mg3d.checkpoints.pretrained import save_pretrained
from mg3d.config import resolve
from mg3d.finetune.kinds.registry import build_kind
from mg3d.finetune.settings import parse_settings
from mg3d.finetune.sources import is_synthetic
from mg3d.models.build import build_untrained

SHAPE = (32, 24, 32)
SIZES = {
    "image_size": 32, "mim_patch_size": 8, "embed_dim": 12, "patch_size": 4, "window_size": 4, "depths": [2], "num_heads": [2],
    "hidden_size": 24, "embedding_size": 16, "fusion_heads": 4, "pool_queries": 2, "tiny_text_width": 16, "tiny_text_heads": 2,
}  # fmt: skip


def voxels(number, shape):
    return np.random.default_rng(number).integers(-1200, 1200, shape).astype(np.int16)


def write_rate(root, *, unit="hu"):
    for split, patients, first in (("train", 6, 0), ("val", 4, 20), ("test", 5, 40)):
        write_split(
            root, "ct_rate", split, patients=patients, first=first, reconstructions=2, shape=SHAPE, unit=unit, voxels=voxels
        )
    return root


def save_model(folder, **changes):
    settings = resolve(["tiny"], SIZES | changes)
    tokenizer = small_tokenizer(folder.parent / "words")
    model = build_untrained(settings, len(tokenizer))
    return save_pretrained(model, folder, settings=settings, tokenizer=tokenizer)


def kind_and_cases(root, **given):
    """(kind, cases) of the folder with these settings and options, as its command would make them."""
    module = load("CT-RATE")
    given = {"data_root": str(root), "pretrained": "none", "num_workers": 0, "accelerator": "cpu", "batch_size": 3} | given
    options = {name: given.get(name, value) for name, value in module.TASK.options.items()}
    where = {"data_root": str(root), "pretrained": str(given["pretrained"]), "synthetic": is_synthetic(str(root))}
    task = module.TASK.adapt(module.TASK, options | where)
    settings = parse_settings(given, defaults={**task.defaults}, options=task.options)
    return build_kind(task, settings), task.read_cases(root, settings)


def batch_of(kind, cases):
    from monai.data.utils import list_data_collate

    data = kind.evaluation_data(cases)
    return list_data_collate([data[place] for place in range(len(cases))])


def network_of(kind, cases):
    torch.manual_seed(0)
    kind.fit(cases)
    return kind.network(None)
