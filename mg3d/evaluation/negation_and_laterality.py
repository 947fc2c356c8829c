"""Whether a model reads negation, and whether it distinguishes left from right."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.studies import ReportText
from mg3d.evaluation.card_data import CardEmbeddings
from mg3d.evaluation.encoder import embed_batches
from mg3d.evaluation.stress_test import X
from mg3d.evaluation.tables import Bootstrap, Rows
from mg3d.evaluation.zero_shot import MEAN
from mg3d.glossary import LABELS, prompts
from mg3d.metrics.classification import auroc, mean_of_defined

SIDES = ("left", "right")
_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_OPPOSITE = {"left": "right", "right": "left"}


def negation_rows(volumes: Tensor, prompts: Tensor, labels: np.ndarray, patients: np.ndarray, *, bootstrap: Bootstrap) -> Rows:
    """One row per finding X and their mean: is `no X` the opposite of `X`?

    The first two columns are accuracies by class with chance 0.5; a model that ignores `no` has 1 in one and 0 in the other.
    The AUROC of `X` alone and of the pair show what the negated prompt adds. volumes [n, E] and prompts [L, 2, E] (present first)
    of unit length, labels [n, L].
    """
    present, absent = (part.double() for part in prompts.unbind(1))
    alone, pair = ((volumes.double() @ part.T).numpy() for part in (present, present - absent))
    cosine = (present * absent).sum(-1).numpy()
    accuracy = {
        "present, closer to X": (1, np.where(labels == 1, pair > 0, np.nan)),
        "absent, closer to no X": (0, np.where(labels == 0, pair < 0, np.nan)),
    }

    def cells(columns: int | slice) -> dict[str, Any]:
        known, cells = labels[:, columns], {}
        for name, (value, correct) in accuracy.items():
            cells[name] = bootstrap.metric(_accuracy, known, correct[:, columns], patients, classes=(value,))
        return cells | {name: bootstrap.metric(auroc, known, part[:, columns], patients) for name, part in scores.items()}

    scores = {"AUROC of X alone": alone, "AUROC of the pair": pair}
    rows = []
    for index, name in enumerate(LABELS):
        rows.append({"finding": name, "cosine of X and no X": float(cosine[index])} | cells(index))
    return [*rows, {"finding": MEAN, "cosine of X and no X": float(cosine.mean())} | cells(slice(None))]


def _accuracy(_: np.ndarray, correct: np.ndarray) -> float:
    return mean_of_defined(correct)


def swap_sides(text: str) -> str:
    """Replace left by right and right by left."""

    def opposite(match: re.Match[str]) -> str:
        word = _OPPOSITE[match[0].lower()]
        return word.upper() if match[0].isupper() else word.capitalize() if match[0][0].isupper() else word

    return _SIDE.sub(opposite, text)


def swap_report_sides(report: ReportText) -> ReportText:
    """`swap_sides` of a report; sentence spans are shifted, because `left` and `right` differ in length."""
    shift = lambda offset: len(swap_sides(report.report[:offset]))  # noqa: E731
    spans = tuple((shift(start), shift(end)) for start, end in report.sentence_spans)
    return report._replace(report=swap_sides(report.report), sentence_spans=spans)


def sided_prompts() -> list[str]:
    """Prompts flattened from [finding, (left, right)], such as `There is pleural effusion on the left.`"""
    present = (prompts(label)[0].removesuffix(".") for label in LABELS)
    return [f"{text} on the {side}." for text in present for side in SIDES]


def mirror_rows(
    volumes: Tensor, mirrored: Tensor, reports: Tensor, swapped: Tensor, patients: np.ndarray, *, bootstrap: Bootstrap
) -> Rows:
    """Accuracy of distinguishing a volume from its mirror image, and a report from the report with left and right swapped.

    Needs no ground truth: a report is true of its volume, the swapped report of the mirror image. Embeddings [n, E] of studies
    whose report names a side.
    """
    cosine = lambda volume, report: (volume.double() * report.double()).sum(-1).numpy()  # noqa: E731
    correct = {
        "volume: own report over swapped report": cosine(volumes, reports) > cosine(volumes, swapped),
        "mirrored volume: swapped report over own report": cosine(mirrored, swapped) > cosine(mirrored, reports),
        "report: own volume over mirrored volume": cosine(volumes, reports) > cosine(mirrored, reports),
    }
    return [
        {"test": name, "studies": len(values), "accuracy": bootstrap.mean(values.astype(float), patients), "chance": 0.5}
        for name, values in correct.items()
    ]


def side_rows(
    volumes: Tensor, mirrored: Tensor, prompts: Tensor, sides: np.ndarray, patients: np.ndarray, *, bootstrap: Bootstrap
) -> Rows:
    """AUROC of `on the left` against `on the right`, one row per finding that occurs on both sides.

    volumes and mirrored [n, E], prompts [L, 2, E] (left first), sides int8 [n, L]: 1 left, 0 right, -1 neither or both. Mirrored
    volumes have the opposite sides: a model that distinguishes sides has the same AUROC for them; one that only knows the more
    frequent side has 1 - AUROC.
    """
    left, right = (part.double() for part in prompts.unbind(1))
    scores = [(part.double() @ (left - right).T).numpy() for part in (volumes, mirrored)]
    opposite = np.where(sides >= 0, 1 - sides, -1)
    rows = []
    for index, name in enumerate(LABELS):
        side = sides[:, index]
        if len(np.unique(side[side >= 0])) < 2:
            continue
        row = {"finding": name, "left": int((side == 1).sum()), "right": int((side == 0).sum())}
        for column, truth, score in (("volumes", side, scores[0]), ("mirrored volumes", opposite[:, index], scores[1])):
            row[f"AUROC, {column}"] = bootstrap.metric(auroc, truth, score[:, index], patients)
        rows.append(row)
    return rows


def negation_and_laterality_tables(embeddings: CardEmbeddings) -> dict[str, Rows]:
    """Negation by finding, and laterality from reports that name a side."""
    card, data = embeddings.card, embeddings.data
    rows = negation_rows(embeddings.volumes, embeddings.main_prompts, data.labels, data.patients, bootstrap=card.bootstrap)
    swapped = [swap_report_sides(report) for report in embeddings.reports]
    changed = [new.report != old.report for new, old in zip(swapped, embeddings.reports, strict=True)]
    tables = {"Negation": rows}
    sided = np.flatnonzero(changed)
    if len(sided):
        chosen = embeddings.report_volumes[sided]
        tables["Laterality by reports"] = mirror_rows(
            embeddings.volumes[chosen],
            embed_mirrored(embeddings, chosen),
            embeddings.report_embeddings[torch.from_numpy(sided)],
            embeddings.encoder.embed_texts([swapped[index] for index in sided]),
            data.patients[chosen],
            bootstrap=card.bootstrap,
        )
    return tables


def embed_mirrored(embeddings: CardEmbeddings, volumes: np.ndarray) -> Tensor:
    """Embeddings of volumes flipped left to right."""
    batches = embeddings.data.batches(volumes, size=embeddings.batch_size)
    return embed_batches(embeddings.encoder, (batch.flip(X) for batch in batches))
