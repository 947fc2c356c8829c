"""Arrow files of a few tiny studies, and a tokenizer for their reports."""

import hashlib
from itertools import product

import numpy as np
import pyarrow as pa

from mg3d.datasets.schema import INDEX_SCHEMA, encode_metadata, index_path, shard_schema, volume_batch
from mg3d.datasets.tokenizer import train_wordpiece
from mg3d.sentence_spans import build_report, normalize_text

SHAPE = (16, 12, 8)
OFFSET = {"train": 0, "val": 80, "test": 160}
"""Added to the voxels of a split, so that no image occurs in two splits."""
ORGANS = ("heart", "aorta", "liver", "lung", "trachea", "pleura", "spine")


COLLATOR = {
    "max_text_len": 64, "mim_patch_size": 4, "mim_mask_ratio": 0.5, "mlm_probability": 0.3, "sentence_views": 3,
    "negated_view_fraction": 0.25,
}  # fmt: skip
"""Arguments of `Collator` for these volumes and reports."""


def report_of(number):
    organ, other = ORGANS[number % 7], ORGANS[(number * 3 + 1) % 7]
    findings = (
        f"The {organ} is enlarged, measuring {number + 3} mm. No lesion of the {other}. The {other} is normal in study {number}."
    )
    return findings, f"Enlarged {organ}"


def write_split(
    root, dataset, split, *, patients, scans=1, reconstructions=1, shape=SHAPE, unit="hu", first=0, voxels=None,
    reported=lambda number: True, compression=None, window=None, recipe=None,
):  # fmt: skip
    """Write `patients` patients with `scans` studies each; all voxels are -1000 + OFFSET + row, or `voxels(number, shape)`.

    reported: whether a patient has a report; compression: of the shard; window: HU stored as 0 and 255 by 8-bit voxels;
    recipe: preparation recipe in the index.
    """
    rows, shard = [], f"shards/{dataset}/{split}.arrow"
    (root / "shards" / dataset).mkdir(parents=True, exist_ok=True)
    schema, dtype, zero = shard_schema(shape, unit), *((np.int16, -1000) if unit == "hu" else (np.uint8, 0))
    with pa.ipc.new_file(root / shard, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for number, scan, reconstruction in product(range(first, first + patients), range(scans), range(reconstructions)):
            study = f"{dataset}/{split}_{number}_{scan}"
            sections = report_of(number + 100 * scan) if reported(number) else ("", "")
            image = voxels(number, shape) if voxels else np.full(shape, zero + OFFSET[split] + len(rows), dtype)
            writer.write_batch(volume_batch(f"{study}_{reconstruction}", image, schema))
            rows.append(index_row(study, number, reconstruction, sections, image) | {
                "dataset": dataset, "official_split": split, "patient_id": f"{dataset}/{split}_{number}",
                "intensity_unit": unit, "shard": shard, "shard_row": len(rows),
            })  # fmt: skip
    metadata = {"shape": list(shape), "intensity": {"unit": unit} | ({"window": window} if window else {})}
    metadata |= {"preproc": recipe} if recipe else {}
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA).replace_schema_metadata(encode_metadata(metadata))
    with pa.ipc.new_file(index_path(root, dataset, split), table.schema) as writer:
        writer.write_table(table)
    return index_path(root, dataset, split)


def read_index(root, split, dataset="ct_rate"):
    with pa.memory_map(str(index_path(root, dataset, split))) as source:
        return pa.ipc.open_file(source).read_all()


def edit_index(root, split, change, *, metadata=None, dataset="ct_rate"):
    """Rewrite an index file with `change(rows)` and further schema metadata."""
    table, path = read_index(root, split, dataset), index_path(root, dataset, split)
    schema = table.schema.with_metadata({**table.schema.metadata, **(metadata or {})})
    changed = pa.Table.from_pylist(change(table.to_pylist()), schema=schema)
    path.unlink()
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_table(changed)


def first_with(column, value):
    """A change that sets one cell of the first row."""
    return lambda rows: [{**rows[0], column: value}, *rows[1:]]


def with_distinct_reports(rows):
    """Reports of `write_split` repeat after seven patients; this change gives each study a different hash."""
    return [{**row, "report_sha256": f"of {row['study_id']}"} for row in rows]


def index_row(study, number, reconstruction, sections, image):
    report, spans = build_report(*sections)
    return {
        "volume_id": f"{study}_{reconstruction}", "study_id": study, "reconstruction": reconstruction,
        "findings": sections[0], "impression": sections[1], "report": report,
        "sentence_spans": [span._asdict() for span in spans],
        "report_sha256": hashlib.sha256(normalize_text(report).encode()).hexdigest(),
        "labels": [(number + label) % 2 for label in range(18)], "label_source": "test",
        "spacing_mm": [1.0, 2.0, 3.0], "source": f"{study}.nii.gz", "source_shape": list(image.shape),
        "source_spacing_mm": [1.0, 2.0, 3.0], "hu_source": "already_hu",
        "image_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
    }  # fmt: skip


def small_tokenizer(folder):
    """WordPiece tokenizer trained on the tiny reports."""
    texts = [" ".join(report_of(number)) for number in range(40)]
    return train_wordpiece(texts, vocab_size=120, out_dir=folder)
