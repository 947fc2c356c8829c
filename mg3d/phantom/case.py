"""One synthetic study: body, findings, volume, report and ground truth. Fully determined by its seed words."""

from typing import Any, NamedTuple

import numpy as np

from mg3d.glossary import LABELS
from mg3d.phantom.canvas import Change, Point
from mg3d.phantom.pathology import DRAWERS, DrawContext, DrawnFinding
from mg3d.phantom.report import PhantomReport, Style, write_report
from mg3d.phantom.sampling import Patient, sample_findings
from mg3d.settings.schema import CROP

VERSION = 1
MIN_VISIBLE_VOXELS, MIN_CONTRAST_TO_NOISE = 4, 2.0
SOFT_NOISE_HU, SHARP_NOISE_HU = 12.0, 35.0


class PhantomCase(NamedTuple):
    """A study in memory."""

    patient: Patient
    volume_hu: np.ndarray
    """float32 [z, y, x], without noise."""
    voxel_mm: float
    findings: dict[str, DrawnFinding | None]
    visible: dict[str, bool]
    mask: np.ndarray
    """uint8 [z, y, x]: 1 + index in LABELS of the last finding drawn here, 0 = none; all findings overwrite cardiomegaly."""
    report: PhantomReport

    def ground_truth(self) -> dict[str, Any]:
        """Ground truth as JSON-serialisable builtins."""
        return {
            "version": VERSION,
            "present": {label: finding is not None for label, finding in self.findings.items()},
            "visible": self.visible,
            "findings": [finding._asdict() for finding in self.findings.values() if finding],
            "clauses": [clause._asdict() for clause in self.report.clauses],
        }


def make_case(seed_words: tuple[int, ...], *, voxels_in_plane: int, style: Style, tempered: bool) -> PhantomCase:
    """Draw the study of these seed words (seed, patient, scan)."""
    generator = np.random.default_rng(seed_words)
    present, vascular = sample_findings(generator, tempered=tempered)
    enlarged_heart = present["Cardiomegaly"]
    context = DrawContext(generator, voxels_in_plane=voxels_in_plane, vascular=vascular, enlarged_heart=enlarged_heart)
    canvas, patient = context.canvas, context.patient
    findings: dict[str, DrawnFinding | None] = dict.fromkeys(LABELS)
    visible = dict.fromkeys(LABELS, False)
    mask = np.zeros(canvas.hu.shape, np.uint8)
    for label, draw in DRAWERS.items():
        if present[label]:
            before = canvas.hu.copy()
            finding = _relative_to_scan(draw(context), patient)
            # The enlarged heart was drawn with the body.
            change = _heart(context) if label == "Cardiomegaly" else canvas.change_since(before)
            findings[label] = finding._replace(voxels=int(change.voxels.sum()))
            visible[label] = label == "Cardiomegaly" or is_visible(change)
            mask[change.voxels & ((mask == 0) | (label != "Cardiomegaly"))] = 1 + LABELS.index(label)
    report = write_report(findings, style=style, generator=generator)
    return PhantomCase(patient, canvas.hu, canvas.voxel_mm, findings, visible, mask, report)


def _relative_to_scan(finding: DrawnFinding, patient: Patient) -> DrawnFinding:
    """Move coordinates from the body axis to the scan centre; fill `centres_mm` of findings with one centre."""
    shift = (*patient.shift, 0.0)

    def moved(point: Point) -> Point:
        return tuple(round(float(c) + s, 1) for c, s in zip(point, shift, strict=True))

    centre = finding.centre_mm and moved(finding.centre_mm)
    parts = tuple(moved(point) for point in finding.centres_mm)
    return finding._replace(centre_mm=centre, centres_mm=parts or ((centre,) if centre else ()))


def _heart(context: DrawContext) -> Change:
    box, weight = context.canvas.ellipsoid(*context.body.heart)
    voxels = np.zeros(context.canvas.hu.shape, bool)
    voxels[box.index] = weight > 0.5
    return Change(voxels, 0.0)


def is_visible(change: Change) -> bool:
    """True if at least four voxels are inside the pre-training crop, with a contrast-to-noise ratio of at least two."""
    shape = change.voxels.shape
    edges = [round(side * (1 - fraction) / 2) for side, fraction in zip(shape, CROP, strict=True)]
    inside = change.voxels[tuple(slice(edge, side - edge) for edge, side in zip(edges, shape, strict=True))]
    return bool(inside.sum() >= MIN_VISIBLE_VOXELS and change.contrast_hu >= MIN_CONTRAST_TO_NOISE * SOFT_NOISE_HU)


def reconstruct(volume_hu: np.ndarray, seed_words: tuple[int, ...], *, sharp: bool) -> np.ndarray:
    """Reconstruction in int16 HU: noise of a soft kernel, or unsharp masking and the noise of a sharp kernel."""
    generator, volume = np.random.default_rng(seed_words), volume_hu
    if sharp:
        volume = volume + 0.8 * (volume - _blurred(volume))
    noise = generator.standard_normal(volume.shape, dtype=np.float32) * (SHARP_NOISE_HU if sharp else SOFT_NOISE_HU)
    return np.clip(np.rint(volume + noise), -1024, 3071).astype(np.int16)


def _blurred(volume: np.ndarray) -> np.ndarray:
    """Binomial filter (1, 2, 1) / 4 along every axis."""
    for axis in range(3):
        padded = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        first, last = (np.take(padded, np.arange(start, start + volume.shape[axis]), axis) for start in (0, 2))
        volume = (first + 2 * volume + last) / 4
    return volume
