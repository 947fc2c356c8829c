"""What a check says."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Progress = Callable[[Iterable[T], str, int], Iterator[T]]
"""Passes items on and shows how far they are: (items, what they are, how many)."""
Severity = Literal["blocking", "warning", "fact"]
SEVERITIES: tuple[Severity, ...] = ("blocking", "warning", "fact")
"""blocking: training on this would be wrong; warning: look at it first; fact: good to know."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a check has found. Nothing in it is text of a report or a name of a person."""

    code: str
    """For programs; one code is one kind of fault."""
    severity: Severity
    found: str
    expected: str = ""
    action: str = ""
    """What to do."""
    volumes: tuple[str, ...] = ()
    """Ids of all volumes that show it, where it belongs to volumes."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Numbers behind the sentence, as builtins."""

    def as_dict(self) -> dict[str, Any]:
        """As builtins, with the number of volumes."""
        return {**asdict(self), "volumes": list(self.volumes), "count": len(self.volumes)}


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Blocking ones first, then warnings; otherwise in their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def examples(volumes: Sequence[str], most: int = 3) -> str:
    """The first ids, and how many more there are."""
    shown = ", ".join(volumes[:most])
    return shown + (f" and {len(volumes) - most:,} more" if len(volumes) > most else "")


def number(count: int, thing: str, things: str | None = None) -> str:
    """`1 volume`, `2,000 volumes`."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"
