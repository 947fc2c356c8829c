"""Evaluation cards: named, versioned recipes, so that two people who report a number have measured the same thing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mg3d.evaluation.tables import Bootstrap


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything besides the model that determines a result. Changing any field makes a new version."""

    name: str
    version: int
    dataset: str
    """A key of `datasets.schema.DATASETS`."""
    revision: str
    """Description of the data and their revision."""
    rule: str
    """A key of `datasets.evaluation_sets.EVALUATION_SETS`: which volumes."""
    volumes: int
    studies: int | None
    """Expected number; None if it has not been published."""
    patients: int | None
    """Expected number; None if it has not been published."""
    label_set: str
    """Name and version of the labels."""
    label_source: str
    """Label source recorded in the index files."""
    ids_sha256: str | None = None
    """Hash of the volume ids (`CardData.facts`); None if it has not been published, and then only counts are checked."""
    labels_sha256: str | None = None
    """Hash of ids and labels; None if it has not been published."""
    crop: str = "fraction"
    """Crop recorded in the index files."""
    wording: str = "ensemble"
    """Prompts of the main results: a key of `glossary.PROMPTS`, or `ensemble`."""
    wordings: tuple[str, ...] = ("ct_clip", "original", "there_is", "seen", "evidence", "noted")
    """Prompts over which the spread is reported."""
    dev_fraction: float = 0.2
    """Fraction of patients on which thresholds and temperature are fitted, chosen by a hash of the patient id. Decisions and
    calibration are reported on the others. Ranking metrics (AUROC, AUPRC, retrieval) use all patients."""
    threshold_rule: str = "f1"
    """A key of `metrics.thresholds.RULES`."""
    recall_ks: tuple[int, ...] = (1, 5, 10, 50, 100)
    jaccard_ks: tuple[int, ...] = (1, 5, 10, 50)
    bins: int = 15
    """Bins of the calibration error."""
    n_bootstrap: int = 300
    seed: int = 0
    stress_studies: int = 500
    """Maximum number of studies in the stress test."""

    @property
    def title(self) -> str:
        """Name and version, shown with every result."""
        return f"{self.name} v{self.version}"

    @property
    def bootstrap(self) -> "Bootstrap":
        """Bootstrap settings of every interval."""
        from mg3d.evaluation.tables import Bootstrap  # not above: it imports scikit-learn, and --help needs only the names

        return Bootstrap(self.n_bootstrap, self.seed)


CARDS = {
    card.name: card
    for card in (
        Card(
            name="ct_rate",
            version=1,
            dataset="ct_rate",
            revision="CT-RATE, validation split, all reconstructions",
            rule="ct_rate_valid",
            volumes=3_039,
            studies=1_564,
            patients=1_304,
            label_set="CT-RATE multi-abnormality labels, by RadBERT, as published",
            label_source="radbert",
        ),
        Card(
            name="ct_rate_chest",
            version=1,
            dataset="ct_rate",
            revision="CT-RATE, validation split, reconstructions with a file and not on its no_chest list",
            rule="ct_rate_valid_chest",
            volumes=3_001,
            studies=None,
            patients=None,
            label_set="CT-RATE multi-abnormality labels, by RadBERT, as published",
            label_source="radbert",
        ),
        Card(
            name="rad_chestct",
            version=1,
            dataset="rad_chestct",
            revision="Rad-ChestCT as distributed on Zenodo, all three parts",
            rule="rad_chestct",
            volumes=3_630,
            studies=3_630,
            patients=None,
            label_set="Rad-ChestCT labels mapped to 16 of the 18 findings, as in CT-CLIP",
            label_source="rad_chestct/ct_clip/1",
        ),
        Card(
            name="phantom",
            version=1,
            dataset="ct_rate",
            revision="tools/make_phantom.py with its defaults (320 patients of valid, seed 0)",
            rule="ct_rate_valid",
            volumes=395,
            studies=339,
            patients=320,
            label_set="the phantom's ground truth, version 1",
            label_source="radbert",  # the phantom writes its ground truth in the layout of CT-RATE's label files
            ids_sha256="8a808ae14cbfc589404d15d57468afeacaf9d8cb9dbb0a43d625efa0c5af9c23",
            labels_sha256="1ea32f12df8d3ec5edd1aadb2e29c07f05121bf779a45df0b8a929ec9fef1299",
        ),
    )
}
"""Cards by name."""


def check_card_data(card: Card, facts: Mapping[str, Any], *, allow_partial: bool) -> str:
    """Compare data with a card. Returns the mark that every table shows: empty, or `PARTIAL n/N` with the differences.

    facts: see `CardData.facts`. Hashes are compared for complete data only, because those of incomplete data always differ.

    Raises:
        ValueError: the data differ from the card and `allow_partial` is False, or there are more volumes than the card lists.
    """
    counts = {"volumes": card.volumes, "studies": card.studies, "patients": card.patients}
    missing = [f"{facts[name]:,} {name} instead of {n:,}" for name, n in counts.items() if n is not None and facts[name] != n]
    differences = []
    if not missing:
        hashes = {"ids": card.ids_sha256, "labels": card.labels_sha256}
        differences += [
            f"{name} with hash {facts[f'{name}_sha256'][:12]} instead of {expected[:12]}"
            for name, expected in hashes.items()
            if expected is not None and facts[f"{name}_sha256"] != expected
        ]
    if other_sources := set(facts["label_sources"]) - {card.label_source}:
        differences.append(f"labels from {', '.join(sorted(other_sources))} instead of {card.label_source}")
    if facts["crop"] != card.crop:
        differences.append(f"crop {facts['crop']!r} instead of {card.crop!r}")
    if not missing and not differences:
        return ""
    if facts["volumes"] > card.volumes:
        raise ValueError(
            f"found {facts['volumes']:,} volumes, but card {card.title} lists {card.volumes:,}. Use a folder with only its data."
        )
    if not allow_partial:
        raise ValueError(
            f"the data differ from card {card.title}: {'; '.join(missing + differences)}. Complete or correct them, or pass "
            "--partial to mark every table as PARTIAL."
        )
    mark = f"PARTIAL {facts['volumes']:,}/{card.volumes:,}"
    return f"{mark} ({'; '.join(differences)})" if differences else mark
