"""Compute the frozen text encoder's features of every report once: `python tools/cache_text.py with WORD ... text_cache=FOLDER`.

Train with the same words; a cache of another encoder or of other reports is refused.
"""

import sys
from collections.abc import Sequence

from mg3d.config import read_arguments


def main(arguments: Sequence[str]) -> int:
    """Makes the cache; returns the exit code."""
    if not arguments or any(word in ("-h", "--help") for word in arguments):
        print(__doc__)
        return 0
    try:
        if arguments[0] != "with":
            raise ValueError("settings come after the word `with`: python tools/cache_text.py with WORD text_cache=FOLDER")
        settings = read_arguments(arguments[1:])
        if not settings.text.text_cache:
            raise ValueError("text_cache=FOLDER says where the features go; it is not set")
        from mg3d.training.text_cache import cache_text  # heavy: only when there is something to do

        made = cache_text(settings)
    except (ValueError, OSError) as error:
        print(f"cache_text: {error}", file=sys.stderr)
        return 2
    size = made["tokens"] * made["width"] * 4 / 1e9
    print(f"{made['reports']:,} distinct reports, {made['tokens']:,} tokens, {size:.3g} GB in {settings.text.text_cache}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
