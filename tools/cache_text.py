"""Compute the features of the frozen text encoder for every report once, so that training reads them instead of encoding.

    python tools/cache_text.py with PRESET ... SETTING=VALUE ... text_cache=FOLDER

Use the presets and settings of the training run, and pass the same text_cache to it. A cache of another text encoder, tokenizer,
max_text_len or of other reports is refused.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Writes the cache; returns the exit code."""
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    from mg3d.config import read_arguments

    try:
        if arguments[0] != "with":
            raise ValueError("presets and settings follow `with`: python tools/cache_text.py with PRESET text_cache=FOLDER")
        settings = read_arguments(arguments[1:])
        if not settings.text.text_cache:
            raise ValueError("text_cache is not set. Add text_cache=FOLDER, the folder to write")
        from mg3d.training.text_cache import cache_text

        written = cache_text(settings)
    except (ValueError, OSError) as error:
        print(f"cache_text: {error}", file=sys.stderr)
        return 2
    size = f"{written['tokens']:,} tokens, {written['tokens'] * written['width'] * 4 / 1e9:.3g} GB"
    print(f"{written['reports']:,} distinct reports, {size} in {settings.text.text_cache}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
