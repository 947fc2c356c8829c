"""Whether a model reads `no`, and whether it knows left from right."""

import re

import numpy as np
from torch import Tensor

from mg3d.evaluation.results import Rows, measured
from mg3d.glossary import LABELS, prompts
from mg3d.metrics.bootstrap import insufficient_reason
from mg3d.metrics.classification import auroc, macro_auroc, mean_of_defined

SIDES = ("left", "right")
_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def negation_rows(
    volumes: Tensor, prompts_LPE: Tensor, labels: np.ndarray, patients: np.ndarray, *, n_bootstrap: int, seed: int
) -> Rows:
    """A row per finding and their mean: does `no X` mean the opposite of `X`?

    `here`: volumes with X that are nearer to `X` than to `no X`; `absent`: volumes without that are nearer to `no X`; both .5 by
    chance, and one of them 1 and the other 0 for a model that does not read `no`. AUROC of `X` alone against the pair tells
    what the denial adds. volumes [n, E], prompts [L, 2, E] (present first) of length 1, labels [n, L].
    """
    present, absent = (part.double() for part in prompts_LPE.unbind(1))
    alone, pair = ((volumes.double() @ part.T).numpy() for part in (present, present - absent))
    cosine = (present * absent).sum(-1).numpy()
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    shares = {
        "here, nearer to X": np.where(labels == 1, pair > 0, np.nan),
        "absent, nearer to no X": np.where(labels == 0, pair < 0, np.nan),
    }
    rows = []
    for place, name in enumerate(LABELS):
        row = {"finding": name, "cosine of X and no X": float(cosine[place])}
        for what, values in shares.items():
            row[what] = measured(lambda r, v=values[:, place]: mean_of_defined(v[r]), patients, **settings)
        label = labels[:, place]
        lacking = insufficient_reason(label, patients)
        for what, part in (("AUROC of X alone", alone[:, place]), ("AUROC of the pair", pair[:, place])):
            row[what] = measured(lambda r, a=label, s=part: auroc(a[r], s[r]), patients, **settings, lacking=lacking)
        rows.append(row)
    lacking = insufficient_reason(labels, patients)
    mean = {"finding": "mean", "cosine of X and no X": float(cosine.mean())}
    for what, values in shares.items():
        mean[what] = measured(lambda r, v=values: _mean_of_columns(v[r]), patients, **settings)
    for what, part in (("AUROC of X alone", alone), ("AUROC of the pair", pair)):
        mean[what] = measured(lambda r, s=part: macro_auroc(labels[r], s[r]), patients, **settings, lacking=lacking)
    return [*rows, mean]


def _mean_of_columns(values: np.ndarray) -> float:
    known = ~np.isnan(values)
    counts = known.sum(0)
    return mean_of_defined(np.where(counts > 0, np.where(known, values, 0).sum(0) / np.maximum(counts, 1), np.nan))


def swap_sides(text: str) -> str:
    """The text with left for right and right for left."""

    def other(match: re.Match[str]) -> str:
        word = _OTHER[match[0].lower()]
        return word.upper() if match[0].isupper() else word.capitalize() if match[0][0].isupper() else word

    return _SIDE.sub(other, text)


def sided_prompts() -> list[str]:
    """[finding, (left, right)], flat: `There is pleural effusion on the left.`"""
    present = (prompts(label)[0].removesuffix(".") for label in LABELS)
    return [f"{text} on the {side}." for text in present for side in SIDES]


def mirror_rows(
    volumes: Tensor, mirrored: Tensor, reports: Tensor, swapped: Tensor, patients: np.ndarray, *, n_bootstrap: int, seed: int
) -> Rows:
    """Volumes and their mirror images against reports and the same with left and right exchanged; [n, E] each, chance .5.

    For studies whose report names a side. No truth is needed: a report is true of its volume, and its swapped form of the mirror.
    """
    parts = [part.double() for part in (volumes, mirrored, reports, swapped)]
    own, across, mirror, both = ((one * other).sum(-1).numpy() for one in parts[:2] for other in parts[2:])
    shares = {
        "a volume is nearer to its report than to the swapped one": own > across,
        "a mirrored volume is nearer to the swapped report": both > mirror,
        "a report is nearer to its volume than to the mirrored one": own > mirror,
    }
    return [
        {
            "probe": name,
            "studies": len(right),
            "right": measured(lambda r, v=right: float(v[r].mean()), patients, n_bootstrap=n_bootstrap, seed=seed),
            "chance": 0.5,
        }
        for name, right in shares.items()
    ]


def side_rows(
    volumes: Tensor,
    mirrored: Tensor,
    prompts_LSE: Tensor,
    sides: np.ndarray,
    patients: np.ndarray,
    *,
    n_bootstrap: int,
    seed: int,
) -> Rows:
    """A row per finding that lies on either side in some volume: AUROC of `on the left` against `on the right`.

    volumes and mirrored [n, E], prompts [L, 2, E] (left first), sides int8 [n, L]: 1 left, 0 right, -1 neither or both.
    For mirrored volumes the sides are those of the mirror image, so that a model that knows sides has the same AUROC, and one
    that has only
    learned on which side a finding is common has one minus it.
    """
    left, right = (part.double() for part in prompts_LSE.unbind(1))
    seen, turned = ((part.double() @ (left - right).T).numpy() for part in (volumes, mirrored))
    other = np.where(sides >= 0, 1 - sides, -1)
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    rows = []
    for place, name in enumerate(LABELS):
        side = sides[:, place]
        if len(np.unique(side[side >= 0])) < 2:
            continue
        row = {"finding": name, "left": int((side == 1).sum()), "right": int((side == 0).sum())}
        for what, truth, score in (("volumes", side, seen), ("mirrored volumes", other[:, place], turned)):
            row[f"AUROC, {what}"] = measured(
                lambda r, t=truth, s=score[:, place]: auroc(t[r], s[r]),
                patients,
                **settings,
                lacking=insufficient_reason(truth, patients),
            )
        rows.append(row)
    return rows
