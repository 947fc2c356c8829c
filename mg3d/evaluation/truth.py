"""What is known of synthetic studies beyond their labels: sides, clauses, masks."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.glossary import LABELS
from mg3d.sentence_spans import clean_section, normalise, report_units
from mg3d.settings.schema import CROP

_SIDES = {"left": 1, "right": 0}


def read_truths(root: Path, study_ids: Iterable[str], reports: Iterable[str]) -> list[dict[str, Any]] | None:
    """The truth files of a synthetic set's studies; None unless every study has one that tells its very report.

    Synthetic studies are named as real ones, so names alone would lend real patients the truth of synthetic ones.
    """
    truths = []
    for name, report in zip(study_ids, reports, strict=True):
        path = root / "truth" / f"{name}.json"
        truth = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if truth is None or _told(truth) != report:
            return None
        truths.append(truth)
    return truths


def _told(truth: dict[str, Any]) -> str:
    report, _ = report_units(*(clean_section(truth["report"][section]) for section in ("findings", "impression")))
    return report


def sides_of(truths: Sequence[dict[str, Any]]) -> np.ndarray:
    """int8 [n, 18]: 1 the finding is on the left alone, 0 on the right alone, -1 it is not there or has no single side."""
    side = [{finding["label"]: _SIDES.get(finding["side"], -1) for finding in truth["findings"]} for truth in truths]
    return np.array([[row.get(label, -1) for label in LABELS] for row in side], np.int8).reshape(-1, len(LABELS))


def meanings_of(truth: dict[str, Any], report: str, units: Sequence[tuple[int, int]]) -> list[str | None]:
    """What each sentence is known to say, `finding|polarity|place`; None where it speaks of none of the 18, or of several."""
    said = {normalise(c["text"]): f"{c['label']}|{c['polarity']}|{c['location']}" for c in truth["clauses"] if c["label"]}
    return [said.get(normalise(report[start:end])) for start, end in units]


def mask_path(root: Path, volume_id: str) -> Path:
    """Where `write_masks` of the phantom puts a volume's findings."""
    return root / "truth" / "masks" / f"{volume_id}.nii.gz"


def read_masks(path: Path, shape: Sequence[int]) -> Tensor:
    """bool [18, D, H, W]: where each finding is, on the grid `shape` of volumes cut to the central `CROP` of each axis."""
    labels = np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)
    edges = [round(side * (1 - keep) / 2) for side, keep in zip(labels.shape, CROP, strict=True)]
    cut = labels[tuple(slice(edge, side - edge) for edge, side in zip(edges, labels.shape, strict=True))]
    each = torch.from_numpy(cut[None] == 1 + np.arange(len(LABELS))[:, None, None, None])
    return F.interpolate(each[None].float(), size=tuple(shape), mode="nearest-exact")[0] > 0
