"""The tables that a language provides."""

from collections.abc import Mapping
from dataclasses import dataclass

Patterns = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Language:
    """Tables of one language."""

    function_words: frozenset[str]
    """Frequent words that tell the language from others, lower case."""
    headings: Mapping[str, Patterns]
    """Section -> its headings; only `findings` and `impression` are used for training."""
    signature_lines: Patterns
    """Whole lines after which nothing belongs to the report."""
    not_given: Patterns
    """Placeholders of a missing section, without punctuation at the ends."""
    open_words: frozenset[str]
    """Words that no sentence ends with, lower case: the next line continues the sentence."""
    abbreviations: frozenset[str]
    """Never end a sentence; lower case, without the final full stop."""
    abbreviations_before_number: frozenset[str]
    abbreviations_before_lower_case: frozenset[str]
    """End a sentence unless a number or a lower-case word follows."""
    nouns_after_ordinal: Patterns
    """Start of nouns after an ordinal with a full stop: `9. Rib`."""
    nouns_after_side: Patterns
    """Words after `L.` and `R.` inside a sentence."""
    nouns_before_number: frozenset[str]
    """`segment 2.` is the end of a sentence, not the item 2 of a list."""
    dictated_marks: tuple[tuple[str, str], ...]
    """Dictated words and the mark they stand for."""
    pseudo_negations: Patterns
    """Contain a negation but deny no finding: `no change`."""
    negations_forward: Patterns
    """Negate the findings after them."""
    negations_backward: Patterns
    """Negate the findings before them."""
    doubts_forward: Patterns
    """Make the findings after them uncertain."""
    doubts_backward: Patterns
    """Make the findings before them uncertain."""
    doubts_around: Patterns
    """Make the findings before and after them uncertain."""
    normals: Patterns
    """Call the subject normal; they do not apply to findings."""
    terminations: Patterns
    """End the scope of cues before and after them."""
    alternatives: Patterns
    """Start of the last item of a list, `or`: a negation before the list covers all items."""
    additions: Patterns
    """Start of the last item of a list, `and`: a negation after the list covers all items."""
    verbs: Patterns
    """Words that no item of a list contains."""
    findings: Patterns
    """Stems of words that name an abnormality."""
    anatomy: Patterns
    """Stems of words in a clause that only names a part of the body."""


def words(text: str) -> frozenset[str]:
    """Words of a string."""
    return frozenset(text.split())
