"""One HTML page of an examination: findings, counts, histograms, shares of labels, pictures. No text of a report is on it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mg3d.doctor.examine import Examination
from mg3d.doctor.findings import Finding
from mg3d.doctor.labels import Prevalence, prevalences
from mg3d.doctor.measure import GREY_EDGES, HU_EDGES, load, small_volume
from mg3d.doctor.splits import counts
from mg3d.preparation.quarantine import Refusal
from mg3d.visualize.page import CaptionedFigure, PageItem, write_page
from mg3d.visualize.planes import case_figure

ORDINARY = 3
MOST_OF_A_CODE, MOST_PICTURES = 3, 30
WINDOWS = {"hu": (-1000.0, 400.0), "uint8_unknown_window": (0.0, 255.0)}
SHOWN_VOXELS = 160
"""Most voxels of a picture along an axis."""
LOOKED_AT = (
    "head_scan", "not_rescaled", "double_rescaled", "orientation", "ffs_row", "duplicate_pixels", "patient_in_two_splits",
    "counterfactual_pair", "fixed_in_raw_tree", "padding_8192", "length_outlier", "spacing_outlier", "oblique",
)  # fmt: skip
"""Codes whose volumes are worth a look, the most telling first."""
VERDICTS = {
    "blocking": "Something blocking was found: training on this would be wrong.",
    "warning": "Nothing blocking was found. Look at the warnings first.",
    "fact": "All is in order.",
}


def write_examination(path: Path, examination: Examination) -> None:
    """Writes the page, whole or not at all."""
    catalogue = examination.catalogue
    synthetic = " This is a synthetic set." if catalogue.synthetic else ""
    sections: list[tuple[str, list[PageItem]]] = [
        ("Verdict", [VERDICTS[examination.verdict] + synthetic]),
        ("Findings", [[_row(finding) for finding in examination.findings]]),
        ("Counts", [[{name: cell for name, cell in row.items() if name != "dataset"} for row in counts(catalogue)]]),
        ("Intensities", list(histograms(examination))),
        ("Shares of labels", list(prevalence_bars(prevalences(catalogue)))),
        ("Ordinary volumes", list(ordinary(examination))),
        ("Volumes to look at", list(suspicious(examination))),
    ]
    write_page(path, title="Is the data in order?", sections=[(title, pieces or ["None."]) for title, pieces in sections])


def _row(finding: Finding) -> dict[str, str]:
    return {
        "severity": finding.severity,
        "code": finding.code,
        "found": finding.found,
        "expected": finding.expected,
        "to do": finding.action,
    }


def histograms(examination: Examination) -> Iterator[CaptionedFigure]:
    """One figure per unit, a curve per source."""
    groups: dict[tuple[str, str], list[np.ndarray]] = {}
    for place, fact in examination.facts.items():
        if fact.histogram is not None:
            groups.setdefault((fact.unit, examination.catalogue.rows["group"][place]), []).append(fact.histogram)
    for unit, edges, label in (("hu", HU_EDGES, "HU"), ("uint8_unknown_window", GREY_EDGES, "grey value")):
        mine = {group: parts for (its, group), parts in sorted(groups.items()) if its == unit}
        if not mine:
            continue
        figure = Figure(figsize=(10, 4), layout="constrained")
        axes = figure.add_subplot()
        for group, parts in mine.items():
            axes.stairs(np.mean(parts, axis=0), edges, label=f"{group} ({len(parts)} volumes)")
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("share of voxels")
        axes.legend(fontsize=8)
        yield CaptionedFigure(figure, f"Histogram of {label} for each source: {', '.join(mine)}")


def prevalence_bars(parts: list[Prevalence]) -> Iterator[CaptionedFigure]:
    """One figure per data set and official split: the share of every label, beside the published one where there is one."""
    for dataset, split in dict.fromkeys((part.dataset, part.split) for part in parts):
        mine = [part for part in parts if (part.dataset, part.split) == (dataset, split)]
        place = np.arange(len(mine))
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(place - 0.2, [100 * part.share for part in mine], 0.4, label="here")
        if any(part.published is not None for part in mine):
            axes.barh(place + 0.2, [100 * (part.published or 0) for part in mine], 0.4, label="published", color="lightgray")
        axes.set_yticks(place, [part.label for part in mine], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("% of scans")
        axes.set_title(f"{dataset} {split}, {max(part.scans for part in mine):,} scans")
        axes.legend(fontsize=8)
        spoken = ", ".join(f"{part.label} {part.share:.1%}" for part in mine)
        yield CaptionedFigure(figure, f"Shares of labels in {dataset} {split}: {spoken}")


def ordinary(examination: Examination) -> Iterator[CaptionedFigure]:
    """Volumes of which nothing was found, spread over those that were read."""
    ids = examination.catalogue.rows["volume_id"]
    told = {name for finding in examination.findings if finding.severity != "fact" for name in finding.volumes}
    good = [place for place, fact in examination.facts.items() if not fact.refused and ids[place] not in told]
    if good:
        for number in sorted(set(np.linspace(0, len(good) - 1, ORDINARY).round().astype(int))):
            yield from picture(examination, good[number], "ordinary")


def suspicious(examination: Examination) -> Iterator[CaptionedFigure]:
    """The first volumes of every finding that is worth a look."""
    where = {name: place for place, name in enumerate(examination.catalogue.rows["volume_id"])}
    shown = 0
    findings = {finding.code: finding for finding in reversed(examination.findings)}
    for finding in (findings[code] for code in LOOKED_AT if code in findings):
        places = [where[name] for name in finding.volumes if name in where]
        for place in places[:MOST_OF_A_CODE]:
            if shown < MOST_PICTURES:
                shown += 1
                yield from picture(examination, place, finding.code)


def picture(examination: Examination, place: int, why: str) -> Iterator[CaptionedFigure]:
    """Three planes of the volume at a place; nothing when it cannot be read."""
    name = str(examination.catalogue.rows["volume_id"][place])
    try:
        voxels = load(examination.catalogue.places[place])
    except (Refusal, OSError, ValueError):
        return
    small = small_volume(voxels, SHOWN_VOXELS)
    steps = [before / after for before, after in zip(voxels.stored.shape, small.shape)]
    spacing = [mm * step for mm, step in zip(voxels.spacing_mm, steps)] if voxels.spacing_mm else steps
    figure = case_figure(small, title=f"{name}: {why}", spacing_mm=spacing, window=WINDOWS[voxels.unit])
    yield CaptionedFigure(figure, f"Axial, coronal and sagittal plane of {name}: {why}")
