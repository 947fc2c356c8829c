"""Volumes, labels and reports of a card, read from a folder of Arrow files, and their embeddings."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.evaluation_sets import evaluation_set, read_volumes
from mg3d.datasets.schema import CLAUSE, SENTENCE, SPLITS, decode_metadata, index_path
from mg3d.datasets.studies import ReportText
from mg3d.datasets.windowing import window_bounds
from mg3d.evaluation.cards import Card
from mg3d.evaluation.encoder import Encoder, embed_batches
from mg3d.evaluation.tables import Rows
from mg3d.evaluation.zero_shot import embed_wordings
from mg3d.sentence_spans import SpanKind


class CardData:
    """Stored volumes of a card, in the order of its list.

    Args:
        folder: folder of Arrow files.
        window_hu: HU values mapped to 0 and 1.
        text_unit: unit that counts as one sentence.

    Raises:
        FileNotFoundError: the folder has no index file.
        ValueError: an index is damaged, or none of the card's volumes is stored.
    """

    def __init__(self, folder: Path, card: Card, *, window_hu: tuple[float, float], text_unit: SpanKind = "sentence") -> None:
        self.card, self.window_hu, self.text_unit = card, window_hu, text_unit
        paths = [index_path(folder, card.dataset, split) for split in SPLITS]
        self.indexes = [VolumeIndex(path) for path in paths if path.is_file()]
        columns = [index.table["volume_id"].to_pylist() for index in self.indexes]
        location = {name: (part, row) for part, names in enumerate(columns) for row, name in enumerate(names)}
        stored = [volume for volume in evaluation_set(card.rule, read_volumes(folder)) if volume.volume_id in location]
        if not stored:
            raise ValueError(f"{folder} has none of the {card.volumes:,} volumes of card {card.title} ({card.revision})")
        self.volume_ids = [volume.volume_id for volume in stored]
        self.study_ids = [volume.study_id for volume in stored]
        self.patients = np.array([volume.patient_id for volume in stored])
        self._locations = np.array([location[name] for name in self.volume_ids])
        _, first = np.unique(self.study_ids, return_index=True)
        self.first_volumes = np.sort(first)
        """int64 [s]: the first volume of each study."""

    def __len__(self) -> int:
        return len(self.volume_ids)

    def column(self, name: str, volumes: Sequence[int] | None = None) -> list[Any]:
        """Values of a column of the index files for these volumes (default: all)."""
        locations = self._locations[slice(None) if volumes is None else volumes]
        values = np.empty(len(locations), object)
        for part, index in enumerate(self.indexes):
            rows = np.flatnonzero(locations[:, 0] == part)
            values[rows] = np.fromiter(index.table[name].take(locations[rows, 1]).to_pylist(), object, len(rows))
        return values.tolist()

    @cached_property
    def labels(self) -> np.ndarray:
        """int8 [n, 18]: 1 present, 0 absent, -1 unknown."""
        return np.array(self.column("labels"), np.int8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of the stored volumes."""
        return tuple(self.metadata["shape"])

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the first index file with a listed volume."""
        return decode_metadata(self.indexes[self._locations[0][0]].table.schema)

    @cached_property
    def is_hounsfield(self) -> bool:
        """Whether stored values are HU on a known scale."""
        return set(self.column("intensity_unit")) <= {"hu", "hu8"}

    def facts(self) -> dict[str, Any]:
        """Counts and hashes that identify the data."""
        labels = self.labels.tolist()
        return {
            "volumes": len(self),
            "studies": len(self.first_volumes),
            "patients": len(np.unique(self.patients)),
            "ids_sha256": hash_lines(self.volume_ids),
            "labels_sha256": hash_lines(f"{name} {row}" for name, row in zip(self.volume_ids, labels, strict=True)),
            "reports_sha256": hash_lines(self.column("report_sha256")),
            "voxels_sha256": hash_lines(self.column("image_sha256")),
            "label_sources": sorted(set(self.column("label_source"))),
            "crop": self.metadata.get("preproc", {}).get("crop", {}).get("kind", "unknown"),
        }

    def reports(self) -> list[ReportText]:
        """Report of every study, in the order of `first_volumes`; empty where a study has none."""
        kind = CLAUSE if self.text_unit == "clause" else SENTENCE
        units = self.column("sentence_spans", self.first_volumes)
        spans = (tuple((unit["start"], unit["end"]) for unit in row if unit["kind"] == kind) for row in units)
        return [ReportText(*row) for row in zip(self.column("report", self.first_volumes), spans, strict=True)]

    def reported(self) -> tuple[np.ndarray, list[ReportText]]:
        """Studies with a report: their first volumes int64 [r], and their reports."""
        reports = self.reports()
        is_reported = np.array([bool(report.sentence_spans) for report in reports], dtype=bool)
        return self.first_volumes[is_reported], [report for report in reports if report.sentence_spans]

    def batches(self, volumes: Iterable[int], *, size: int) -> Iterator[Tensor]:
        """Batches float32 [B, 1, D, H, W] of these volumes; the window maps to [0, 1], values outside are not clipped."""
        volumes = list(volumes)
        for start in range(0, len(volumes), size):
            yield torch.stack([self._intensity(volume) for volume in volumes[start : start + size]])

    def _intensity(self, volume: int) -> Tensor:
        part, row = self._locations[volume].tolist()
        index = self.indexes[part]
        low, high = window_bounds(index.table["intensity_unit"][row].as_py(), self.window_hu, index.stored_window_hu)
        return torch.from_numpy((index.volume(row)[None].astype(np.float32) - low) / (high - low))


def hash_lines(lines: Iterable[str]) -> str:
    """SHA-256 of lines, each terminated by a line feed."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


class CardEmbeddings(NamedTuple):
    """Embeddings of a card's volumes, reports and prompts, from which all of its tables are computed."""

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


TableFunction = Callable[[CardEmbeddings], dict[str, Rows]]
"""Computes tables of a card, by heading."""


def embed_card(card: Card, data: CardData, encoder: Encoder, *, batch_size: int) -> CardEmbeddings:
    """Embed the volumes, reports and prompts of a card."""
    volumes = embed_batches(encoder, data.batches(range(len(data)), size=batch_size))
    chosen, reports = data.reported()
    return CardEmbeddings(
        card=card,
        data=data,
        encoder=encoder,
        batch_size=batch_size,
        prompts=embed_wordings(encoder, card.wordings),
        volumes=volumes,
        reports=reports,
        report_embeddings=encoder.embed_texts(reports) if reports else None,
        report_volumes=chosen,
    )
