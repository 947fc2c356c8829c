"""The Arrow files of pre-training, once: columns, names, metadata. docs/data.md describes them for people.

An index file `<stem>_<split>.arrow` has one row per volume, with its text, labels and where its voxels lie. The voxels are in
shards, Arrow IPC files with one record batch per volume, so that a memory map reads one volume without touching another.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mg3d.glossary import LABELS

SCHEMA_VERSION = 2
AXES = "z:+S,y:+P,x:+L"


class DatasetInfo(NamedTuple):
    """What is known of a data set before any file is read."""

    title: str
    stem: str
    """Beginning of its index files' names."""
    unit: str
    """What its voxels are, a key of INTENSITIES."""
    licence: str
    has_reports: bool = True
    """False: its volumes may come without a report, for use of the images alone."""
    needs: tuple[str, ...] = ("train", "test")
    """Splits that must hold a volume."""


DATASETS = {
    "ct_rate": DatasetInfo("CT-RATE", "clm_ct_rate", "hu", "CC-BY-NC-SA-4.0"),
    "ctrg": DatasetInfo("CTRG-Chest-548K", "clm_chest_ctrg", "uint8_unknown_window", "see its authors"),
    "rad_chestct": DatasetInfo("Rad-ChestCT", "clm_rad_chestct", "hu", "see its authors", has_reports=False, needs=("test",)),
    "custom": DatasetInfo("custom", "clm_custom", "hu", "your own", has_reports=False, needs=()),
}
"""Name in settings, ids and folders -> facts."""
SPLITS = ("train", "val", "test")
SENTENCE, CLAUSE = 0, 1
"""Values of `sentence_spans.kind`."""

INTENSITIES = {"hu": pa.int16(), "hu8": pa.uint8(), "uint8_unknown_window": pa.uint8()}
"""Unit of stored voxels -> their type. hu: Hounsfield units; hu8: 0-255 of the window of HU in the index's metadata
`intensity.window`; uint8_unknown_window: 0-255 of a window that nobody documented (CTRG)."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),  # data set / native id, never a path
        pa.field("study_id", pa.string(), nullable=False),  # volumes of one study are reconstructions of one scan
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("official_split", pa.string(), nullable=False),  # as the data set names it
        pa.field("reconstruction", pa.int16(), nullable=False),
        pa.field("findings", pa.string()),  # null = not given
        pa.field("impression", pa.string()),
        pa.field("report", pa.string(), nullable=False),  # both sections, a line break between
        pa.field(
            "sentence_spans",  # character offsets into `report`, sentences first, in reading order
            pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("section", pa.int8()), ("kind", pa.int8())])),
            nullable=False,
        ),
        pa.field("report_sha256", pa.string(), nullable=False),  # of the normalised report
        pa.field("labels", pa.list_(pa.int8(), len(LABELS)), nullable=False),  # 1, 0, -1 = not known
        pa.field("label_source", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # path relative to the folder of the index
        pa.field("shard_row", pa.int32(), nullable=False),
        pa.field("intensity_unit", pa.string(), nullable=False),  # a key of INTENSITIES
        pa.field("spacing_mm", pa.list_(pa.float32(), 3)),  # of the stored voxels, z y x; null = not documented
        pa.field("source", pa.string(), nullable=False),  # raw file below the data set's root; an id where names may be people's
        pa.field("source_shape", pa.list_(pa.int32(), 3), nullable=False),  # z y x
        pa.field("source_spacing_mm", pa.list_(pa.float32(), 3)),  # z y x
        pa.field("hu_source", pa.string(), nullable=False),  # see `RawVolume.hu_source`
        pa.field("image_sha256", pa.string(), nullable=False),  # of the stored voxels
    ]
)


def shard_schema(shape: Sequence[int], unit: str, metadata: Mapping[str, Any] | None = None) -> pa.Schema:
    """The schema of a shard of volumes of `shape` (z, y, x): columns volume_id and image."""
    image = pa.fixed_shape_tensor(INTENSITIES[unit], tuple(shape), dim_names=("z", "y", "x"))
    fields = [pa.field("volume_id", pa.string(), nullable=False), pa.field("image", image, nullable=False)]
    return pa.schema(fields, metadata=encode_metadata(metadata or {}))


def volume_batch(volume_id: str, voxels: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """One volume [z, y, x] as the record batch that goes into a shard of `schema`."""
    image = schema.field("image").type
    flat = pa.array(np.ascontiguousarray(voxels).ravel(), image.value_type)
    storage = pa.FixedSizeListArray.from_arrays(flat, voxels.size)
    return pa.record_batch([pa.array([volume_id]), pa.ExtensionArray.from_storage(image, storage)], schema=schema)


def encode_metadata(values: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata: `mg3d.<name>` -> JSON; version, axes and labels are added."""
    everything = {"schema_version": SCHEMA_VERSION, "axes": AXES, "labels": list(LABELS), **values}
    return {f"mg3d.{name}".encode(): json.dumps(value, sort_keys=True).encode() for name, value in everything.items()}


def decode_metadata(schema: pa.Schema) -> dict[str, Any]:
    """What `encode_metadata` stored; empty for a file of another program."""
    stored = schema.metadata or {}
    return {key.decode()[5:]: json.loads(value) for key, value in stored.items() if key.startswith(b"mg3d.")}


SEEN = ("crop", "resize")
"""Steps of a preparation that decide what of a chest a volume shows, and how large."""


def differing_steps(recipe: Mapping[str, Any] | None, other: Mapping[str, Any] | None, steps: Sequence[str] = ()) -> list[str]:
    """The steps (`steps`, or all) in which two preparations of volumes differ, each the entry `preproc` of an index file's
    metadata; none where one of the two is not told."""
    if not recipe or not other:
        return []
    one, two = (json.loads(json.dumps(part)) for part in (recipe, other))
    return [step for step in steps or sorted(one.keys() | two.keys()) if one.get(step) != two.get(step)]


def index_path(data_root: Path, dataset: str, split: str) -> Path:
    """The index file of one split."""
    return data_root / f"{DATASETS[dataset].stem}_{split}.arrow"
