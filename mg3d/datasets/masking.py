"""Random masks and views of one sample; each function takes the generator it draws from."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
MAX_VIEW_SENTENCES = 3


def draw_patch_mask(grid: Sequence[int], ratio: float, generator: np.random.Generator) -> np.ndarray:
    """bool [a, b, c]; round(ratio * patches) entries are True = masked."""
    count = int(np.prod(grid))
    mask = np.zeros(count, dtype=bool)
    mask[generator.permutation(count)[: round(count * ratio)]] = True
    return mask.reshape(grid)


class WholeWordMasker:
    """BERT's whole-word masking: all tokens of a word are selected together; 80 % become [MASK], 10 % a random token, 10 % stay.

    At least one word is selected in every report that has words.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float) -> None:
        self.tokenizer, self.probability = tokenizer, probability

    @cached_property
    def is_continuation(self) -> np.ndarray:
        """bool [V]: the token continues a word (its text begins with ##)."""
        tokens = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        return np.array([token.startswith("##") for token in tokens])

    @cached_property
    def replacements(self) -> np.ndarray:
        """Ids of all tokens that are not special."""
        return np.setdiff1d(np.arange(len(self.tokenizer)), self.tokenizer.all_special_ids)

    def __call__(self, ids: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(masked ids, labels), int64 [T] each, of ids [T]; labels are the original ids where selected and -100 elsewhere."""
        maskable = ~np.isin(ids, self.tokenizer.all_special_ids)
        labels, masked = np.full_like(ids, IGNORE_INDEX), ids.copy()
        if not maskable.any():
            return masked, labels
        is_first = maskable & (~self.is_continuation[ids] | ~np.concatenate([[False], maskable[:-1]]))
        word = np.cumsum(is_first) - 1
        count = int(word[-1]) + 1
        selected_words = generator.random(count) < self.probability
        if not selected_words.any():
            selected_words[generator.integers(count)] = True
        selected = maskable & selected_words[word]
        labels[selected] = ids[selected]
        action, replacement = generator.random(len(ids)), generator.choice(self.replacements, len(ids))
        masked = np.where(selected & (action < 0.8), self.tokenizer.mask_token_id, masked)
        masked = np.where(selected & (action >= 0.8) & (action < 0.9), replacement, masked)
        return masked, labels


def label_positions(labels: Tensor) -> Tensor:
    """Positions int64 [B, M] of masked tokens, of labels int64 [B, T]; M: maximum of a row; padding 0, which is never masked."""
    masked = labels != IGNORE_INDEX
    counts = masked.sum(1, keepdim=True)
    most = int(counts.max()) if len(labels) else 0
    positions = masked.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.where(torch.arange(most) < counts, positions, 0)


def draw_view(polarities: Sequence[int], negated_fraction: float, generator: np.random.Generator) -> np.ndarray:
    """Indices of one to three sentences of a report, ascending; empty for a report without sentences.

    The first one drawn is negated (polarity -1) with probability `negated_fraction`, else affirmed or uncertain, if the report
    has such a sentence; the others are arbitrary. Without negated views, the contrastive loss cannot tell "there is no ..." from
    "there is ..."; with too many, most views describe most other volumes as well.
    """
    polarities = np.asarray(polarities)
    count = len(polarities)
    if count == 0:
        return np.arange(0)
    preferred = polarities < 0 if generator.random() < negated_fraction else polarities > 0
    first = generator.choice(np.flatnonzero(preferred) if preferred.any() else count)
    size = int(generator.integers(1, MAX_VIEW_SENTENCES + 1))
    others = generator.permutation(np.setdiff1d(np.arange(count), first))[: size - 1]
    return np.sort(np.append(others, first))
