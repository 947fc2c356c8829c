"""Three planes of a chest as radiologists look at them."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

LETTERS, LINE_INCHES = 72, 0.12
"""Letters of a report's line that fit beside the planes, and the height of a line."""


def orthogonal_planes(volume: np.ndarray, *, centre: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Axial, coronal and sagittal plane [rows, columns] through a voxel (z, y, x; default: the middle) of a volume [z, y, x].

    Volume axes: +z superior, +y posterior, +x patient left. As on a workstation: the patient's right is at the left edge of axial
    and coronal planes, the front on top of axial ones and at the left of sagittal ones, the head on top of the other two.
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
    """The three planes of a volume [z, y, x] through `centre` (see `orthogonal_planes`) beside its report.

    spacing_mm (z, y, x) sets the aspect; window: values that become black and white; overlay: bool [z, y, x], shown in red. The
    figure is as high as the report needs.
    """
    lines = [line for part in report.split("\n") for line in textwrap.wrap(part, LETTERS)]
    figure = Figure(figsize=(14 if report else 10, max(4.2, 0.6 + LINE_INCHES * len(lines))), layout="constrained")
    columns = 4 if report else 3
    marked = {} if overlay is None else orthogonal_planes(overlay, centre=centre)
    depth, height, width = spacing_mm if spacing_mm is not None else (1.0, 1.0, 1.0)
    aspects = {"axial": height / width, "coronal": depth / width, "sagittal": depth / height}
    low, high = window if window is not None else (float(volume.min()), float(volume.max()))
    edges = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
    for place, (name, plane) in enumerate(orthogonal_planes(volume, centre=centre).items()):
        axes = figure.add_subplot(1, columns, place + 1)
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=aspects[name], interpolation="nearest")
        if name in marked:
            visible = np.ma.masked_equal(marked[name], 0)
            axes.imshow(visible, cmap=ListedColormap(["red"]), alpha=0.4, aspect=aspects[name], interpolation="nearest")
        axes.set_title(name)
        axes.set_xticks([])
        axes.set_yticks([])
        for letter, (x, y) in zip(edges[name], ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04)), strict=True):
            axes.text(x, y, letter, color="yellow", transform=axes.transAxes, ha="center", va="center")
    if report:
        axes = figure.add_subplot(1, columns, columns)
        axes.axis("off")
        axes.text(0, 1, "\n".join(lines), va="top", fontsize=6, transform=axes.transAxes, parse_math=False)
    figure.suptitle(title, parse_math=False)
    return figure
