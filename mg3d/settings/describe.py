"""Text of settings for `print_config` and `--help`."""

import textwrap
from typing import Literal, get_args, get_origin, get_type_hints


def descriptions(group: type) -> dict[str, str]:
    """Setting -> allowed values, where they are listed, and description, for a class decorated with `settings_group`."""
    types = get_type_hints(group)
    described = {name: field.description for name, field in group.__pydantic_fields__.items() if field.description}
    return {name: _choices(types[name]) + text for name, text in described.items()}


def _choices(kind: object) -> str:
    return f"[{' | '.join(map(repr, get_args(kind)))}] " if get_origin(kind) is Literal else ""


def format_setting(name: str, value: object, description: str = "", *, width: int = 0, note: str = "") -> str:
    """`name = value` and the indented description below; width: columns of the name."""
    text = textwrap.fill(" ".join(description.split()), 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {name:{width}} = {value!r}{note}" + (f"\n{text}" if text else "")
