"""Word-level tokenizers of report generation: M2KT's vocabulary of cleaned reports, and a lossless WordPiece.

Both are rebuilt from `vocabulary`, a list of strings that a checkpoint can store.
"""

import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Split

from mg3d.datasets.tokenizer import SPECIAL_TOKENS, wordpiece_vocabulary

UNKNOWN = "<unk>"
M2KT_MAX_LENGTH = 150
M2KT_MIN_COUNT = 3


class ReportTokenizer(ABC):
    """Tokenizer of report generation; ids are 0 to `len(tokenizer)` - 1."""

    bos_id: int
    eos_id: int
    pad_id: int

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        if len(set(vocabulary)) != len(vocabulary):
            raise ValueError(f"the vocabulary has {len(vocabulary)} entries, but only {len(set(vocabulary))} distinct ones")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def clean(self, text: str) -> str:
        """The text as `decode` would return it with an unlimited vocabulary and length."""

    @abstractmethod
    def _encode_words(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode_words(self, ids: list[int]) -> str: ...

    def encode(self, text: str, max_length: int) -> np.ndarray:
        """int64 [T], T <= max_length: BOS, tokens, EOS; longer reports are truncated before EOS (the original drops EOS)."""
        return np.array([self.bos_id, *self._encode_words(text)[: max_length - 2], self.eos_id], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids up to the first EOS; a leading BOS is skipped."""
        inner = [int(token_id) for token_id in ids]
        inner = inner[1:] if inner[:1] == [self.bos_id] else inner
        return self._decode_words(inner[: inner.index(self.eos_id)] if self.eos_id in inner else inner)


def clean_m2kt(text: str) -> str:
    """A report as M2KT and R2Gen score it: lower case, no punctuation, " . " after every sentence.

    Scores are only comparable after the same cleaning, so its mistakes are reproduced: decimal points are dropped ("0.8 cm" ->
    "08 cm"), as are the item numbers 1 to 5 and the ASCII characters between ":" and "[".
    """
    text = re.sub(r"_+", "_", text.replace("\n", " "))
    text = re.sub(r"\.{2,}", ".", re.sub(r" {2,}", " ", text)).replace("1. ", "")
    text = re.sub(r"(?:\. | )[2-5]\. ", ". ", text)
    sentences = text.strip().lower().split(". ")
    cleaned = [re.sub(r"""[.,?;*!%^&_+(){}\]"'/\\:-\[]""", "", sentence) for sentence in sentences]
    return " ".join((" . ".join(cleaned) + " .").split())


class M2KTTokenizer(ReportTokenizer):
    """Whole words of cleaned reports; ids from 1 in alphabetical order, 0 is BOS, EOS and padding.

    Args:
        vocabulary: from `fit`.
    """

    bos_id = eos_id = pad_id = 0

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__(vocabulary)
        self._ids = {word: index for index, word in enumerate(self.vocabulary, 1)}
        if UNKNOWN not in self._ids:
            raise ValueError(f"the vocabulary lacks {UNKNOWN}. Build it with M2KTTokenizer.fit")

    @classmethod
    def fit(cls, texts: Iterable[str], *, min_count: int = M2KT_MIN_COUNT) -> "M2KTTokenizer":
        """Words that occur at least `min_count` times in training reports, and `<unk>` for the others."""
        counts = Counter(word for text in texts for word in clean_m2kt(text).split())
        return cls(sorted([word for word, count in counts.items() if count >= min_count] + [UNKNOWN]))

    def __len__(self) -> int:
        return len(self.vocabulary) + 1

    def clean(self, text: str) -> str:
        """See `clean_m2kt`."""
        return clean_m2kt(text)

    def _encode_words(self, text: str) -> list[int]:
        return [self._ids.get(word, self._ids[UNKNOWN]) for word in clean_m2kt(text).split()]

    def _decode_words(self, ids: list[int]) -> str:
        return " ".join(self.vocabulary[token_id - 1] for token_id in ids)


class LosslessTokenizer(ReportTokenizer):
    """WordPiece whose words include the preceding space, so case, punctuation and numbers are restored exactly.

    Runs of white space become one space. A non-ASCII letter that no training report contains becomes [UNK].

    Args:
        vocabulary: from `fit`; the index of a token is its id.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__(vocabulary)
        if self.vocabulary[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise ValueError(f"the vocabulary must begin with {', '.join(SPECIAL_TOKENS)}. Build it with LosslessTokenizer.fit")
        ids = {token: index for index, token in enumerate(self.vocabulary)}
        self.pad_id, self.bos_id, self.eos_id = (ids[token] for token in ("[PAD]", "[CLS]", "[SEP]"))
        self._tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
        self._tokenizer.pre_tokenizer = _SPLIT

    @classmethod
    def fit(cls, texts: Iterable[str], *, max_size: int = 3_000) -> "LosslessTokenizer":
        """At most `max_size` tokens: ASCII, all other letters of the training reports, then the most frequent words."""
        counts = Counter(word for text in texts for word, _ in _SPLIT.pre_tokenize_str(" ".join(text.split())))
        return cls(list(wordpiece_vocabulary(counts, _ASCII, max_size)))

    def __len__(self) -> int:
        return len(self.vocabulary)

    def clean(self, text: str) -> str:
        """The text with runs of white space as one space."""
        return " ".join(text.split())

    def _encode_words(self, text: str) -> list[int]:
        return self._tokenizer.encode(self.clean(text)).ids

    def _decode_words(self, ids: list[int]) -> str:
        return "".join(self.vocabulary[token_id].removeprefix("##") for token_id in ids)


_SPLIT = Split(Regex(r" ?\p{L}+| ?\d| ?[^\p{L}\d ]| "), behavior="isolated")
"""Words and punctuation with the preceding space; numbers digit by digit, so that any number can be generated."""
_ASCII = set(string.ascii_letters + string.digits + string.punctuation + " ")
