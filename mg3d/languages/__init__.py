"""What a language contributes to reading reports: headings, abbreviations and cue words. One file per language.

To add a language, copy `german.py`, translate it and list it in `LANGUAGES`. Patterns are regular expressions that ignore case
and match whole words. The language of a report is recognised by its function words, so no setting is needed.
"""

import re

from mg3d.languages.english import ENGLISH
from mg3d.languages.german import GERMAN
from mg3d.languages.language import Language

LANGUAGES: dict[str, Language] = {"english": ENGLISH, "german": GERMAN}
_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> Language:
    """The language with most function words in a text; the first of `LANGUAGES` if none has any."""
    words = _WORD.findall(text.lower())
    return max(LANGUAGES.values(), key=lambda language: sum(word in language.function_words for word in words))
