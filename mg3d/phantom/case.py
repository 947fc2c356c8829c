"""One synthetic patient: body, findings, volumes, report, truth. The same seed words give the same case everywhere."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mg3d.glossary import LABELS
from mg3d.phantom.body import Body, draw_body
from mg3d.phantom.canvas import Canvas, Change, Point
from mg3d.phantom.pathology import DRAWERS, HEART_ENLARGED, HEART_NORMAL, Finding, Hand
from mg3d.phantom.report import Report, Style, write_report
from mg3d.phantom.sampling import Patient, sample_findings, sample_patient
from mg3d.settings.schema import CROP

VERSION = 1
SEEN_VOXELS, SEEN_CONTRAST = 4, 2.0
SOFT_NOISE_HU, SHARP_NOISE_HU = 12.0, 35.0


class Case(NamedTuple):
    """A study before it is written."""

    patient: Patient
    volume_hu: np.ndarray
    """float32 [z, y, x], without noise."""
    voxel_mm: float
    findings: dict[str, Finding | None]
    visible: dict[str, bool]
    mask: np.ndarray
    """uint8 [z, y, x]: 1 + the place in LABELS of the finding that was drawn here last, 0 = none. The heart gives way to all."""
    report: Report

    def truth(self) -> dict[str, Any]:
        """What is true of this study, as builtins."""
        return {
            "version": VERSION,
            "present": {label: finding is not None for label, finding in self.findings.items()},
            "visible": self.visible,
            "findings": [finding._asdict() for finding in self.findings.values() if finding],
            "clauses": [clause._asdict() for clause in self.report.clauses],
        }


def make_case(words: tuple[int, ...], *, voxels_in_plane: int, style: Style, tempered: bool, without: str | None = None) -> Case:
    """The case of these seed words (seed, patient, scan).

    without: a finding that is taken away again after it was drawn, so that all else stays as it is; not the heart's size.
    """
    generator = np.random.default_rng(words)
    present, vascular = sample_findings(generator, tempered=tempered)
    patient = sample_patient(generator, vascular=vascular)
    canvas = Canvas(voxels_in_plane=voxels_in_plane, length_mm=patient.length)
    heart = float(generator.uniform(*(HEART_ENLARGED if present["Cardiomegaly"] else HEART_NORMAL)))
    body = draw_body(canvas, patient, generator, heart_factor=heart)
    hand = Hand(canvas, body, generator)
    findings: dict[str, Finding | None] = dict.fromkeys(LABELS)
    visible = dict.fromkeys(LABELS, False)
    mask = np.zeros(canvas.hu.shape, np.uint8)
    for label, draw in DRAWERS.items():
        if present[label]:
            before = canvas.hu.copy() if label == without else None
            with canvas.watch() as tell:
                finding = _from_scan_centre(draw(hand), patient)
            if before is not None:
                canvas.hu[:] = before
                continue
            # The large heart was drawn with the body.
            changed = _heart(canvas, body) if label == "Cardiomegaly" else tell()
            findings[label] = finding._replace(voxels=int(changed.voxels.sum()))
            visible[label] = label == "Cardiomegaly" or is_visible(changed)
            mask[changed.voxels & ((mask == 0) | (label != "Cardiomegaly"))] = 1 + LABELS.index(label)
    report = write_report(findings, style=style, generator=generator)
    return Case(patient, canvas.hu, canvas.voxel_mm, findings, visible, mask, report)


def _from_scan_centre(finding: Finding, patient: Patient) -> Finding:
    """The finding with its places told from the scan's centre instead of the body's; one place is the list of it."""
    shift = (*patient.shift, 0.0)

    def moved(point: Point) -> Point:
        return tuple(round(float(c) + s, 1) for c, s in zip(point, shift, strict=True))

    centre = finding.centre_mm and moved(finding.centre_mm)
    parts = tuple(moved(point) for point in finding.centres_mm)
    return finding._replace(centre_mm=centre, centres_mm=parts or ((centre,) if centre else ()))


def _heart(canvas: Canvas, body: Body) -> Change:
    box, weight = canvas.ellipsoid(*body.heart)
    voxels = np.zeros(canvas.hu.shape, bool)
    voxels[box.place] = weight > 0.5
    return Change(voxels, 0.0)


def is_visible(change: Change) -> bool:
    """Whether a finding leaves at least four voxels inside pre-training's crop with a contrast-to-noise ratio of at least two."""
    shape = change.voxels.shape
    edges = [round(side * (1 - keep) / 2) for side, keep in zip(shape, CROP, strict=True)]
    inside = change.voxels[tuple(slice(edge, side - edge) for edge, side in zip(edges, shape, strict=True))]
    return bool(inside.sum() >= SEEN_VOXELS and change.contrast_hu >= SEEN_CONTRAST * SOFT_NOISE_HU)


def reconstruct(volume_hu: np.ndarray, words: tuple[int, ...], *, sharp: bool) -> np.ndarray:
    """int16 HU of one reconstruction: noise of a soft kernel, or an unsharp mask and the noise of a sharp one."""
    generator, volume = np.random.default_rng(words), volume_hu
    if sharp:
        volume = volume + 0.8 * (volume - _blurred(volume))
    noise = generator.standard_normal(volume.shape, dtype=np.float32) * (SHARP_NOISE_HU if sharp else SOFT_NOISE_HU)
    return np.clip(np.rint(volume + noise), -1024, 3071).astype(np.int16)


def _blurred(volume: np.ndarray) -> np.ndarray:
    for axis in range(3):
        padded = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        first, last = (np.take(padded, np.arange(start, start + volume.shape[axis]), axis) for start in (0, 2))
        volume = (first + 2 * volume + last) / 4
    return volume


def label_row(findings: Mapping[str, Finding | None]) -> list[int]:
    """1 or 0 for each of the 18 labels, in their order."""
    return [int(findings[label] is not None) for label in LABELS]
