"""What each setting means, from the text under it in its dataclass."""

import ast
import inspect
import textwrap
from dataclasses import fields
from functools import cache
from itertools import pairwise
from typing import Literal, get_args, get_origin, get_type_hints

from mg3d.settings.schema import LossSettings

WIDTH = 110
"""Columns of a printed meaning."""


@cache
def meanings(kind: type) -> dict[str, str]:
    """Setting -> its meaning and, where only some words are allowed, those; for the fields of a dataclass that have one."""
    if kind is LossSettings:
        return {entry.name: entry.metadata["help"] for entry in fields(kind)}
    types = get_type_hints(kind)
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    return {
        field.target.id: " ".join([*_words(types[field.target.id]), *text.value.value.split()])
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _words(kind: object) -> list[str]:
    return [f"[{' | '.join(repr(word) for word in get_args(kind))}]"] if get_origin(kind) is Literal else []


def listed(name: str, value: object, meaning: str = "", *, width: int = 0, note: str = "") -> str:
    """Lines that tell a setting: `name = value`, and under it what it means; width: columns of the name."""
    told = textwrap.fill(meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {name:{width}} = {value!r}{note}" + (f"\n{told}" if told else "")
