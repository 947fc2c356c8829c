"""The result of a check."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""error: do not train on this; warning: look at it first; info: good to know."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One problem or fact. Contains no text of a report and no name of a person."""

    code: str
    severity: Severity
    message: str
    expected: str = ""
    action: str = ""
    volumes: tuple[str, ...] = ()
    """Ids of all affected volumes."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of the message, as builtins."""

    def as_dict(self) -> dict[str, Any]:
        """As builtins, with the number of volumes."""
        return {**asdict(self), "volumes": list(self.volumes), "count": len(self.volumes)}


def examples(ids: Sequence[str], count: int = 3) -> str:
    """The first ids, and how many more there are."""
    return ", ".join(ids[:count]) + (f" and {len(ids) - count:,} more" if len(ids) > count else "")


def pluralize(count: int, noun: str, plural: str | None = None) -> str:
    """`1 volume`, `2,000 volumes`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
