"""From a card, its cases and a model to the result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mg3d.datasets.studies import ReportText
from mg3d.evaluation.cards import Card, partial_mark
from mg3d.evaluation.cases import Cases
from mg3d.evaluation.embedder import Embedder, embed_batches, sentence
from mg3d.evaluation.measure import Scores, logits_by_wording, prompt_texts, zero_shot_tables
from mg3d.evaluation.results import Result, Rows
from mg3d.evaluation.retrieval import directions, jaccard_rows, recall_rows
from mg3d.glossary import LABELS
from mg3d.sentence_spans import normalise

RECALL = "Retrieval between volumes and reports, by study"


class Setting(NamedTuple):
    """What every part of a card's evaluation reads."""

    card: Card
    cases: Cases
    embedder: Embedder
    batch: int
    """Volumes at once."""
    prompts: Tensor
    """[wordings, 18, 2, E]."""
    volumes: Tensor
    """[n, E] of all cases."""
    told: np.ndarray
    """int64: places among the studies (`Cases.first`) that have a report."""
    report_texts: list[ReportText]
    """Of these."""
    reports: Tensor | None
    """[told, E]; None when there is none."""

    @property
    def told_volumes(self) -> np.ndarray:
        """int64 [told]: the first volume of every study with a report."""
        return self.cases.first[self.told]


def set_up(card: Card, cases: Cases, embedder: Embedder, *, batch: int) -> Setting:
    """Embeds everything that the main numbers need."""
    texts = [sentence(text) for text in prompt_texts(card.wordings)]
    prompts = embedder.texts(texts).unflatten(0, (len(card.wordings), len(LABELS), 2))
    volumes = embed_batches(embedder, cases.batches(range(len(cases)), size=batch))
    reports = cases.reports()
    told = np.array([place for place, row in enumerate(reports) if row.sentence_spans], dtype=int)
    texts = [reports[place] for place in told]
    return Setting(card, cases, embedder, batch, prompts, volumes, told, texts, embedder.texts(texts) if texts else None)


def run_card(
    card: Card,
    cases: Cases,
    embedder: Embedder,
    *,
    model: Mapping[str, Any],
    partial: bool = False,
    batch: int = 8,
    parts: Sequence[Callable[[Setting], dict[str, Rows]]] = (),
) -> Result:
    """Main numbers of a card, and the tables of `parts` (stress, probes, truth) after them.

    model: what is judged, as builtins that stand in the result.

    Raises:
        ValueError: the data are not those of the card, see `partial_mark`; told before anything is computed.
    """
    facts = cases.facts()
    mark = partial_mark(card, facts, partial=partial)
    setting = set_up(card, cases, embedder, batch=batch)
    logits = logits_by_wording(setting.volumes, setting.prompts, embedder.logit_scale, card.wordings)
    tables = zero_shot_tables(card, Scores(logits, cases.labels, cases.patients))
    found, ranks, queries = retrieval_tables(setting)
    tables |= found
    rows = found.get(RECALL, [])
    for part in parts:
        tables |= part(setting)
    kept = {
        "ids": cases.ids,
        "patients": cases.patients.tolist(),
        "findings": list(LABELS),
        "labels": cases.labels.tolist(),
        "scores": np.round(logits[card.wording], 5).tolist(),
        "study_patients": cases.patients[setting.told_volumes].tolist(),
        "ranks": ranks,
        "queries": queries,
        "recall_ks": {name: [row["k"] for row in rows if row["direction"] == name] for name in ranks},
    }
    data = facts | {"shape": cases.metadata.get("shape"), "preprocessing_hash": cases.metadata.get("preproc_hash", "not told")}
    return Result(asdict(card), data, dict(model), mark, tables, kept)


def retrieval_tables(setting: Setting) -> tuple[dict[str, Rows], dict[str, list[int]], dict[str, list[int]]]:
    """Tables, and by direction the rank and the study of every query."""
    card, cases, tables = setting.card, setting.cases, {}
    settings = {"n_bootstrap": card.n_bootstrap, "seed": card.seed}
    ranks, queries = {}, {}
    if setting.reports is not None:
        chosen = setting.told_volumes
        keys = [normalise(text.report) for text in setting.report_texts]
        volumes, reports = setting.volumes[chosen].numpy(), setting.reports.numpy()
        parts = directions(volumes, reports, report_keys=keys, labels=cases.labels[chosen])
        rows, found = recall_rows(parts, cases.patients[chosen], ks=card.recall_ks, **settings)
        tables[RECALL] = rows
        ranks = {name: values.tolist() for name, values in found.items()}
        queries = {part.name: part.queries.tolist() for part in parts}
    volumes = setting.volumes.numpy()
    tables["Volumes of like findings"] = jaccard_rows(volumes, cases.labels, cases.patients, ks=card.jaccard_ks, **settings)
    return tables, ranks, queries
