"""Models and batches of realistic size with random values; nothing is read or downloaded."""

import math

import torch
from transformers import BertConfig, BertModel

from mg3d.benchmarks.timing import BenchmarkOptions
from mg3d.datasets.masking import label_positions
from mg3d.models.build import build_model
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder
from mg3d.settings.parse import parse
from mg3d.settings.schema import Settings
from mg3d.types import Batch

VOCAB_SIZE = 28_996
"""Of BERT's cased vocabulary."""
VIEW_TOKENS = 48
PATCH_SIZE = 16
MASKED_FRACTION = 0.15
"""Fraction of tokens predicted in masked report modelling."""
FIRST_TOKEN = 5
"""Smaller ids are special tokens."""


def default_settings(options: BenchmarkOptions) -> Settings:
    """The default recipe for volumes of this size; with `quick`, a small network."""
    small = {
        "embed_dim": 12, "depths": [1], "num_heads": [2], "patch_size": 8, "hidden_size": 24, "embedding_size": 16,
        "mim_decoder": "linear",
    }  # fmt: skip
    return parse({"volume_size": list(options.size), **(small if options.quick else {})})


def random_bert(*, frozen: bool = True, small: bool = False) -> TextEncoder:
    """A BERT-base (or smaller) with random weights."""
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48} if small else {}
    return TextEncoder(BertModel(BertConfig(vocab_size=VOCAB_SIZE, **size), add_pooling_layer=False), frozen=frozen)


def random_model(options: BenchmarkOptions) -> tuple[MG3D, Settings]:
    """Model in training mode and settings of the default recipe."""
    torch.manual_seed(0)
    settings = default_settings(options)
    model = build_model(settings, random_bert(small=options.quick)).train()
    return model, settings


def random_batch(options: BenchmarkOptions, *, vocab_size: int = VOCAB_SIZE, patch_size: int = PATCH_SIZE) -> Batch:
    """`batch` patients on the CPU; every report has `tokens` tokens in `sentences` sentences of equal length."""
    generator = torch.Generator().manual_seed(0)
    size, tokens, views = options.batch, options.tokens, 2
    ids = torch.randint(FIRST_TOKEN, vocab_size, (size, tokens), generator=generator)
    index = (torch.arange(tokens) * options.sentences // tokens).expand(size, -1).contiguous()
    masked = torch.rand(size, tokens, generator=generator) < MASKED_FRACTION
    labels = torch.where(masked, ids, -100)
    view = slice(0, min(VIEW_TOKENS, tokens))
    grid = [side // patch_size for side in options.size]
    keys = torch.arange(size)
    return Batch(
        volume=torch.rand(size, 1, *options.size, generator=generator),
        patch_mask=torch.rand(size, *grid, generator=generator).argsort(dim=-1) < math.ceil(grid[-1] / 2),
        report_ids=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool), sentence_index=index,
        sentence_mask=torch.ones(size, options.sentences, dtype=torch.bool),
        sentence_polarity=torch.randint(0, 2, (size, options.sentences), generator=generator).mul(2).sub(1).to(torch.int8),
        mlm_ids=torch.where(masked, FIRST_TOKEN - 1, ids), mlm_labels=labels, mlm_positions=label_positions(labels),
        view_ids=ids[:, None, view].repeat(1, views, 1),
        view_attention_mask=torch.ones(size, views, view.stop, dtype=torch.bool),
        view_sentence_index=index[:, None, view].repeat(1, views, 1),
        patient_key=keys, report_key=keys, view_key=keys[:, None] * views + torch.arange(views),
        labels=torch.zeros(size, 18, dtype=torch.int8), study_id=[str(row) for row in range(size)],
    )  # fmt: skip
