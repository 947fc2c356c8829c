"""Tokenizers, and which token belongs to which sentence."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mg3d.hub import loading_error

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NEEDED = ("pad", "cls", "sep", "mask")
"""Kinds of special tokens without which no report can be read."""


class EncodedReport(NamedTuple):
    """A report as token ids."""

    ids: np.ndarray
    """int64 [T]: [CLS] report [SEP]."""
    sentence_index: np.ndarray
    """int64 [T]: 0-based index into `units`, -1 at special tokens, between sentences, and for a token that lies in two."""
    sentence_spans: tuple[tuple[int, int], ...]
    """Character offsets of the sentences that have a token left; the others were cut off."""


def load_tokenizer(name_or_dir: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a BERT, from a local directory or by its name on the hub.

    Raises:
        FileNotFoundError: it is in neither place.
        ValueError: its files are damaged, it lacks one of the tokens that reading a report needs, or it cannot tell which
            characters a token stands for.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_dir)
    except Exception as error:  # damaged files give KeyError, TypeError, and plain Exception from the tokenizers library
        raise loading_error(
            "the tokenizer of", name_or_dir, error, expected="tokenizer.json and tokenizer_config.json"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {name_or_dir!r} gives no character offsets; a fast one (tokenizer.json) is needed")
    ids = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in NEEDED}
    lacking = [f"[{kind.upper()}]" for kind, place in ids.items() if place is None or not 0 <= place < len(tokenizer)]
    if lacking:
        raise ValueError(
            f"the tokenizer of {name_or_dir!r} has no {' and no '.join(lacking)}; the tokenizer of a BERT is expected, so set "
            "text_encoder to a BERT whose folder has its own tokenizer.json"
        )
    return tokenizer


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, out_dir: Path) -> PreTrainedTokenizerBase:
    """A lower-case WordPiece tokenizer of at most `vocab_size` entries from `texts`, saved whole or not at all.

    Its entries are the letters, as beginning and as continuation, and the most frequent words. Equal texts give an equal
    vocabulary in every process, which the trainer of the tokenizers library does not promise.
    """
    normalizer, pre_tokenizer, counts = BertNormalizer(lowercase=True), BertPreTokenizer(), Counter()
    for text in texts:
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    letters = sorted({letter for word in counts for letter in word})
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    entries = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *frequent])
    vocabulary = {entry: place for place, entry in enumerate(list(entries)[:vocab_size])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.add_special_tokens(list(SPECIAL))
    ends = [(word, tokenizer.token_to_id(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    beside = out_dir.with_name(f".{out_dir.name}.{os.getpid()}")
    fast.save_pretrained(beside)
    shutil.rmtree(out_dir, ignore_errors=True)
    beside.replace(out_dir)
    return fast


def lower(text: str) -> str:
    """Lower case of equal length, so that character offsets stay true (the dotted capital I would become two characters)."""
    if text.isascii():
        return text.lower()
    return "".join(small if len(small := letter.lower()) == 1 else letter for letter in text)


def encode_report(
    tokenizer: PreTrainedTokenizerBase, report: str, units: Sequence[tuple[int, int]], max_text_len: int
) -> EncodedReport:
    """Token ids of a report, lower-cased as in the original, cut to `max_text_len` with its [SEP] kept.

    units: character offsets (start, end), in order, not overlapping.
    """
    text = lower(report)
    encoded = tokenizer(text, truncation=True, max_length=max_text_len, return_offsets_mapping=True)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    place = _units_of(offsets, units, len(text))
    inside = place >= 0
    index = np.full(len(offsets), -1, dtype=np.int64)
    kept, index[inside] = np.unique(place[inside], return_inverse=True)
    return EncodedReport(np.asarray(encoded["input_ids"], dtype=np.int64), index, tuple(units[unit] for unit in kept))


def _units_of(offsets: np.ndarray, units: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """int64 [T]: the unit of every token [T, 2] of a text; -1 for a token in none, or in more than one.

    What lies outside all units is no part of a token: byte-level BPE counts the space before a word to the word, and a unit
    may begin within what the tokenizer takes as one.
    """
    owner = np.full(length + 1, -1, dtype=np.int64)
    for number, (start, end) in enumerate(units):
        owner[start:end] = number
    owned = np.append(np.flatnonzero(owner >= 0), length)  # at `length` the owner is nobody
    start, end = offsets.T
    first = owned[np.searchsorted(owned, start).clip(0, len(owned) - 1)]
    last = owned[(np.searchsorted(owned, end) - 1).clip(0)]
    whole = (start < end) & (first < end) & (owner[first] == owner[last])
    return np.where(whole, owner[first], -1)


def pad_reports(
    tokenizer: PreTrainedTokenizerBase, reports: Iterable[tuple[str, Sequence[tuple[int, int]]]], max_text_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(ids int64, attention_mask bool, sentence_index int64), [R, T] each, of R pairs of report and units, as in a batch."""
    encoded = [encode_report(tokenizer, report, units, max_text_len) for report, units in reports]
    longest = max(len(row.ids) for row in encoded)
    ids = np.full((len(encoded), longest), tokenizer.pad_token_id)
    index = np.full((len(encoded), longest), -1)
    for place, row in enumerate(encoded):
        ids[place, : len(row.ids)], index[place, : len(row.ids)] = row.ids, row.sentence_index
    lengths = torch.tensor([len(row.ids) for row in encoded])
    return torch.from_numpy(ids), torch.arange(longest) < lengths[:, None], torch.from_numpy(index)
