"""Checks of labels: how frequent each is, and whether reports deny what they say."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mg3d.datasets.schema import DATASETS
from mg3d.doctor.catalogue import Catalogue
from mg3d.doctor.findings import Finding, examples, number
from mg3d.doctor.published import PRECISION, PREVALENCES
from mg3d.glossary import LABELS
from mg3d.sentence_spans import polarity, split_clauses

DEVIATIONS = 3.5
"""Standard errors by which a share may differ from the published one; 18 labels differ by that in one set of hundred."""
FEWEST_SCANS = 50
TOLERATED = 0.01
"""Share of denied findings that may be labelled present before it is more than slips of the labelling."""


class Prevalence(NamedTuple):
    """How frequent one label is among the scans of one official split."""

    dataset: str
    split: str
    label: str
    scans: int
    """With a known label."""
    share: float
    published: float | None

    @property
    def allowed(self) -> float:
        """Largest difference from the published share that chance and rounding explain."""
        assert self.published is not None
        return PRECISION + DEVIATIONS * math.sqrt(self.published * (1 - self.published) / self.scans)


def prevalences(catalogue: Catalogue) -> list[Prevalence]:
    """The prevalence of every label in every data set and official split that has labels; a scan counts once."""
    first = ~catalogue.rows["study_id"].duplicated().to_numpy()
    found = []
    for (dataset, split), part in catalogue.rows[first].groupby(["dataset", "official_split"], sort=False):
        labels = catalogue.labels[part.index]
        published = None if catalogue.synthetic else PREVALENCES.get(dataset, {}).get(split)
        for place, label in enumerate(LABELS):
            known = labels[:, place][labels[:, place] >= 0]
            if len(known):
                share = float(known.mean())
                found.append(Prevalence(dataset, split, label, len(known), share, published and published[place]))
    return found


def check_prevalence(catalogue: Catalogue) -> list[Finding]:
    """Labels whose share differs from the published one by more than chance; nothing for a synthetic set."""
    compared = [part for part in prevalences(catalogue) if part.published is not None and part.scans >= FEWEST_SCANS]
    wrong = [part for part in compared if abs(part.share - part.published) > part.allowed]
    if not wrong:
        return []
    worst = max(wrong, key=lambda part: abs(part.share - part.published) / part.allowed)
    return [
        Finding(
            code="prevalence_deviates",
            severity="warning",
            found=f"{len(wrong)} of {len(compared)} shares of labels differ from the published ones, most of all "
            f"{worst.label} in {worst.split}: {worst.share:.1%} of {worst.scans:,} scans",
            expected=f"{worst.published:.1%} within {worst.allowed:.1%} ({worst.label})",
            action="check that the table of labels is the published one and its columns are in order; a chosen part of the "
            "data may differ with reason",
            values={f"{part.dataset} {part.split} {part.label}": [part.share, part.published] for part in wrong},
        )
    ]


def check_labels_known(catalogue: Catalogue) -> list[Finding]:
    """Volumes without labels, in data sets that come with some."""
    rows, findings = catalogue.rows, []
    unknown = (catalogue.labels < 0).all(axis=1)
    for dataset in sorted(set(rows["dataset"]) & PREVALENCES.keys()):
        names = tuple(rows["volume_id"][unknown & (rows["dataset"] == dataset).to_numpy()])
        if names:
            findings.append(
                Finding(
                    code="no_labels",
                    severity="warning",
                    found=f"{number(len(names), 'volume')} of {DATASETS[dataset].title} without labels ({examples(names)})",
                    expected="18 labels for every volume",
                    action="download the table of labels again; pre-training does without them, evaluation does not",
                    volumes=names,
                )
            )
    return findings


def check_denied_labels(catalogue: Catalogue) -> list[Finding]:
    """Labels that say present where every clause of the report that names the finding denies it.

    Only the label's own words count, so that few of the contradictions are seen; those that are seen are mostly true.
    """
    rows, denied, wrong = catalogue.rows, 0, set()
    first = np.flatnonzero(~rows["study_id"].duplicated().to_numpy() & (catalogue.labels >= 0).any(axis=1))
    for place in first:
        for label in denied_labels(rows["report"][place]):
            denied += 1
            if catalogue.labels[place, label] == 1:
                wrong.add(rows["study_id"][place])
    names = tuple(rows["volume_id"][rows["study_id"].isin(wrong)])
    if not names:
        return []
    return [
        Finding(
            code="label_flip",
            severity="warning" if len(wrong) > TOLERATED * denied else "fact",
            found=f"{number(len(wrong), 'scan')} with a label that the report denies, of {denied:,} denials that name a label "
            f"({examples(names)})",
            expected=f"at most {TOLERATED:.0%} of the denials",
            action="read some of them; labels that contradict reports spoil evaluation, not pre-training",
            volumes=names,
            values={"scans": len(wrong), "denials": denied},
        )
    ]


def denied_labels(report: str) -> Iterator[int]:
    """Places in LABELS of the findings that a report names by the label's own words and denies in every such clause."""
    lower = report.lower()
    named = [place for place, label in enumerate(LABELS) if label.lower() in lower]
    clauses = [lower[start:end] for start, end in split_clauses(report)] if named else []
    for place in named:
        said = {polarity(clause) for clause in clauses if LABELS[place].lower() in clause}
        if said == {-1}:
            yield place
