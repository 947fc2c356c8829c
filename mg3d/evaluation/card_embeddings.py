"""Embeddings of everything on a card, from which all of its tables are computed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mg3d.datasets.studies import ReportText
from mg3d.evaluation.card_data import CardData
from mg3d.evaluation.cards import Card
from mg3d.evaluation.encoder import Encoder, as_sentence, embed_batches
from mg3d.evaluation.tables import Rows
from mg3d.evaluation.zero_shot import prompt_texts, prompts_by_wording
from mg3d.glossary import LABELS


class CardEmbeddings(NamedTuple):
    """Data of a card with their embeddings, from which all tables are computed."""

    card: Card
    data: CardData
    encoder: Encoder
    batch_size: int
    """Volumes per forward pass."""
    prompts: dict[str, Tensor]
    """[18, 2, E] by wording, `ensemble` among them; present first."""
    volumes: Tensor
    """[n, E]."""
    reports: list[ReportText]
    """Reports of the r studies that have one."""
    report_embeddings: Tensor | None
    """[r, E]; None without a report."""
    report_volumes: np.ndarray
    """int64 [r]: the first volume of the study of each report."""

    @property
    def main_prompts(self) -> Tensor:
        """Embedded prompts of the card's main wording."""
        return self.prompts[self.card.wording]

    @property
    def report_studies(self) -> list[str]:
        """Study id of each report."""
        return [self.data.study_ids[volume] for volume in self.report_volumes]

    @property
    def report_patients(self) -> np.ndarray:
        """Patient of each report."""
        return self.data.patients[self.report_volumes]


Tables = Callable[[CardEmbeddings], dict[str, Rows]]
"""Further tables of a card, by heading."""


def embed_card(card: Card, data: CardData, encoder: Encoder, *, batch_size: int) -> CardEmbeddings:
    """Embed the volumes, reports and prompts of a card."""
    texts = [as_sentence(text) for text in prompt_texts(card.wordings)]
    embedded = encoder.embed_texts(texts).unflatten(0, (len(card.wordings), len(LABELS), 2))
    volumes = embed_batches(encoder, data.batches(range(len(data)), size=batch_size))
    chosen, reports = data.reported()
    return CardEmbeddings(
        card=card,
        data=data,
        encoder=encoder,
        batch_size=batch_size,
        prompts=prompts_by_wording(embedded, card.wordings),
        volumes=volumes,
        reports=reports,
        report_embeddings=encoder.embed_texts(reports) if reports else None,
        report_volumes=chosen,
    )
