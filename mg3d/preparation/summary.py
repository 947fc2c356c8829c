"""Result of a preparation run, and the summary that it prints."""

from dataclasses import dataclass, field

from mg3d.datasets.schema import SPLITS
from mg3d.preparation.quarantine import NOT_A_VOLUME, REASONS, Quarantined, counts
from mg3d.preparation.shards import ShardResult


@dataclass
class PrepareSummary:
    """Result of a run."""

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    """Data set -> split -> volumes; empty if another run writes the index."""
    quarantined: list[Quarantined] = field(default_factory=list)
    not_downloaded: int = 0
    notes: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Shards that other processes hold; the last of these runs writes the index."""
    built: int = 0
    """Shards written by this run."""
    skipped: int = 0
    """Shards that were up to date or were written by other runs."""
    volumes: int = 0
    """Volumes of the written shards."""
    peak_bytes: int = 0
    """Peak resident memory of a worker."""
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        """Volumes with raw files that could not be used. Exclusions by the tables, and what is not a CT volume, do not count."""
        return sum(entry.stage == "volume" and entry.code not in NOT_A_VOLUME for entry in self.quarantined)

    @property
    def not_volumes(self) -> int:
        """Files and series that are not a CT volume, such as localizers."""
        return sum(entry.stage == "volume" and entry.code in NOT_A_VOLUME for entry in self.quarantined)

    @property
    def failed_fraction(self) -> float:
        """Of all volumes with raw files; 1 if there is none, but something that is not a volume."""
        return self.failed / self._read if self._read else float(self.not_volumes > 0)

    @property
    def _read(self) -> int:
        return self.failed + sum(sum(splits.values()) for splits in self.rows.values())

    def add(self, result: ShardResult) -> None:
        """Count a shard, unless another process holds it."""
        if result.sidecar is None:
            return
        self.built += result.built
        self.skipped += not result.built
        self.volumes += result.volumes
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)

    def lines(self) -> list[str]:
        """The summary as text."""
        lines = [*self.notes]
        lines += [f"{name}: " + ", ".join(f"{split} {splits[split]}" for split in SPLITS) for name, splits in self.rows.items()]
        lines += [] if self.waiting else self._excluded()
        done = f"shards: {self.built} written, {self.skipped} up to date; {self.seconds:.1f} s"
        done += f"; {self.volumes / max(self.seconds, 1e-9):.3g} volumes/s" if self.built else ""
        done += f"; peak memory of a worker {self.peak_bytes / 2**20:.0f} MiB" if self.peak_bytes else ""
        lines.append(done)
        if self.waiting:
            names = ", ".join(self.waiting[:3]) + (" ..." if len(self.waiting) > 3 else "")
            lines.append(
                f"no index yet: other processes are writing {len(self.waiting)} shards ({names}); the run that ends last writes "
                "the index. If one was killed, start any of them again"
            )
        return lines

    def _excluded(self) -> list[str]:
        """A table of excluded volumes by reason."""
        codes = counts(self.quarantined) | ({"not_downloaded": self.not_downloaded} if self.not_downloaded else {})
        if not codes:
            return ["excluded: none"]
        width, digits = max(map(len, codes)), max(len(str(number)) for number in codes.values())
        table = [f"  {code:<{width}}  {number:>{digits}}  {REASONS[code]}" for code, number in codes.items()]
        others = f"; {self.not_volumes} others are not CT volumes" if self.not_volumes else ""
        return [f"excluded ({self.failed} of {self._read} volumes with raw files could not be used{others}):", *table]
