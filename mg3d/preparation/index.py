"""Write the index files: records and sidecars joined to rows of INDEX_SCHEMA."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mg3d.datasets.schema import DATASETS, INDEX_SCHEMA, SPLITS, encode_metadata, index_path
from mg3d.files import replacing, write_bytes
from mg3d.preparation.quarantine import Quarantined
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import Change, VolumeRecord
from mg3d.preparation.shards import ShardTask
from mg3d.sentence_spans import SPANS_VERSION, build_report, normalize_text

_SPLIT_AND_ROW = pa.schema([pa.field("split", pa.string(), nullable=False), *INDEX_SCHEMA])


def join(
    tasks: Sequence[ShardTask], sidecars: Sequence[Mapping[str, Any]], out: Path
) -> tuple[pa.Table, list[Quarantined], list[str]]:
    """Index rows of all stored volumes with a column `split`, quarantined volumes, and ids of those not downloaded yet."""
    parts, quarantined, absent = [_SPLIT_AND_ROW.empty_table()], [], []
    for task, sidecar in zip(tasks, sidecars):
        shard, rows = task.path.relative_to(out).as_posix(), []
        for record in task.records:
            facts = sidecar["volumes"][record.volume_id]
            if facts.get("refused") == "not_downloaded":
                absent.append(record.volume_id)
            elif "refused" in facts:
                reason = (facts["refused"], facts["detail"], record.row)
                quarantined.append(Quarantined(record.volume_id, record.dataset, "volume", *reason))
            else:
                rows.append({"split": record.split, **_row(record, facts, shard, task.recipe.unit(record.dataset))})
        parts.append(pa.Table.from_pylist(rows, schema=_SPLIT_AND_ROW))  # by shard: all rows as dicts take five times as much
    return pa.concat_tables(parts), quarantined, absent


def write_index(out: Path, dataset: str, recipe: Recipe, rows: pa.Table) -> None:
    """Write the index files of a data set: of all splits, or only of those with volumes if there is no training volume."""
    info = DATASETS[dataset]
    metadata = {
        "shape": list(recipe.shape),
        "intensity": recipe.intensity(dataset),
        "preproc": recipe.provenance(dataset),
        "preproc_hash": recipe.digest(dataset),
        "sentence_spans_version": SPANS_VERSION,
        "compression": recipe.compression,
        "source": {"name": info.title, "licence": info.licence},
    }
    filled = set(rows["split"].unique().to_pylist())
    remove_index(out, dataset)
    for split in SPLITS if "train" in filled else sorted(filled):
        chosen = rows.filter(pc.equal(rows["split"], split)).drop_columns("split").combine_chunks()
        schema = INDEX_SCHEMA.with_metadata(encode_metadata({**metadata, "split": split}))
        with replacing(index_path(out, dataset, split)) as stream, pa.ipc.new_file(stream, schema) as writer:
            writer.write_table(chosen.cast(schema))


def write_key(path: Path, records: Sequence[VolumeRecord]) -> None:
    """Map hashed ids to files and table rows, readable by the owner only: file names may be names of patients."""
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("volume_id", "row", "file"), *((r.volume_id, r.row or "", r.files[0]) for r in records)])
    write_bytes(path, stream.getvalue().encode(errors="surrogateescape"), mode=0o600)


def remove_index(out: Path, dataset: str) -> None:
    """Delete the index files of a data set before its shards change."""
    for split in SPLITS:
        index_path(out, dataset, split).unlink(missing_ok=True)


def _row(record: VolumeRecord, facts: Mapping[str, Any], shard: str, unit: str) -> dict[str, Any]:
    report, spans, report_sha256 = _text(record.findings, record.impression)
    return {
        "volume_id": record.volume_id,
        "study_id": record.study_id,
        "patient_id": record.patient_id,
        "dataset": record.dataset,
        "official_split": record.official_split,
        "reconstruction": record.reconstruction,
        "findings": record.findings,
        "impression": record.impression,
        "report": report,
        "sentence_spans": spans,
        "report_sha256": report_sha256,
        "labels": list(record.labels),
        "label_source": record.label_source,
        "shard": shard,
        "shard_row": facts["row"],
        "intensity_unit": unit,
        "source": facts["source"],
        "changes": [str(Change(*change)) for change in facts["changes"]],
        **{name: facts[name] for name in ("spacing_mm", "source_shape", "source_spacing_mm", "hu_source", "image_sha256")},
    }


@lru_cache(maxsize=64)
def _text(findings: str | None, impression: str | None) -> tuple[str, list[dict[str, int]], str]:
    """Report, sentence spans and hash. Cached, because consecutive reconstructions of a scan share the report."""
    report, spans = build_report(findings, impression)
    return report, [span._asdict() for span in spans], hashlib.sha256(normalize_text(report).encode()).hexdigest()
