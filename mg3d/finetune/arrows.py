"""Cases of a downstream data set in one Arrow file, which is faster to read than the published layout."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mg3d.finetune.cases import ArrowRow, Candidate, FinetuneCase, ReferenceNodule
from mg3d.finetune.images import read_array

FORMAT = 3
METADATA = b"mg3d_finetune"
"""Key of the schema's metadata; its value is JSON: format, folder, settings, synthetic."""
_IMAGE = (("", pa.large_binary()), ("_dtype", pa.string()), ("_shape", pa.list_(pa.int64())), ("_affine", pa.string()))
SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("target", pa.list_(pa.float64())),
        ("candidates", pa.string()),
        ("nodules", pa.string()),
        ("report", pa.string()),
        *((f"image{suffix}", kind) for suffix, kind in _IMAGE),
        *((f"mask{suffix}", kind) for suffix, kind in _IMAGE),
    ]
)
"""One row per record batch. `image` and `mask` are null or arrays [i, j, k] in the file's own type, `_affine` their voxel-to-RAS
matrix in mm as JSON. candidates, nodules: JSON lists of the fields in `cases`."""
_FIELDS = SCHEMA.names[:8]


def find_prepared(data_root: str, folder: str) -> Path | None:
    """The Arrow file at `data_root`, or the one of this folder in it; None if it is something else.

    Raises:
        ValueError: there are several.
    """
    root = Path(data_root)
    if data_root.endswith(".arrow"):
        return root if root.is_file() else None
    files = sorted([*root.glob(f"{folder}.arrow"), *root.glob(f"{folder}-*.arrow")]) if root.is_dir() else []
    if len(files) > 1:
        raise ValueError(f"{root} holds {', '.join(path.name for path in files)}; name one file: data_root=...")
    return files[0] if files else None


def read_metadata(file: Path, folder: str) -> dict[str, Any]:
    """Metadata of an Arrow file.

    Raises:
        ValueError: it is another file, truncated, or of another folder or version.
    """
    try:
        metadata = json.loads((pa.ipc.open_file(pa.memory_map(str(file))).schema.metadata or {})[METADATA])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{file} is not an Arrow file of cases, or is truncated ({type(error).__name__}); make it again"
        ) from error
    if metadata["format"] != FORMAT:
        raise ValueError(f"{file} has format {metadata['format']}, expected {FORMAT}; make it again")
    if metadata["folder"] != folder:
        raise ValueError(f"{file} was made for downstream/{metadata['folder']}, not for {folder}; use another data_root")
    return metadata


def read_cases(file: Path) -> list[FinetuneCase]:
    """The cases of an Arrow file, in order."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    cases = []
    for row in range(reader.num_record_batches):
        batch = reader.get_batch(row)
        fields = {name: batch.column(name)[0].as_py() for name in _FIELDS}
        fields["target"] = tuple(int(value) if value.is_integer() else value for value in fields["target"])
        fields["candidates"] = tuple(Candidate(tuple(centre), target) for centre, target in json.loads(fields["candidates"]))
        fields["nodules"] = tuple(ReferenceNodule(tuple(centre), *rest) for centre, *rest in json.loads(fields["nodules"]))
        fields |= {name: ArrowRow(file, row, name) if batch.column(name)[0].is_valid else None for name in ("image", "mask")}
        cases.append(FinetuneCase(**fields))
    return cases


def write_cases(file: Path, cases: Sequence[FinetuneCase], metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    """Writes an Arrow file atomically; an interrupted run is continued. Returns the excluded cases (also `<file>.excluded.csv`).

    Raises:
        ValueError: the file exists, was started with other settings, or no case could be read.
    """
    import pandas as pd
    from tqdm import tqdm

    from mg3d.files import write_bytes

    stored = json.dumps({"format": FORMAT, **metadata}, sort_keys=True)
    partial, earlier = (file.with_name(f".{file.name}.{suffix}") for suffix in ("partial", "earlier"))
    if file.exists():
        raise ValueError(f"{file} exists; remove it, or choose another name: out=...")
    file.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists() and not earlier.exists():
        partial.replace(earlier)
    excluded: list[dict[str, str]] = []
    schema = SCHEMA.with_metadata({METADATA: stored})
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        done = set()
        for batch in _complete_batches(earlier, stored):
            writer.write_batch(batch)
            done.add(batch.column("case_id")[0].as_py())
        sink.flush()
        earlier.unlink(missing_ok=True)
        for case in tqdm([case for case in cases if case.case_id not in done], desc=file.name, disable=None):
            try:
                batch = _batch(case, schema)
            except (ValueError, OSError) as error:
                excluded.append({"case_id": case.case_id, "reason": str(error).split("\n")[0]})
                continue
            writer.write_batch(batch)
    if len(excluded) == len(cases):
        partial.unlink()
        raise ValueError(f"none of the {len(cases)} cases could be read; the first: {excluded[0]['reason']}")
    report = file.with_name(f"{file.name}.excluded.csv")
    report.unlink(missing_ok=True)
    if excluded:
        write_bytes(report, pd.DataFrame(excluded).to_csv(index=False).encode())
    partial.replace(file)
    return excluded


def _complete_batches(earlier: Path, metadata: str) -> Iterator[pa.RecordBatch]:
    """Batches of an interrupted file: it lacks its footer, and from byte 8 on it is an Arrow stream."""
    if not earlier.exists():
        return
    stream = pa.memory_map(str(earlier))
    try:
        stream.seek(8)
        reader = pa.ipc.open_stream(stream)
    except (pa.ArrowException, OSError):
        return
    if (reader.schema.metadata or {}).get(METADATA, b"").decode() != metadata:
        raise ValueError(f"{earlier} was started with other settings; remove it, or use the same settings")
    with contextlib.suppress(StopIteration, pa.ArrowException, OSError):
        while True:
            yield reader.read_next_batch()


def _batch(case: FinetuneCase, schema: pa.Schema) -> pa.RecordBatch:
    if case.error:
        raise ValueError(case.error)
    values = {name: getattr(case, name) for name in _FIELDS}
    values |= {"candidates": json.dumps(case.candidates), "nodules": json.dumps(case.nodules)}
    for name, source in (("image", case.image), ("mask", case.mask)):
        if source is not None:
            array, affine = read_array(source)
            values |= {name: array.tobytes(), f"{name}_dtype": array.dtype.str}
            values |= {f"{name}_shape": array.shape, f"{name}_affine": json.dumps(affine.tolist())}
    return pa.RecordBatch.from_pylist([values], schema=schema)
