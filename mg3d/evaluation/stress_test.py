"""Stress test: drop in AUROC and recall when volumes have a wrong orientation, slice order, HU scale, spacing or crop.

A model whose scores never drop does not use the image. A score that rises means that the volumes were wrong to begin with.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.evaluation.card_data import CardEmbeddings
from mg3d.evaluation.encoder import embed_batches
from mg3d.evaluation.retrieval import retrieval_directions
from mg3d.evaluation.tables import Bootstrap, Rows, on_rows
from mg3d.evaluation.zero_shot import zero_shot_logits
from mg3d.metrics.classification import auroc
from mg3d.metrics.retrieval import first_rank
from mg3d.sentence_spans import normalize_text

UNCHANGED = "unchanged"
Z, Y, X = 2, 3, 4
K = 10
"""Recall at k is reported for this k."""
Corruption = Callable[[Tensor], Tensor]


def _resize_like(changed: Tensor, volumes: Tensor) -> Tensor:
    if changed.shape == volumes.shape:
        return changed
    return F.interpolate(changed, size=volumes.shape[2:], mode="trilinear", align_corners=False)


def _zoom(volumes: Tensor, *, zyx: tuple[float, float, float]) -> Tensor:
    """Magnify about the centre by a factor per axis; voxels from outside are 0, the lower end of the window."""
    z, y, x = zyx
    affine = torch.diag(torch.tensor([1 / x, 1 / y, 1 / z, 1.0], dtype=volumes.dtype))[:3].repeat(len(volumes), 1, 1)
    grid = F.affine_grid(affine, list(volumes.shape), align_corners=False)
    return F.grid_sample(volumes, grid, padding_mode="zeros", align_corners=False)


def _cut_top(volumes: Tensor, *, fraction: float) -> Tensor:
    cut = volumes.clone()
    cut[:, :, round(volumes.shape[Z] * (1 - fraction)) :] = 0
    return cut


def _interleave(volumes: Tensor) -> Tensor:
    return torch.cat([volumes[:, :, ::2], volumes[:, :, 1::2]], Z)


def _sort_slices_as_text(volumes: Tensor) -> Tensor:
    return volumes[:, :, [number - 1 for number in sorted(range(1, volumes.shape[Z] + 1), key=str)]]


CORRUPTIONS: dict[str, Corruption] = {
    UNCHANGED: lambda volumes: volumes,
    "left-right flip": lambda volumes: volumes.flip(X),
    "anterior-posterior flip": lambda volumes: volumes.flip(Y),
    "superior-inferior flip (slices reversed)": lambda volumes: volumes.flip(Z),
    "90° axial rotation": lambda volumes: _resize_like(volumes.rot90(1, (Y, X)), volumes),
    "180° axial rotation": lambda volumes: volumes.rot90(2, (Y, X)),
    "270° axial rotation": lambda volumes: _resize_like(volumes.rot90(3, (Y, X)), volumes),
    "z and y axes swapped": lambda volumes: _resize_like(volumes.transpose(Z, Y), volumes),
    "slices interleaved (even, then odd)": _interleave,
    "slices sorted as text (1, 10, 11, 2)": _sort_slices_as_text,
    "z spacing 2 x too large": partial(_zoom, zyx=(2.0, 1.0, 1.0)),
    "z spacing 2 x too small": partial(_zoom, zyx=(0.5, 1.0, 1.0)),
    "x and y spacing 1.25 x too large": partial(_zoom, zyx=(1.0, 1.25, 1.25)),
    "central 80 % of every axis": partial(_zoom, zyx=(1.25, 1.25, 1.25)),
    "upper quarter missing": partial(_cut_top, fraction=0.25),
}
"""Corruptions of volumes [B, 1, D, H, W] (+z superior, +y posterior, +x left; the window maps to [0, 1]) by name."""
OFFSETS_HU = (-1024, -100, -30, 30, 100)
"""-1024 HU: a rescale intercept applied twice."""


def corruptions(window_hu: tuple[float, float] | None) -> dict[str, Corruption]:
    """All corruptions. window_hu: HU values mapped to 0 and 1; None excludes HU offsets."""
    if window_hu is None:
        return dict(CORRUPTIONS)
    width = window_hu[1] - window_hu[0]
    return CORRUPTIONS | {f"{offset:+d} HU": partial(torch.add, other=offset / width) for offset in OFFSETS_HU}


def stress_rows(
    scores: Mapping[str, np.ndarray],
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    ranks: Mapping[str, np.ndarray],
    bootstrap: Bootstrap,
) -> Rows:
    """One row per corruption: macro AUROC, recall at `K`, and their drop with a paired interval.

    scores [n, L] and ranks [n] (of each volume's report; may be empty) by corruption, `UNCHANGED` among them; labels [n, L].
    """
    recall = {name: on_rows(np.mean, part <= K) for name, part in ranks.items()}
    rows = []
    for name in scores:
        row = {"corruption": name, "auroc": bootstrap.metric(auroc, labels, scores[name], patients), "drop": ""}
        if name != UNCHANGED:
            row["drop"], _ = bootstrap.macro_difference(auroc, labels, (scores[UNCHANGED], scores[name]), patients)
        if recall:
            row |= {f"volume to report, R@{K}": bootstrap.interval(recall[name], patients), "drop of recall": ""}
        if recall and name != UNCHANGED:
            row["drop of recall"], _ = bootstrap.difference(recall[UNCHANGED], recall[name], patients)
        rows.append(row)
    return rows


def stress_tables(embeddings: CardEmbeddings) -> dict[str, Rows]:
    """Stress test on the first volume of the card's first studies with a report, or of any studies if none has one."""
    card, data, encoder = embeddings.card, embeddings.data, embeddings.encoder
    chosen = (embeddings.report_volumes if len(embeddings.reports) else data.first_volumes)[: card.stress_studies]
    keys = [normalize_text(text.report) for text in embeddings.reports[: len(chosen)]]
    scores, ranks = {}, {}
    for name, corruption in corruptions(data.window_hu if data.is_hounsfield else None).items():
        batches = data.batches(chosen, size=embeddings.batch_size)
        volumes = embed_batches(encoder, map(corruption, batches))
        scores[name] = zero_shot_logits(volumes, embeddings.main_prompts, encoder.logit_scale)
        if len(set(keys)) > K:  # otherwise every report is among the first K
            reports = embeddings.report_embeddings[: len(chosen)].numpy()
            to_report = retrieval_directions(volumes.numpy(), reports, report_keys=keys)[0]
            ranks[name] = first_rank(to_report.similarity, to_report.relevant)
    labels, patients = data.labels[chosen], data.patients[chosen]
    rows = stress_rows(scores, labels, patients, ranks=ranks, bootstrap=card.bootstrap)
    return {f"Stress test, {len(chosen)} volumes": rows}
