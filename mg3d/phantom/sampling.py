"""Random patients and their findings."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from mg3d.glossary import LABELS, PREVALENCE

TEMPERING = 0.7
"""Exponent that raises the prevalences in a small set, so that every finding is common enough."""

FACTORS: dict[str, dict[str, float]] = {
    "vascular": {
        "Arterial wall calcification": 0.97, "Coronary artery wall calcification": 0.95, "Cardiomegaly": 0.60,
        "Emphysema": 0.45, "Hiatal hernia": 0.35,
    },
    "fluid": {
        "Pleural effusion": 0.80, "Pericardial effusion": 0.70, "Cardiomegaly": 0.55,
        "Interlobular septal thickening": 0.55, "Atelectasis": 0.58,
    },
    "infection": {"Lung opacity": 0.72, "Consolidation": 0.70, "Peribronchial thickening": 0.35, "Lung nodule": -0.27},
    "airway": {"Bronchiectasis": 0.72, "Peribronchial thickening": 0.72, "Mosaic attenuation pattern": 0.35},
}  # fmt: skip
"""Loadings of the findings on four latent factors, fitted to the largest phi coefficients of CT-RATE (within 0.07)."""


class Patient(NamedTuple):
    """Body size and position. Lengths in mm."""

    age: int
    sex: str
    scale: float
    half_width: float
    half_depth: float
    fat: float
    shift: tuple[float, float]
    """Offset of the body axis along x and y."""
    length: float
    """Scan length along z."""


def sample_patient(generator: np.random.Generator, *, vascular: float) -> Patient:
    """Sample a body; age increases with the score of the vascular factor."""
    age = float(np.clip(57 + 14 * vascular + 12 * generator.standard_normal(), 18, 95))
    scale = float(np.clip(generator.normal(1, 0.05), 0.85, 1.15))
    return Patient(
        age=round(age),
        sex="F" if generator.random() < 0.42 else "M",
        scale=scale,
        half_width=150 * scale,
        half_depth=105 * scale,
        fat=float(generator.uniform(6, 25)),
        shift=(float(generator.uniform(-8, 8)), float(generator.uniform(-8, 8))),
        length=320 * float(generator.uniform(0.9, 1.1)),
    )


def sample_findings(generator: np.random.Generator, *, tempered: bool) -> tuple[dict[str, bool], float]:
    """Sample the 18 findings from a Gaussian copula with four factors; returns them and the score of the vascular factor."""
    score = dict(zip(FACTORS, generator.standard_normal(len(FACTORS)), strict=True))
    noise = generator.standard_normal(len(LABELS))
    present = {}
    for index, (label, prevalence) in enumerate(zip(LABELS, PREVALENCE, strict=True)):
        loadings = {factor: members[label] for factor, members in FACTORS.items() if label in members}
        residual = np.sqrt(1 - sum(loading**2 for loading in loadings.values()))
        value = sum(loading * score[factor] for factor, loading in loadings.items()) + residual * noise[index]
        probability = prevalence**TEMPERING if tempered else prevalence
        present[label] = bool(value > NormalDist().inv_cdf(1 - probability))
    return present, float(score["vascular"])
