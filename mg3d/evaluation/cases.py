"""The volumes, labels and reports that a card names, out of a folder of Arrow files."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.evaluation_sets import evaluation_set, read_volumes
from mg3d.datasets.schema import CLAUSE, SENTENCE, SPLITS, decode_metadata, index_path
from mg3d.datasets.studies import ReportText
from mg3d.datasets.windowing import window_bounds
from mg3d.evaluation.cards import Card
from mg3d.sentence_spans import UnitKind


class Cases:
    """The stored volumes of a card's list, in its order.

    Args:
        folder: of Arrow files.
        window_hu: HU that become 0 and 1.
        text_unit: what counts as one sentence.

    Raises:
        FileNotFoundError: the folder holds no index file.
        ValueError: an index is damaged, or none of the card's volumes is stored.
    """

    def __init__(self, folder: Path, card: Card, *, window_hu: tuple[float, float], text_unit: UnitKind = "sentence") -> None:
        self.card, self.window_hu, self.text_unit = card, window_hu, text_unit
        paths = [index_path(folder, card.dataset, split) for split in SPLITS]
        self.indexes = [VolumeIndex(path) for path in paths if path.is_file()]
        listed = evaluation_set(card.rule, read_volumes(folder))
        columns = [index.table["volume_id"].to_pylist() for index in self.indexes]
        place = {name: (part, row) for part, names in enumerate(columns) for row, name in enumerate(names)}
        stored = [volume for volume in listed if volume.volume_id in place]
        if not stored:
            raise ValueError(f"{folder} holds none of the {card.volumes:,} volumes of card {card.title} ({card.revision})")
        self.ids = [volume.volume_id for volume in stored]
        self.study_ids = [volume.study_id for volume in stored]
        self.patients = np.array([volume.patient_id for volume in stored])
        self.where = [place[name] for name in self.ids]
        _, first = np.unique(self.study_ids, return_index=True)
        self.first = np.sort(first)
        """Places of the first volume of every study, int64 [s]."""

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str, places: Sequence[int] | None = None) -> list[Any]:
        """A column of the index files for the volumes at `places`, default all."""
        where = np.array(self.where)[slice(None) if places is None else places]
        values = np.empty(len(where), object)
        for part, index in enumerate(self.indexes):
            here = np.flatnonzero(where[:, 0] == part)
            values[here] = np.fromiter(index.table[name].take(where[here, 1]).to_pylist(), object, len(here))
        return values.tolist()

    @cached_property
    def labels(self) -> np.ndarray:
        """int8 [n, 18]: 1, 0, -1 = not known."""
        return np.array(self.column("labels"), np.int8)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What the first index file with a volume of the list says of its volumes."""
        return decode_metadata(self.indexes[self.where[0][0]].table.schema)

    @cached_property
    def has_hounsfield(self) -> bool:
        """Whether stored numbers are HU on a known scale."""
        return set(self.column("intensity_unit")) <= {"hu", "hu8"}

    def facts(self) -> dict[str, Any]:
        """How many there are and hashes of what they are, by which two evaluations are known to be of the same data."""
        labels = self.labels.tolist()
        return {
            "volumes": len(self),
            "studies": len(self.first),
            "patients": len(np.unique(self.patients)),
            "ids_sha256": text_hash(self.ids),
            "labels_sha256": text_hash(f"{name} {row}" for name, row in zip(self.ids, labels, strict=True)),
            "reports_sha256": text_hash(self.column("report_sha256")),
            "voxels_sha256": text_hash(self.column("image_sha256")),
            "label_sources": sorted(set(self.column("label_source"))),
            "crop": self.metadata.get("preproc", {}).get("crop", {}).get("kind", "not told"),
        }

    def reports(self) -> list[ReportText]:
        """The report of every study, in the order of `first`; one without has no text and no units."""
        kind = CLAUSE if self.text_unit == "clause" else SENTENCE
        units = self.column("sentence_spans", self.first)
        spans = (tuple((unit["start"], unit["end"]) for unit in row if unit["kind"] == kind) for row in units)
        return [ReportText(*row) for row in zip(self.column("report", self.first), spans, strict=True)]

    def batches(self, places: Iterable[int], *, size: int) -> Iterator[Tensor]:
        """float32 [B, 1, D, H, W] of volumes: 0 and 1 are the ends of the window, and what lies beyond is not cut off yet."""
        places = list(places)
        for start in range(0, len(places), size):
            yield torch.stack([self._intensity(place) for place in places[start : start + size]])

    def _intensity(self, place: int) -> Tensor:
        part, row = self.where[place]
        index = self.indexes[part]
        low, high = window_bounds(index.table["intensity_unit"][row].as_py(), self.window_hu, index.stored_window_hu)
        return torch.from_numpy((index.volume(row)[None].astype(np.float32) - low) / (high - low))


def text_hash(lines: Iterable[str]) -> str:
    """SHA-256 of lines, each ended by a line feed."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()
