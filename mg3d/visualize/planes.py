"""Axial, coronal and sagittal planes of a chest CT in radiological orientation."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

REPORT_LINE_LENGTH, REPORT_LINE_INCHES = 72, 0.12
EDGES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
"""Letters at the left, right, top and bottom edge."""
EDGE_POSITIONS = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04))


def orthogonal_planes(volume: np.ndarray, *, centre: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Axial, coronal and sagittal plane [rows, columns] through a voxel (z, y, x; default: the middle) of a volume [z, y, x].

    Volume axes: +z superior, +y posterior, +x patient left. Radiological display: patient right on the left of axial and coronal
    planes; anterior at the top of axial and on the left of sagittal planes; superior at the top of coronal and sagittal planes.
    """
    z, y, x = centre if centre is not None else (side // 2 for side in volume.shape)
    return {"axial": volume[z], "coronal": volume[::-1, y], "sagittal": volume[::-1, :, x]}


def case_figure(
    volume: np.ndarray,
    *,
    report: str = "",
    title: str = "",
    spacing_mm: Sequence[float] | None = None,
    window: tuple[float, float] | None = None,
    overlay: np.ndarray | None = None,
    centre: Sequence[int] | None = None,
) -> Figure:
    """The three planes of a volume [z, y, x] through `centre`, and its report if there is one.

    Args:
        spacing_mm: (z, y, x), for the aspect ratio.
        window: values shown as black and white; default: minimum and maximum.
        overlay: bool [z, y, x], shown in red.
    """
    lines = [line for part in report.split("\n") for line in textwrap.wrap(part, REPORT_LINE_LENGTH)]
    height = max(4.2, 0.6 + REPORT_LINE_INCHES * len(lines))
    figure = Figure(figsize=(14 if report else 10, height), layout="constrained")
    depth, height, width = spacing_mm if spacing_mm is not None else (1.0, 1.0, 1.0)
    aspects = {"axial": height / width, "coronal": depth / width, "sagittal": depth / height}
    low, high = window if window is not None else (float(volume.min()), float(volume.max()))
    masks = {} if overlay is None else orthogonal_planes(overlay, centre=centre)
    panels = figure.subplots(1, 4 if report else 3)
    for axes, (name, plane) in zip(panels, orthogonal_planes(volume, centre=centre).items()):
        image = {"aspect": aspects[name], "interpolation": "nearest"}
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, **image)
        if name in masks:
            axes.imshow(np.ma.masked_equal(masks[name], 0), cmap=ListedColormap(["red"]), alpha=0.4, **image)
        axes.set(title=name, xticks=[], yticks=[])
        for letter, (x, y) in zip(EDGES[name], EDGE_POSITIONS, strict=True):
            axes.text(x, y, letter, color="yellow", transform=axes.transAxes, ha="center", va="center")
    if report:
        panels[3].axis("off")
        panels[3].text(0, 1, "\n".join(lines), va="top", fontsize=6, transform=panels[3].transAxes, parse_math=False)
    figure.suptitle(title, parse_math=False)
    return figure
