"""Columns, file names and metadata of the Arrow files of pre-training; docs/data.md is the user documentation.

An index file `<stem>_<split>.arrow` has one row per volume: text, labels and the location of its voxels. The voxels are in
shards, Arrow IPC files with one record batch per volume, so that reading a memory-mapped volume touches no other.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mg3d.glossary import LABELS

SCHEMA_VERSION = 3
AXES = "z:+S,y:+P,x:+L"


class DatasetInfo(NamedTuple):
    """Static facts about a data set."""

    title: str
    stem: str
    """File name prefix of its index files."""
    unit: str
    """Intensity unit as prepared by default, a key of INTENSITIES."""
    licence: str
    has_reports: bool = True
    """False: volumes without a report are accepted."""
    required_splits: tuple[str, ...] = ("train", "test")
    """Splits that must not be empty."""


DATASETS = {
    "ct_rate": DatasetInfo("CT-RATE", "clm_ct_rate", "hu", "CC-BY-NC-SA-4.0"),
    "ctrg": DatasetInfo("CTRG-Chest-548K", "clm_chest_ctrg", "uint8_unknown_window", "see its authors"),
    "rad_chestct": DatasetInfo(
        "Rad-ChestCT", "clm_rad_chestct", "hu", "see its authors", has_reports=False, required_splits=("test",)
    ),
    "custom": DatasetInfo("custom", "clm_custom", "hu", "your own", has_reports=False, required_splits=()),
}
"""Name in settings, ids and folders -> facts about the data set."""
SPLITS = ("train", "val", "test")
SENTENCE, CLAUSE = 0, 1
"""Values of `sentence_spans.kind`."""

INTENSITIES = {"hu": pa.int16(), "hu8": pa.uint8(), "uint8_unknown_window": pa.uint8()}
"""Intensity unit of stored voxels -> dtype. hu: Hounsfield units; hu8: 0-255 over the HU window in the metadata
`intensity.window`; uint8_unknown_window: 0-255 over an undocumented window (CTRG)."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),  # data set / native id, never a path
        pa.field("study_id", pa.string(), nullable=False),  # volumes of one study are reconstructions of one scan
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("official_split", pa.string(), nullable=False),  # as named by the data set
        pa.field("reconstruction", pa.int16(), nullable=False),
        pa.field("findings", pa.string()),  # null = missing
        pa.field("impression", pa.string()),
        pa.field("report", pa.string(), nullable=False),  # both sections, joined by a line break
        pa.field(
            "sentence_spans",  # character spans in `report`: sentences, then clauses, in reading order
            pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("section", pa.int8()), ("kind", pa.int8())])),
            nullable=False,
        ),
        pa.field("report_sha256", pa.string(), nullable=False),  # of the normalised report
        pa.field("labels", pa.list_(pa.int8(), len(LABELS)), nullable=False),  # 1, 0, -1 = unknown
        pa.field("label_source", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # path relative to the folder of the index
        pa.field("shard_row", pa.int32(), nullable=False),
        pa.field("intensity_unit", pa.string(), nullable=False),  # a key of INTENSITIES
        pa.field("spacing_mm", pa.list_(pa.float32(), 3)),  # of the stored voxels, z y x; null = unknown
        pa.field("source", pa.string(), nullable=False),  # raw file below the data set's root; an id if names may identify people
        pa.field("source_shape", pa.list_(pa.int32(), 3), nullable=False),  # z y x
        pa.field("source_spacing_mm", pa.list_(pa.float32(), 3)),  # z y x
        pa.field("hu_source", pa.string(), nullable=False),  # see `RawVolume.hu_source`
        pa.field("changes", pa.list_(pa.string())),  # e.g. "resampled from a rotated grid (12.0 degrees)"
        pa.field("image_sha256", pa.string(), nullable=False),  # of the stored voxels
    ]
)


def shard_schema(shape: Sequence[int], unit: str, metadata: Mapping[str, Any] | None = None) -> pa.Schema:
    """Schema of a shard of volumes of `shape` (z, y, x): columns volume_id and image."""
    image = pa.fixed_shape_tensor(INTENSITIES[unit], tuple(shape), dim_names=("z", "y", "x"))
    fields = [pa.field("volume_id", pa.string(), nullable=False), pa.field("image", image, nullable=False)]
    return pa.schema(fields, metadata=encode_metadata(metadata or {}))


def volume_batch(volume_id: str, voxels: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """One volume [z, y, x] as a record batch of a shard with `schema`."""
    image = schema.field("image").type
    flat = pa.array(np.ascontiguousarray(voxels).ravel(), image.value_type)
    storage = pa.FixedSizeListArray.from_arrays(flat, voxels.size)
    return pa.record_batch([pa.array([volume_id]), pa.ExtensionArray.from_storage(image, storage)], schema=schema)


def encode_metadata(values: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata `mg3d.<name>` -> JSON, including schema version, axes and labels."""
    everything = {"schema_version": SCHEMA_VERSION, "axes": AXES, "labels": list(LABELS), **values}
    return {f"mg3d.{name}".encode(): json.dumps(value, sort_keys=True).encode() for name, value in everything.items()}


def decode_metadata(schema: pa.Schema) -> dict[str, Any]:
    """The values that `encode_metadata` stored; empty for files of other programs."""
    stored = schema.metadata or {}
    return {key.decode()[5:]: json.loads(value) for key, value in stored.items() if key.startswith(b"mg3d.")}


GEOMETRY_STEPS = ("crop", "resize")
"""Preprocessing steps that determine field of view and voxel size."""


def differing_steps(recipe: Mapping[str, Any] | None, other: Mapping[str, Any] | None, steps: Sequence[str] = ()) -> list[str]:
    """Names of the preprocessing steps (of `steps`, or all) that differ between two recipes; empty if one is unknown.

    A recipe is the metadata entry `preproc` of an index file.
    """
    if not recipe or not other:
        return []
    first, second = (json.loads(json.dumps(part)) for part in (recipe, other))
    return [step for step in steps or sorted(first.keys() | second.keys()) if first.get(step) != second.get(step)]


def index_path(data_root: Path, dataset: str, split: str) -> Path:
    """The index file of one split."""
    return data_root / f"{DATASETS[dataset].stem}_{split}.arrow"
