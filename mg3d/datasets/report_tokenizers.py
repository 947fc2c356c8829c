"""Two ways to make words of the reports that a model is to write: as the original, and without losing anything.

Both are made again from `words`, a list of strings that can be stored as it is.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Split

from mg3d.datasets.tokenizer import SPECIAL

UNKNOWN = "<unk>"
M2KT_TOKENS = 150
M2KT_LEAST_COUNT = 3


class ReportTokenizer(Protocol):
    """What a report-writing model asks of its words."""

    begin: int
    end: int
    padding: int
    words: Sequence[str]
    """Everything it is made from."""

    def __len__(self) -> int:
        """V, ids run from 0 to V - 1."""
        ...

    def clean(self, text: str) -> str:
        """The text as it would come back if every word were known and none were too many."""
        ...

    def encode(self, text: str, most_tokens: int) -> np.ndarray:
        """int64 [T], T <= most_tokens: begin, words, end; a longer report loses its last words."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that follow `begin`, up to the first `end`; `begin` may stand before them."""
        ...


def clean_m2kt(text: str) -> str:
    """A report as M2KT and R2Gen score it: lower case, no punctuation, " . " after every sentence.

    Everything is kept as there, mistakes too, for scores are comparable under the same cleaning alone: the point of a decimal
    goes ("0.8 cm" -> "08 cm"), as do the enumerators 1 to 5 and the signs between ":" and "[" in ASCII.
    """
    text = re.sub(r"_+", "_", text.replace("\n", " "))
    text = re.sub(r"\.{2,}", ".", re.sub(r" {2,}", " ", text)).replace("1. ", "")
    text = re.sub(r"(?:\. | )[2-5]\. ", ". ", text)
    sentences = text.strip().lower().split(". ")
    kept = [re.sub(r"""[.,?;*!%^&_+(){}\]"'/\\:-\[]""", "", sentence) for sentence in sentences]
    return " ".join((" . ".join(kept) + " .").split())


class M2KTTokenizer:
    """Whole words of cleaned reports; ids from 1 in the order of the alphabet, 0 begins, ends and pads.

    Args:
        words: from `fit`.
    """

    begin = end = padding = 0

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: place for place, word in enumerate(self.words, 1)}
        if len(self._ids) != len(self.words) or UNKNOWN not in self._ids:
            raise ValueError(
                f"{len(self.words)} words, {len(self._ids)} of them different: expected a list without doubles that holds "
                f"{UNKNOWN}, as M2KTTokenizer.fit makes it"
            )

    @classmethod
    def fit(cls, texts: Iterable[str], *, least_count: int = M2KT_LEAST_COUNT) -> "M2KTTokenizer":
        """The words that come at least `least_count` times in training reports, and one for all others."""
        counts = Counter(word for text in texts for word in clean_m2kt(text).split())
        return cls(sorted([word for word, count in counts.items() if count >= least_count] + [UNKNOWN]))

    def __len__(self) -> int:
        """V, with 0."""
        return len(self.words) + 1

    def clean(self, text: str) -> str:
        """See `clean_m2kt`."""
        return clean_m2kt(text)

    def encode(self, text: str, most_tokens: int = M2KT_TOKENS) -> np.ndarray:
        """See `ReportTokenizer`. A truncated report keeps its end token; the original drops it."""
        unknown = self._ids[UNKNOWN]
        inner = [self._ids.get(word, unknown) for word in clean_m2kt(text).split()][: most_tokens - 2]
        return np.array([0, *inner, 0], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """See `ReportTokenizer`."""
        return " ".join(self.words[place - 1] for place in _between(ids, self.begin, self.end))


class LosslessTokenizer:
    """WordPiece over words that carry the space before them, so that case, punctuation and numbers come back as they were.

    White space becomes one space. A letter beyond ASCII that no training report has becomes [UNK].

    Args:
        words: from `fit`; their place is their id.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        vocabulary = {word: place for place, word in enumerate(self.words)}
        if len(vocabulary) != len(self.words) or self.words[: len(SPECIAL)] != SPECIAL:
            raise ValueError(
                f"{len(self.words)} words, {len(vocabulary)} of them different: expected a list without doubles that begins with "
                f"{', '.join(SPECIAL)}, as LosslessTokenizer.fit makes it"
            )
        self.padding, self.begin, self.end = (vocabulary[name] for name in ("[PAD]", "[CLS]", "[SEP]"))
        self._tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
        self._tokenizer.pre_tokenizer = _SPLIT

    @classmethod
    def fit(cls, texts: Iterable[str], *, most: int = 3_000) -> "LosslessTokenizer":
        """At most `most` entries: ASCII, every other letter of the training reports, then the most frequent words."""
        counts = Counter(word for text in texts for word, _ in _SPLIT.pre_tokenize_str(_one_line(text)))
        letters = sorted({letter for word in counts for letter in word} | _ASCII)
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        entries = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *frequent])
        return cls(list(entries)[:most])

    def __len__(self) -> int:
        """V."""
        return len(self.words)

    def clean(self, text: str) -> str:
        """The text with every run of white space as one space."""
        return _one_line(text)

    def encode(self, text: str, most_tokens: int) -> np.ndarray:
        """See `ReportTokenizer`."""
        inner = self._tokenizer.encode(_one_line(text)).ids[: most_tokens - 2]
        return np.array([self.begin, *inner, self.end], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """See `ReportTokenizer`."""
        return "".join(self.words[place].removeprefix("##") for place in _between(ids, self.begin, self.end))


_SPLIT = Split(Regex(r" ?\p{L}+| ?\d| ?[^\p{L}\d ]| "), behavior="isolated")
"""Words and signs with the space before them; numbers digit by digit, so that any number can be written."""
_ASCII = set(string.ascii_letters + string.digits + string.punctuation + " ")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _between(ids: Sequence[int], begin: int, end: int) -> list[int]:
    inner = [int(place) for place in ids]
    if inner and inner[0] == begin:
        inner = inner[1:]
    return inner[: inner.index(end)] if end in inner else inner
