"""Evaluate an encoder on a card."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from mg3d.evaluation.card_data import CardData, CardEmbeddings, TableFunction, embed_card
from mg3d.evaluation.card_result import CardResult
from mg3d.evaluation.cards import Card, check_card_data
from mg3d.evaluation.encoder import Encoder, MG3DEncoder
from mg3d.evaluation.negation_and_laterality import negation_and_laterality_tables
from mg3d.evaluation.phantom_ground_truth import sentence_meanings
from mg3d.evaluation.phantom_tables import PhantomTables
from mg3d.evaluation.retrieval import label_jaccard_rows, recall_rows, retrieval_directions
from mg3d.evaluation.sentence_pairs import sentence_pair_tables
from mg3d.evaluation.stress_test import stress_tables
from mg3d.evaluation.tables import Rows
from mg3d.evaluation.thresholds_and_calibration import decision_and_calibration_tables
from mg3d.evaluation.zero_shot import ZeroShotScores, zero_shot_logits, zero_shot_tables
from mg3d.glossary import LABELS
from mg3d.sentence_spans import normalize_text


def evaluate_card(
    card: Card,
    data: CardData,
    encoder: Encoder,
    *,
    model: Mapping[str, Any],
    allow_partial: bool = False,
    batch_size: int = 8,
    extra_tables: Sequence[TableFunction] = (),
) -> CardResult:
    """Main tables of a card (zero-shot, calibration, retrieval), then `extra_tables`.

    model: description of the model as builtins, stored in the result.

    Raises:
        ValueError: the data differ from the card, see `check_card_data`; raised before anything is computed.
    """
    facts = data.facts()
    mark = check_card_data(card, facts, allow_partial=allow_partial)
    embeddings = embed_card(card, data, encoder, batch_size=batch_size)
    logits = {name: zero_shot_logits(embeddings.volumes, pair, encoder.logit_scale) for name, pair in embeddings.prompts.items()}
    scores = ZeroShotScores(logits, data.labels, data.patients)
    retrieval, cases = _retrieval(embeddings)
    tables = zero_shot_tables(card, scores) | decision_and_calibration_tables(card, scores) | retrieval
    for compute in extra_tables:
        tables |= compute(embeddings)
    cases |= {
        "ids": data.volume_ids,
        "patients": data.patients.tolist(),
        "findings": list(LABELS),
        "labels": data.labels.tolist(),
        "scores": np.round(logits[card.wording], 5).tolist(),
    }
    facts |= {"shape": data.metadata.get("shape"), "preprocessing_hash": data.metadata.get("preproc_hash", "unknown")}
    return CardResult(asdict(card), facts, dict(model), mark, tables, cases)


def _retrieval(embeddings: CardEmbeddings) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Tables, and per direction the rank and the study of every query."""
    card, data, tables = embeddings.card, embeddings.data, {}
    directions, rows, ranks = [], [], {}
    if embeddings.report_embeddings is not None:
        chosen = embeddings.report_volumes
        directions = retrieval_directions(
            embeddings.volumes[chosen].numpy(),
            embeddings.report_embeddings.numpy(),
            report_keys=[normalize_text(text.report) for text in embeddings.reports],
            labels=data.labels[chosen],
        )
        rows, ranks = recall_rows(directions, embeddings.report_patients, ks=card.recall_ks, bootstrap=card.bootstrap)
        tables["Retrieval between volumes and reports, by study"] = rows
    tables["Retrieval of volumes with similar findings"] = label_jaccard_rows(
        embeddings.volumes.numpy(), data.labels, data.patients, ks=card.jaccard_ks, bootstrap=card.bootstrap
    )
    cases = {
        "study_patients": embeddings.report_patients.tolist(),
        "ranks": {name: values.tolist() for name, values in ranks.items()},
        "queries": {direction.name: direction.queries.tolist() for direction in directions},
        "recall_ks": {name: [row["k"] for row in rows if row["direction"] == name] for name in ranks},
    }
    return tables, cases


def model_tables(
    encoder: MG3DEncoder,
    *,
    same_above: float,
    differ_below: float,
    phantom: PhantomTables | None = None,
    generated: Mapping[str, str] | None = None,
    with_stress_test: bool = False,
) -> list[TableFunction]:
    """Tables of an MG3D model beyond the main ones.

    same_above, differ_below: the model's SSM thresholds.
    generated: study id -> generated report; used with `phantom` only.
    """
    tables: list[TableFunction] = [negation_and_laterality_tables]
    if phantom:
        tables.append(phantom.side_table)
    if "ssm" in encoder.model.objectives:
        meanings = partial(sentence_meanings, phantom.truths) if phantom else None
        tables.append(partial(sentence_pair_tables, meanings=meanings, same_above=same_above, differ_below=differ_below))
    if phantom:
        tables += [phantom.grounding_tables, partial(phantom.report_table, generated=generated)]
    return [*tables, stress_tables] if with_stress_test else tables
