"""Evaluation cards: named, versioned recipes for a number, so that two people who report it have measured the same thing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything that decides a number besides the model. Another value of any field is another version."""

    name: str
    version: int
    dataset: str
    """A key of `datasets.schema.DATASETS`."""
    revision: str
    """Of the data, in words."""
    rule: str
    """A key of `datasets.evaluation_sets.RULES`: which volumes."""
    volumes: int
    studies: int | None
    """None = not published; so too of patients."""
    patients: int | None
    label_set: str
    """Name and version of the labels, in words."""
    label_source: str
    """What the index files say of these labels."""
    ids_sha256: str | None = None
    """Of the volumes' ids (`Fingerprint`); None = nobody has published it, so that only the counts are compared."""
    labels_sha256: str | None = None
    crop: str = "fraction of each axis, centred"
    """Kind of crop that the index files must tell."""
    wording: str = "ensemble"
    """Prompts of the main numbers: a key of `glossary.PROMPTS`, or `ensemble`."""
    wordings: tuple[str, ...] = ("ct_clip", "original", "there_is", "seen", "evidence", "noted")
    """Prompts over which the spread is told."""
    dev_share: float = 0.2
    """Of patients, chosen by a hash of their id: thresholds and temperature are taken from them, and they are left out of what
    is decided and calibrated. Ranking numbers (AUROC, AUPRC, retrieval) need no such part and are over all."""
    threshold_rule: str = "f1"
    """A key of `metrics.thresholds.RULES`."""
    recall_ks: tuple[int, ...] = (1, 5, 10, 50, 100)
    jaccard_ks: tuple[int, ...] = (1, 5, 10, 50)
    bins: int = 15
    n_bootstrap: int = 300
    seed: int = 0
    stress_studies: int = 500
    """The first studies are enough for the stress table."""

    @property
    def title(self) -> str:
        """As it stands beside every number."""
        return f"{self.name} v{self.version}"


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
            revision="CT-RATE, validation split, reconstructions that are not on its no_chest list and have a file",
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
            label_set="Rad-ChestCT labels read as 16 of the 18 findings, as CT-CLIP",
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
            label_set="the phantom's truth, version 1",
            label_source="radbert",  # the phantom writes its truth in the layout of CT-RATE's label files
            ids_sha256="8a808ae14cbfc589404d15d57468afeacaf9d8cb9dbb0a43d625efa0c5af9c23",
            labels_sha256="1ea32f12df8d3ec5edd1aadb2e29c07f05121bf779a45df0b8a929ec9fef1299",
            n_bootstrap=300,
        ),
    )
}
"""Cards by name."""


def find_card(name: str) -> Card:
    """The card of this name; ValueError when there is none."""
    if name not in CARDS:
        raise ValueError(f"there is no card {name!r}; choose from {', '.join(CARDS)}")
    return CARDS[name]


def partial_mark(card: Card, data: Mapping[str, Any], *, partial: bool) -> str:
    """`PARTIAL n/N` and why, which stands in every table, or nothing when the data are those of the card.

    data: as `Cases.facts` gives it. Hashes of a list that is not whole differ anyway, so they are compared for whole ones only.

    Raises:
        ValueError: the data are not those of the card and `partial` is not set, or they are more than the card lists.
    """
    counts, content = _other_counts(card, data), _other_content(card, data)
    if not counts:
        content = _other_hashes(card, data) + content
    if not counts and not content:
        return ""
    if data["volumes"] > card.volumes:
        raise ValueError(f"{data['volumes']:,} volumes, card {card.title} lists {card.volumes:,}: these are other data")
    if not partial:
        raise ValueError(
            f"these are not the data of card {card.title}: {'; '.join(counts + content)}. Complete or correct them; or give "
            "--partial, and every table says that its numbers are not those of the card"
        )
    mark = f"PARTIAL {data['volumes']:,}/{card.volumes:,}"
    return f"{mark} ({'; '.join(content)})" if content else mark


def _other_counts(card: Card, data: Mapping[str, Any]) -> list[str]:
    expected = {"volumes": card.volumes, "studies": card.studies, "patients": card.patients}
    return [f"{data[k]:,} {k} instead of {n:,}" for k, n in expected.items() if n is not None and data[k] != n]


def _other_hashes(card: Card, data: Mapping[str, Any]) -> list[str]:
    pinned = {"ids": card.ids_sha256, "labels": card.labels_sha256}
    differ = ((what, data[f"{what}_sha256"], sum_) for what, sum_ in pinned.items() if sum_ not in (None, data[f"{what}_sha256"]))
    return [f"{what} with the hash {found[:12]} instead of {sum_[:12]}" for what, found, sum_ in differ]


def _other_content(card: Card, data: Mapping[str, Any]) -> list[str]:
    told = []
    others = sorted(set(data["label_sources"]) - {card.label_source})
    if others:
        told.append(f"labels by {', '.join(others)} instead of {card.label_source}")
    if data["crop"] != card.crop:
        told.append(f"volumes cut by {data['crop']!r} instead of {card.crop!r}")
    return told
