"""HTML report: results, counts, histograms, label prevalence and images. Contains no text of a report."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mg3d.doctor.dataset_checks import Prevalence, count_volumes, prevalences
from mg3d.doctor.results import CheckResult
from mg3d.doctor.run import DoctorReport
from mg3d.doctor.statistics import BIN_EDGES, GREY, load_voxels, subsample
from mg3d.preparation.quarantine import Refusal
from mg3d.visualize.page import CaptionedFigure, PageItem, write_page
from mg3d.visualize.planes import case_figure

N_ORDINARY = 3
MAX_PER_CODE, MAX_IMAGES = 3, 30
WINDOWS = {"hu": (-1000.0, 400.0), GREY: (0.0, 255.0)}
IMAGE_SIZE = 160
"""Maximum voxels of an image along an axis."""
SHOWN_CODES = (
    "not_a_chest", "not_rescaled", "double_rescaled", "orientation", "patient_position", "duplicate_pixels",
    "patient_in_two_splits", "same_patient_duplicate", "already_hu", "fov_padding", "length_outlier", "spacing_outlier",
    "oblique",
)  # fmt: skip
"""Codes whose volumes are shown, the most informative first."""
VERDICTS = {
    "error": "There are errors: do not train on this data.",
    "warning": "No errors. Look at the warnings first.",
    "info": "No problems found.",
}


def write_html_report(path: Path, report: DoctorReport) -> None:
    """Writes the page atomically."""
    catalog = report.data.catalog
    synthetic = " This is a synthetic set." if catalog.is_synthetic else ""
    counts = [{name: cell for name, cell in row.items() if name != "dataset"} for row in count_volumes(catalog)]
    sections: list[tuple[str, list[PageItem]]] = [
        ("Verdict", [VERDICTS[report.verdict] + synthetic]),
        ("Results", [[_row(result) for result in report.results]]),
        ("Counts", [counts]),
        ("Intensities", list(plot_histograms(report))),
        ("Label prevalence", [[_prevalence_row(part) for part in prevalences(catalog)]]),
        ("Ordinary volumes", list(show_ordinary(report))),
        ("Volumes to look at", list(show_problems(report))),
    ]
    write_page(path, title="Data check", sections=[(title, pieces or ["None."]) for title, pieces in sections])


def _row(result: CheckResult) -> dict[str, str]:
    return {name: getattr(result, name) for name in ("severity", "code", "message", "expected", "action")}


def _prevalence_row(part: Prevalence) -> dict[str, str]:
    published = "" if part.published is None else f"{part.published:.1%}"
    return {
        "data set": part.dataset, "split": part.split, "label": part.label, "studies": f"{part.studies:,}",
        "prevalence": f"{part.fraction:.1%}", "published": published,
    }  # fmt: skip


def plot_histograms(report: DoctorReport) -> Iterator[CaptionedFigure]:
    """One figure per intensity unit, one curve per source."""
    groups: dict[str, dict[str, list[np.ndarray]]] = {unit: {} for unit in BIN_EDGES}
    for row, item in report.data.statistics.items():
        if item.histogram is not None:
            groups[item.intensity_unit].setdefault(report.data.catalog.rows["group"][row], []).append(item.histogram)
    for unit, histograms in groups.items():
        if not histograms:
            continue
        label = "HU" if unit == "hu" else "grey value"
        figure = Figure(figsize=(10, 4), layout="constrained")
        axes = figure.add_subplot()
        for group, parts in sorted(histograms.items()):
            axes.stairs(np.mean(parts, axis=0), BIN_EDGES[unit], label=f"{group} ({len(parts)} volumes)")
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("fraction of voxels")
        axes.legend(fontsize=8)
        yield CaptionedFigure(figure, f"Histogram of {label} per source: {', '.join(sorted(histograms))}")


def show_ordinary(report: DoctorReport) -> Iterator[CaptionedFigure]:
    """Volumes without errors and warnings, evenly spaced."""
    faulty = {volume for result in report.results if result.severity != "info" for volume in result.volumes}
    ids, items = report.data.catalog.rows["volume_id"], report.data.statistics.items()
    rows = [row for row, item in items if not item.refused and ids[row] not in faulty]
    for index in sorted(set(np.linspace(0, len(rows) - 1, N_ORDINARY).round().astype(int))) if rows else ():
        yield from show_volume(report, rows[index], "ordinary")


def show_problems(report: DoctorReport) -> Iterator[CaptionedFigure]:
    """The first volumes of each of `SHOWN_CODES`."""
    row_of = {volume: row for row, volume in enumerate(report.data.catalog.rows["volume_id"])}
    shown = 0
    for code in SHOWN_CODES:
        volumes = [volume for result in report.results if result.code == code for volume in result.volumes if volume in row_of]
        for volume in volumes[: min(MAX_PER_CODE, MAX_IMAGES - shown)]:
            shown += 1
            yield from show_volume(report, row_of[volume], code)


def show_volume(report: DoctorReport, row: int, reason: str) -> Iterator[CaptionedFigure]:
    """Three planes of a volume; nothing if it cannot be read."""
    name = str(report.data.catalog.rows["volume_id"][row])
    try:
        voxels = load_voxels(report.data.catalog.sources[row])
    except (Refusal, OSError, ValueError):
        return
    small = subsample(voxels, IMAGE_SIZE)
    steps = [before / after for before, after in zip(voxels.stored.shape, small.shape)]
    spacing = [mm * step for mm, step in zip(voxels.spacing_mm, steps)] if voxels.spacing_mm else steps
    figure = case_figure(small, title=f"{name}: {reason}", spacing_mm=spacing, window=WINDOWS[voxels.intensity_unit])
    yield CaptionedFigure(figure, f"Axial, coronal and sagittal plane of {name}: {reason}")
