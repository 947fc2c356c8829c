"""What a run of the preparation did, in words."""

from dataclasses import dataclass, field

from mg3d.datasets.schema import SPLITS
from mg3d.preparation.quarantine import NOT_COUNTED, REASONS, Quarantined, counts
from mg3d.preparation.shards import Outcome


@dataclass
class Summary:
    """What a run did."""

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    """Data set -> split -> volumes; empty when the run left the index to another."""
    quarantined: list[Quarantined] = field(default_factory=list)
    absent: int = 0
    """Listed volumes that are not downloaded yet."""
    notes: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Shards that other processes have in hand: the last of them writes the index."""
    built: int = 0
    """Shards written by this run."""
    skipped: int = 0
    """Shards that were up to date, or were written by others meanwhile."""
    volumes: int = 0
    """Listed in the shards that were written."""
    raw_bytes: int = 0
    """Of raw files that were read."""
    peak_bytes: int = 0
    """Resident memory of the largest worker process."""
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Quarantined volumes among all that should be usable; what is expected to be left out counts in neither."""
        lost = sum(entry.code not in NOT_COUNTED for entry in self.quarantined)
        stored = sum(sum(part.values()) for part in self.rows.values())
        return lost / max(lost + stored, 1)

    def add(self, outcome: Outcome) -> None:
        """Counts what was done."""
        self.built += outcome.built
        self.skipped += not outcome.built
        self.volumes += outcome.volumes
        self.raw_bytes += outcome.raw_bytes
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)

    def lines(self) -> list[str]:
        """The summary for people."""
        parts = [f"{name}: " + ", ".join(f"{split} {part[split]}" for split in SPLITS) for name, part in self.rows.items()]
        lines = [*self.notes, *parts, *self._reasons()]
        seconds = max(self.seconds, 1e-9)
        speed = f"; {self.volumes / seconds:.3g} volumes/s, {self.raw_bytes / 1e6 / seconds:.3g} MB/s"
        memory = f"; at most {self.peak_bytes / 2**20:.0f} MiB in a worker" if self.peak_bytes else ""
        did = f"shards: {self.built} written, {self.skipped} up to date; {self.seconds:.1f} s"
        lines.append(did + (speed if self.built else "") + memory)
        if self.waiting:
            shown = ", ".join(self.waiting[:3]) + (" and more" if len(self.waiting) > 3 else "")
            lines.append(
                f"no index yet: {len(self.waiting)} shards are in the hands of other processes ({shown}); the one that ends last "
                "writes it. If one of them was killed, run any of them again"
            )
        return lines

    def _reasons(self) -> list[str]:
        """A table of what was left out, by reason."""
        if self.waiting:
            return []
        found = counts(self.quarantined) | ({"not_downloaded": self.absent} if self.absent else {})
        if not found:
            return ["left out: nothing"]
        width, digits = max(map(len, found)), max(len(str(number)) for number in found.values())
        table = [f"  {code:<{width}}  {number:>{digits}}  {REASONS[code]}" for code, number in found.items()]
        return [f"left out ({self.share:.1%} of the usable):", *table]
