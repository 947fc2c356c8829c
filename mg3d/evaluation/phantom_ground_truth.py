"""Ground truth of the phantom (synthetic CT) beyond its labels: sides, meanings of sentences, masks."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.datasets.studies import ReportText
from mg3d.glossary import LABELS
from mg3d.report_sections import clean_section
from mg3d.sentence_spans import build_report, normalize_text
from mg3d.settings.schema import CROP

_SIDES = {"left": 1, "right": 0}


def read_ground_truth(root: Path, study_ids: Iterable[str], reports: Iterable[str]) -> list[dict[str, Any]] | None:
    """Ground truth of each study; None unless every study has a file with exactly its report.

    Phantom studies have the same names as real ones, so names alone could assign phantom truth to real patients.

    Raises:
        ValueError: a file lists a finding twice.
    """
    truths = []
    for study_id, report in zip(study_ids, reports, strict=True):
        path = root / "truth" / f"{study_id}.json"
        truth = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if truth is None or _report_of(truth) != report:
            return None
        labels = [finding["label"] for finding in truth["findings"]]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{path} lists a finding twice ({', '.join(labels)}). Make the phantom again.")
        truths.append(truth)
    return truths


def _report_of(truth: dict[str, Any]) -> str:
    report, _ = build_report(*(clean_section(truth["report"][section]) for section in ("findings", "impression")))
    return report


def finding_sides(truths: Sequence[dict[str, Any]]) -> np.ndarray:
    """int8 [n, 18]: 1 on the left only, 0 on the right only, -1 absent or not on a single side."""
    sides = [{finding["label"]: _SIDES.get(finding["side"], -1) for finding in truth["findings"]} for truth in truths]
    return np.array([[row.get(label, -1) for label in LABELS] for row in sides], np.int8).reshape(-1, len(LABELS))


def sentence_meanings(truths: Iterable[dict[str, Any]], reports: Iterable[ReportText]) -> list[str | None]:
    """Meaning `finding|polarity|location` of every sentence of all reports; None if it is about none of the 18 findings."""
    meanings = []
    for truth, report in zip(truths, reports, strict=True):
        clauses = [clause for clause in truth["clauses"] if clause["label"]]
        known = {normalize_text(c["text"]): f"{c['label']}|{c['polarity']}|{c['location']}" for c in clauses}
        meanings += [known.get(normalize_text(report.report[start:end])) for start, end in report.sentence_spans]
    return meanings


def read_masks(root: Path, volume_id: str, shape: Sequence[int]) -> Tensor:
    """Masks bool [18, D, H, W] of a volume's findings, cropped to the central `CROP` of each axis and resized to `shape`.

    Raises:
        FileNotFoundError: the phantom was made without masks.
    """
    labels = np.asarray(nib.load(require_masks(root, volume_id)).dataobj).transpose(2, 1, 0)
    margins = [round(side * (1 - fraction) / 2) for side, fraction in zip(labels.shape, CROP, strict=True)]
    cropped = labels[tuple(slice(margin, side - margin) for margin, side in zip(margins, labels.shape, strict=True))]
    masks = torch.from_numpy(cropped[None] == 1 + np.arange(len(LABELS))[:, None, None, None])
    return F.interpolate(masks[None].float(), size=tuple(shape), mode="nearest-exact")[0] > 0


def require_masks(root: Path, volume_id: str) -> Path:
    """File of a volume's masks, as written by `tools/make_phantom.py --masks`; FileNotFoundError if it is missing."""
    path = root / "truth" / "masks" / f"{volume_id}.nii.gz"
    if not path.is_file():
        raise FileNotFoundError(f"no mask {path}. Add masks with `python tools/make_phantom.py --out {root} --masks`.")
    return path
