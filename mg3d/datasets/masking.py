"""Everything that is drawn at random about one sample; each function takes the generator it draws from."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

IGNORED = -100
MOST_SENTENCES_OF_A_VIEW = 3


def hidden_cubes(grid: Sequence[int], ratio: float, generator: np.random.Generator) -> np.ndarray:
    """bool [a, b, c] with round(ratio * cubes) cubes hidden (True)."""
    count = int(np.prod(grid))
    hidden = np.zeros(count, dtype=bool)
    hidden[generator.permutation(count)[: round(count * ratio)]] = True
    return hidden.reshape(grid)


class WordMasker:
    """Whole-word masking: a word's pieces are asked for together; 80 % become [MASK], 10 % another word, 10 % stay.

    At least one word of a report that has words is asked for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float) -> None:
        self.probability = probability
        self.mask_id = tokenizer.mask_token_id
        self.tokenizer = tokenizer

    @cached_property
    def continues(self) -> np.ndarray:
        """bool [V]: the entry goes on with a word (its text begins with ##)."""
        words = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        return np.array([word.startswith("##") for word in words])

    @cached_property
    def ordinary(self) -> np.ndarray:
        """Entries that may stand in for another word."""
        return np.setdiff1d(np.arange(len(self.tokenizer)), self.tokenizer.all_special_ids)

    def __call__(self, ids: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(masked ids, labels) int64 [T] of ids [T]; a label is the true id where asked and -100 elsewhere."""
        maskable = ~np.isin(ids, self.tokenizer.all_special_ids)
        labels, masked = np.full_like(ids, IGNORED), ids.copy()
        if not maskable.any():
            return masked, labels
        begins = maskable & (~self.continues[ids] | ~np.concatenate([[False], maskable[:-1]]))
        word = np.cumsum(begins) - 1
        count = int(word[-1]) + 1
        asked_words = generator.random(count) < self.probability
        if not asked_words.any():
            asked_words[generator.integers(count)] = True
        asked = maskable & asked_words[word]
        labels[asked] = ids[asked]
        fate, other = generator.random(len(ids)), generator.choice(self.ordinary, len(ids))
        masked = np.where(asked & (fate < 0.8), self.mask_id, masked)
        masked = np.where(asked & (fate >= 0.8) & (fate < 0.9), other, masked)
        return masked, labels


def choose_view(polarities: Sequence[int], denying_share: float, generator: np.random.Generator) -> np.ndarray:
    """One to three sentences of a report, ascending; none of a report without sentences.

    The first drawn denies something (polarity -1) with probability `denying_share`, else it states something (+1), as far as the
    report has such a sentence; the others are any. Without denials, "there is no ..." would mean to a prompt what "there is ..."
    means; with too many, most views would be true of most other volumes.
    """
    kinds = np.asarray(polarities)
    count = len(kinds)
    if count == 0:
        return np.arange(0)
    wanted = kinds < 0 if generator.random() < denying_share else kinds > 0
    first = generator.choice(np.flatnonzero(wanted) if wanted.any() else count)
    size = int(generator.integers(1, MOST_SENTENCES_OF_A_VIEW + 1))
    others = generator.permutation(np.setdiff1d(np.arange(count), first))[: size - 1]
    return np.sort(np.append(others, first))
