"""A tiny frozen BERT, its text cache, and the arguments of a run that reads the cache."""

import importlib.util
from pathlib import Path

import torch
from small_arrow import small_tokenizer
from small_run import words

from mg3d.models.text.encoder import tiny_text_encoder

spec = importlib.util.spec_from_file_location("cache_text", Path(__file__).parents[1] / "tools" / "cache_text.py")
cache_text = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache_text)


def save_bert(folder, seed):
    tokenizer = small_tokenizer(folder)
    torch.manual_seed(seed)
    tiny_text_encoder(vocab_size=len(tokenizer), width=16, layers=2, heads=2, max_positions=250).bert.save_pretrained(folder)
    return folder


def run_arguments(arrows, log_dir, *more):
    return words(arrows, log_dir, "freeze_text=True", "precision=64-true", "max_steps=3", *more)
