"""Models and batches of the real sizes, made of random numbers: nothing is read or downloaded."""

import math

import torch
from transformers import BertConfig, BertModel

from mg3d.benchmarks.timing import Options
from mg3d.models.build import build_model
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder
from mg3d.settings.parse import parse
from mg3d.settings.schema import Settings
from mg3d.types import Batch

VOCABULARY = 28_996
"""Words of BERT's cased vocabulary."""
VIEW_TOKENS = 48
CUBE = 16
MASKED_WORDS = 0.15
"""Share of tokens that are asked for in masked report modelling."""
FIRST_WORD = 5
"""Ids below it stand for [CLS], [SEP] and the like."""


def paper_settings(options: Options) -> Settings:
    """The default recipe for volumes of this size; `quick`: a small network."""
    small = {
        "embed_dim": 12, "depths": [1], "num_heads": [2], "patch_size": 8, "hidden_size": 24, "embedding_size": 16,
        "mim_decoder": "linear",
    }  # fmt: skip
    return parse({"volume_size": list(options.size), **(small if options.quick else {})})


def bert_base(*, frozen: bool = True, small: bool = False) -> TextEncoder:
    """A BERT of RadBERT's size with random weights."""
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48} if small else {}
    return TextEncoder(BertModel(BertConfig(vocab_size=VOCABULARY, **size), add_pooling_layer=False), frozen=frozen)


def build(options: Options) -> tuple[MG3D, Settings]:
    """Model in training mode and settings of the default recipe."""
    torch.manual_seed(0)
    settings = paper_settings(options)
    model = build_model(settings, bert_base(small=options.quick)).train()
    return model, settings


def random_batch(options: Options, *, vocabulary: int = VOCABULARY, cube: int = CUBE) -> Batch:
    """`batch` patients with reports of all `tokens` tokens in `sentences` sentences of like length, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    size, tokens, views = options.batch, options.tokens, 2
    ids = torch.randint(FIRST_WORD, vocabulary, (size, tokens), generator=generator)
    index = torch.arange(tokens) * options.sentences // tokens
    index = index.expand(size, -1).contiguous()
    asked = torch.rand(size, tokens, generator=generator) < MASKED_WORDS
    cut = slice(0, min(VIEW_TOKENS, tokens))
    cubes = [side // cube for side in options.size]
    keys = torch.arange(size)
    return Batch(
        volume=torch.rand(size, 1, *options.size, generator=generator),
        patch_mask=torch.rand(size, *cubes, generator=generator).argsort(dim=-1) < math.ceil(cubes[-1] / 2),
        report_ids=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool), sentence_index=index,
        sentence_mask=torch.ones(size, options.sentences, dtype=torch.bool),
        sentence_polarity=torch.randint(0, 2, (size, options.sentences), generator=generator).mul(2).sub(1).to(torch.int8),
        mlm_ids=torch.where(asked, FIRST_WORD - 1, ids), mlm_labels=torch.where(asked, ids, -100),
        view_ids=ids[:, None, cut].repeat(1, views, 1),
        view_attention_mask=torch.ones(size, views, cut.stop, dtype=torch.bool),
        view_sentence_index=index[:, None, cut].repeat(1, views, 1),
        patient_key=keys, report_key=keys, view_key=keys[:, None] * views + torch.arange(views),
        labels=torch.zeros(size, 18, dtype=torch.int8), study_id=[str(row) for row in range(size)],
    )  # fmt: skip


def on_device(batch: Batch, device: str) -> Batch:
    """The batch, its tensors moved."""
    return Batch(*(value.to(device) if isinstance(value, torch.Tensor) else value for value in batch))
