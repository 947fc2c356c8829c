"""The text encoder's tokenizer, and the sentence that each token of a report belongs to."""

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

from mg3d.files import replacing_folder
from mg3d.hub import loading_error

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
REQUIRED_TOKENS = ("pad", "cls", "sep", "mask")


class EncodedReport(NamedTuple):
    """A report as token ids."""

    ids: np.ndarray
    """int64 [T]: [CLS] report [SEP]."""
    sentence_index: np.ndarray
    """int64 [T]: 0-based index into `sentence_spans`; -1 for special tokens and tokens in no sentence or in two."""
    sentence_spans: tuple[tuple[int, int], ...]
    """Character spans of the sentences that have at least one token; truncation may remove the others."""


def load_tokenizer(name_or_dir: str) -> PreTrainedTokenizerBase:
    """A BERT tokenizer from a local directory or the Hugging Face Hub.

    Raises:
        FileNotFoundError: neither exists.
        ValueError: damaged files, a slow tokenizer (no character offsets), or a missing special token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_dir)
    except Exception as error:  # damaged files raise KeyError, TypeError or plain Exception
        raise loading_error(
            "the tokenizer of", name_or_dir, error, expected="tokenizer.json and tokenizer_config.json"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {name_or_dir!r} has no character offsets. Use a fast tokenizer (tokenizer.json)")
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in REQUIRED_TOKENS}
    missing = [f"[{name.upper()}]" for name, token_id in ids.items() if token_id is None or not 0 <= token_id < len(tokenizer)]
    if missing:
        raise ValueError(
            f"the tokenizer of {name_or_dir!r} lacks {', '.join(missing)}. Set text_encoder to a BERT whose folder contains its "
            "tokenizer.json"
        )
    return tokenizer


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, out_dir: Path) -> PreTrainedTokenizerBase:
    """Build a lower-case WordPiece tokenizer of at most `vocab_size` tokens and save it to `out_dir` (atomically).

    The vocabulary is every letter, as initial and as continuation, then the most frequent words. Unlike the trainer of
    `tokenizers`, it is deterministic across processes.
    """
    normalizer, pre_tokenizer, counts = BertNormalizer(lowercase=True), BertPreTokenizer(), Counter()
    for text in texts:
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    tokenizer = Tokenizer(WordPiece(wordpiece_vocabulary(counts, set(), vocab_size), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    with replacing_folder(out_dir) as folder:
        fast.save_pretrained(folder)
    return fast


def wordpiece_vocabulary(counts: Counter[str], letters: set[str], size: int) -> dict[str, int]:
    """Token -> id: special tokens, all letters (plus `letters`) as initial and continuation, then words by frequency."""
    alphabet = sorted({letter for word in counts for letter in word} | letters)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *alphabet, *(f"##{letter}" for letter in alphabet), *frequent])
    return {token: index for index, token in enumerate(list(tokens)[:size])}


def lower(text: str) -> str:
    """Lower case of equal length, so character offsets stay valid (a dotted capital I would become two characters)."""
    if text.isascii():
        return text.lower()
    return "".join(lowered if len(lowered := letter.lower()) == 1 else letter for letter in text)


def encode_report(
    tokenizer: PreTrainedTokenizerBase, report: str, sentence_spans: Sequence[tuple[int, int]], max_text_len: int
) -> EncodedReport:
    """Tokenise a lower-cased report (as the original does), truncated to `max_text_len` tokens including [SEP].

    sentence_spans: character spans (start, end), ascending, not overlapping.
    """
    text = lower(report)
    encoded = tokenizer(text, truncation=True, max_length=max_text_len, return_offsets_mapping=True)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    sentence = _sentence_of_token(offsets, sentence_spans, len(text))
    inside = sentence >= 0
    index = np.full(len(offsets), -1, dtype=np.int64)
    used, index[inside] = np.unique(sentence[inside], return_inverse=True)
    return EncodedReport(np.asarray(encoded["input_ids"], dtype=np.int64), index, tuple(sentence_spans[k] for k in used))


def _sentence_of_token(offsets: np.ndarray, spans: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """int64 [T]: the sentence of every token [T, 2] of a text; -1 for a token in none, or in more than one.

    Characters outside all spans are ignored: byte-level BPE counts the space before a word as part of the word, and a sentence
    may begin inside a token.
    """
    owner = np.full(length + 1, -1, dtype=np.int64)
    for sentence, (start, end) in enumerate(spans):
        owner[start:end] = sentence
    owned = np.append(np.flatnonzero(owner >= 0), length)  # sentinel: position `length` is in no sentence
    start, end = offsets.T
    first = owned[np.searchsorted(owned, start).clip(0, len(owned) - 1)]
    last = owned[(np.searchsorted(owned, end) - 1).clip(0)]
    in_one = (start < end) & (first < end) & (owner[first] == owner[last])
    return np.where(in_one, owner[first], -1)


def pad_reports(
    tokenizer: PreTrainedTokenizerBase, reports: Iterable[tuple[str, Sequence[tuple[int, int]]]], max_text_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(ids int64, attention_mask bool, sentence_index int64), [R, T] each, of R pairs (report, sentence spans)."""
    encoded = [encode_report(tokenizer, report, spans, max_text_len) for report, spans in reports]
    ids = stack_padded([row.ids for row in encoded], tokenizer.pad_token_id)
    lengths = torch.tensor([len(row.ids) for row in encoded])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None], stack_padded([row.sentence_index for row in encoded], -1)


def stack_padded(rows: Sequence[np.ndarray], padding: int, min_length: int = 1) -> Tensor:
    """[R, T] of R rows [T'], padded to the longest or to `min_length`."""
    stacked = np.full((len(rows), max(min_length, *(len(row) for row in rows))), padding, dtype=rows[0].dtype)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(stacked)
