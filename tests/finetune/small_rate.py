"""CT-RATE as a few small Arrow rows, and a small pre-trained model for them."""

import numpy as np
import torch
from downstream.folders import load
from small_arrow import small_tokenizer, write_split

from mg3d.checkpoints.pretrained import save_pretrained
from mg3d.config import resolve
from mg3d.finetune.cases import Split
from mg3d.finetune.dataset import collate
from mg3d.finetune.settings import parse_settings
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


def task_and_cases(root, **overrides):
    """(task type, cases) of the folder with these settings, as its command makes them."""
    task = load("CT-RATE").TASK
    overrides = {"data_root": str(root), "num_workers": 0, "accelerator": "cpu", "batch_size": 3} | overrides
    overrides = {name: str(value) for name, value in overrides.items()}
    settings = task.resolve(parse_settings(task.settings, overrides, task.defaults(overrides, False)))
    return task.build(settings), task.read_cases(root, settings)


def batch_of(task_type, cases):
    data = task_type.evaluation_data(cases)
    return collate([data[index] for index in range(len(cases))])


def network_of(task_type, cases):
    torch.manual_seed(0)
    task_type.setup(Split(cases, [], []), {})
    return task_type.network(None)
