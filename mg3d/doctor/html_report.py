"""HTML report: results, counts, histograms and label prevalence. Contains no text of a report."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mg3d.doctor.dataset_checks import Prevalence, count_volumes, prevalences
from mg3d.doctor.run import DoctorReport
from mg3d.doctor.statistics import BIN_EDGES
from mg3d.visualize.page import CaptionedFigure, PageItem, write_page

VERDICTS = {
    "error": "There are errors: do not train on this data.",
    "warning": "No errors. Look at the warnings first.",
    "info": "No problems found.",
}
COLUMNS = ("severity", "code", "message", "expected", "action")


def write_html_report(path: Path, report: DoctorReport) -> None:
    """Writes the page atomically."""
    catalog = report.data.catalog
    synthetic = " This is a synthetic set." if catalog.is_synthetic else ""
    counts = [{name: cell for name, cell in row.items() if name != "dataset"} for row in count_volumes(catalog)]
    sections: list[tuple[str, list[PageItem]]] = [
        ("Verdict", [VERDICTS[report.verdict] + synthetic]),
        ("Results", [[{name: getattr(result, name) for name in COLUMNS} for result in report.results]]),
        ("Counts", [counts]),
        ("Intensities", list(plot_histograms(report)) or ["None."]),
        ("Label prevalence", [[_prevalence_row(part) for part in prevalences(catalog)]]),
    ]
    write_page(path, title="Data check", sections=sections)


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
        axes.set(yscale="log", xlabel=label, ylabel="fraction of voxels")
        axes.legend(fontsize=8)
        yield CaptionedFigure(figure, f"Histogram of {label} per source: {', '.join(sorted(histograms))}")
