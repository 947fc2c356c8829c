"""The whole examination: what is there, what is looked at, and every check in turn."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mg3d.doctor import copies, labels, splits, tables, texts, volumes
from mg3d.doctor.catalogue import Catalogue, read_arrow, read_raw, recognise
from mg3d.doctor.findings import Finding, Progress, ordered
from mg3d.doctor.measure import VolumeFacts, measure_all
from mg3d.doctor.probe import Head, probe_all, suspects

MOST_SUSPECTS = 2000
"""Raw volumes that are read in full because they look wrong, at most."""
JSON_VERSION = 1
CLOSER = {"report_missing": ("not_given", "empty_report")}
"""Code -> codes that say the same with the reason."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for."""

    path: Path
    kind: str | None = None
    """Raw data set, where the folder does not tell it."""
    sample: int | None = None
    """Volumes whose voxels are read, beside suspects; None: 200 of a raw folder, all of Arrow files; 0: all."""
    workers: int = 1
    lists: tuple[Path, ...] = ()
    prepared: Path | None = None
    """Folder of Arrow files whose salt gives the ids of CTRG and of an own folder."""
    table: Path | None = None
    """Of an own raw folder: its table of volumes and reports."""
    val_patients: int = 500
    seed: int = 0


@dataclass
class Examination:
    """What came out."""

    catalogue: Catalogue
    facts: dict[int, VolumeFacts] = field(default_factory=dict)
    """Place of a row -> what its voxels say."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The worst severity."""
        return self.findings[0].severity if self.findings else "fact"

    def as_dict(self) -> dict[str, Any]:
        """As builtins, for JSON."""
        return {
            "version": JSON_VERSION,
            "path": str(self.catalogue.path),
            "kind": self.catalogue.kind,
            "datasets": self.catalogue.datasets,
            "synthetic": self.catalogue.synthetic,
            "verdict": self.verdict,
            "volumes": len(self.catalogue.rows),
            "read": len(self.facts),
            "counts": splits.counts(self.catalogue),
            "prevalence": [part._asdict() for part in labels.prevalences(self.catalogue)],
            "findings": [finding.as_dict() for finding in self.findings],
        }


def examine(options: Options, progress: Progress) -> Examination:
    """Looks at a folder or index file.

    Raises:
        FileNotFoundError, ValueError: it is not there, of no known kind, or an evaluation list cannot be read.
    """
    lists = {path.name: splits.read_list(path) for path in options.lists}
    roots = recognise(options.path, options.kind)
    if roots:
        draw = {"val_patients": options.val_patients, "seed": options.seed}
        catalogue = read_raw(options.path, roots, prepared=options.prepared, table=options.table, **draw)
    else:
        catalogue = read_arrow(options.path)
    found = [_failed(failure) for failure in catalogue.failures]
    found += [Finding(code="note", severity="fact", found=note) for note in catalogue.notes]
    found += volumes.check_refused(catalogue.refused)
    found += _table_findings(catalogue, found) if roots else splits.check_index_files(options.path)
    found += splits.check_raw_leaks(catalogue) if roots else []
    heads = _heads(catalogue, progress)
    examination = Examination(catalogue)
    chosen = choose(catalogue, heads, options.sample)
    measured = progress(measure_all([catalogue.places[place] for place in chosen], options.workers), "voxels", len(chosen))
    examination.facts = dict(zip(chosen, measured))
    found += _voxel_findings(catalogue, heads, examination.facts, progress)
    found += _text_findings(catalogue)
    found += splits.check_counts(catalogue) + splits.check_lists(catalogue, lists)
    found.append(_looked_at(catalogue, heads, examination.facts))
    examination.findings = ordered(merged(found))
    return examination


def choose(catalogue: Catalogue, heads: Mapping[int, Head], sample: int | None) -> list[int]:
    """Places whose voxels are read: spread evenly, and all that look wrong."""
    total = len(catalogue.places)
    count = sample if sample is not None else (200 if catalogue.kind == "raw" else 0)
    spread = range(total) if count == 0 else np.linspace(0, total - 1, min(count, total)).round().astype(int)
    places = list(heads)
    wrong = suspects([catalogue.places[place] for place in places], [heads[place] for place in places])
    return sorted({*map(int, spread), *(places[number] for number in wrong[:MOST_SUSPECTS])})


def _heads(catalogue: Catalogue, progress: Progress) -> dict[int, Head]:
    """The heads of raw NIfTI files."""
    if catalogue.kind == "arrow":
        return {}
    places = [number for number, place in enumerate(catalogue.places) if place.record.reader == "nifti"]
    return dict(zip(places, progress(probe_all([catalogue.places[number] for number in places]), "headers", len(places))))


def _failed(sentence: str) -> Finding:
    return Finding(
        code="cannot_read", severity="blocking", found=sentence, action="mend this first; nothing else of it could be examined"
    )


def _table_findings(catalogue: Catalogue, found: list[Finding]) -> list[Finding]:
    """Of CT-RATE's tables; sets the vendors in the catalogue's groups."""
    root, findings = catalogue.roots.get("ct_rate"), []
    for split in tables.LONG if root else ():
        try:
            part = tables.read_tables(root, split)
        except ValueError as error:
            # The scan has said so already, unless it did not need the table.
            findings += [] if catalogue.failures else [_failed(str(error))]
            continue
        if part is not None:
            findings += tables.check_tables(part, split)
            known = {f"ct_rate/{name}": vendor for name, vendor in tables.vendors(part).items()}
            words = catalogue.rows["volume_id"].map(known).fillna("")
            catalogue.rows["group"] = (catalogue.rows["group"] + " " + words).str.strip()
    return findings


def _voxel_findings(
    catalogue: Catalogue, heads: Mapping[int, Head], facts: Mapping[int, VolumeFacts], progress: Progress
) -> list[Finding]:
    shas = {place: fact.sha256 for place, fact in facts.items()}
    known = catalogue.rows["image_sha256"].copy()
    if catalogue.kind == "raw":
        known = catalogue.rows.index.to_series().map(shas).fillna("")
    pairs = sorted(copies.find_copies(facts, progress) | copies.equal_pairs(known))
    checks = (
        volumes.check_unusable(catalogue, facts),
        volumes.check_hu(catalogue, facts),
        volumes.check_chest(catalogue, facts),
        volumes.check_padding(catalogue, facts),
        volumes.check_fixed_in_raw_tree(catalogue, facts),
        volumes.check_orientation(catalogue, heads),
        copies.check_copies(catalogue, pairs),
    )
    return list(chain.from_iterable(checks))


def _text_findings(catalogue: Catalogue) -> list[Finding]:
    checks = (
        texts.check_reports,
        texts.check_reports_agree,
        texts.check_equal_reports,
        texts.sentence_facts,
        labels.check_prevalence,
        labels.check_labels_known,
        labels.check_denied_labels,
    )
    return list(chain.from_iterable(check(catalogue) for check in checks)) if len(catalogue.rows) else []


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Without those whose volumes other findings of the same code, or of codes that say it closer, name already."""
    kept: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: finding.code in CLOSER):
        codes = {finding.code, *CLOSER.get(finding.code, ())}
        told = {name for other in kept if other.code in codes for name in other.volumes}
        if not (finding.volumes and set(finding.volumes) <= told):
            kept.append(finding)
    return kept


def _looked_at(catalogue: Catalogue, heads: Mapping[int, Head], facts: Mapping[int, VolumeFacts]) -> Finding:
    found = f"voxels of {len(facts):,} of {len(catalogue.places):,} usable volumes were read"
    return Finding(code="examined", severity="fact", found=f"{found}, headers of {len(heads):,}" if heads else found)
