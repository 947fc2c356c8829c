"""Synthetic checkpoints with the keys and shapes of the released ones, and models that match them."""

import json
from functools import cache
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from mg3d.config import resolve
from mg3d.models.build import build_model
from mg3d.models.text.encoder import TextEncoder

KEYS = Path(__file__).parent / "checkpoints" / "keys"
LISTS = sorted(path.stem for path in KEYS.glob("*.json"))
LAYERS, WORDS = 2, 50
"""Of the small BERT that stands for the released one of 12 layers and 28,996 words."""


def key_list(name):
    """Released name -> shape."""
    return {key: tuple(shape) for key, shape in json.loads((KEYS / f"{name}.json").read_text()).items()}


def small_key_list():
    """The whole pre-training list with a smaller BERT."""
    kept = {}
    for name, shape in key_list("keys_swinb").items():
        layer = name.split(".")[3] if name.startswith("language_encoder.encoder.layer.") else "0"
        if int(layer) < LAYERS:
            kept[name] = tuple(WORDS if side == 28996 else side for side in shape)
    return kept


@cache
def position_table(side):
    """int64 [n, n], n = side**3: for two patches of a window, the number of their distance along z, y, x."""
    place = torch.cartesian_prod(*[torch.arange(side)] * 3)
    apart = place[:, None] - place[None] + side - 1
    return (apart * torch.tensor([(2 * side - 1) ** 2, 2 * side - 1, 1])).sum(-1)


def synthetic(shapes, dtype=torch.float32):
    """A state dict of one number per tensor, different for every tensor, exact in any precision; tables of positions are real."""
    return {
        name: position_table(round(shape[0] ** (1 / 3))).clone()
        if name.endswith("relative_position_index")
        else torch.full(shape, place, dtype=torch.int64)
        if name.endswith(("_ids", "num_batches_tracked"))
        else torch.full(shape, (1 + place % 128 / 128) * 2.0 ** (place // 128 - 3), dtype=dtype)
        for place, (name, shape) in enumerate(shapes.items())
    }


def small_bert(words=WORDS, layers=LAYERS, width=768, heads=12, positions=512, *, frozen=True):
    config = BertConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
        max_position_embeddings=positions,
    )  # fmt: skip
    return TextEncoder(BertModel(config, add_pooling_layer=False), frozen=frozen)


def pretraining_model(*words, **settings):
    """The model of preset words around the small BERT."""
    return build_model(resolve(words, settings), small_bert())
