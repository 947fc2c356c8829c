"""Cases of a downstream set in one Arrow file, a record batch each: written once from its raw files, read instead of them."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from mg3d.files import write_bytes
from mg3d.finetune.cases import ArrowRow, Candidate, Case, Finding, Source
from mg3d.finetune.images import read_array
from mg3d.finetune.task import Augment, Preprocess, Task

FORMAT = 1
FACTS = b"mg3d_finetune"
"""Key of the schema's metadata; its value is JSON."""
_IMAGE = (("", pa.large_binary()), ("_dtype", pa.string()), ("_shape", pa.list_(pa.int64())), ("_affine", pa.string()))
SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("patient_id", pa.string()),
        ("part", pa.string()),
        ("fold", pa.int32()),
        ("target", pa.list_(pa.int32())),
        ("candidates", pa.string()),
        ("findings", pa.string()),
        ("report", pa.string()),
        *((f"image{end}", kind) for end, kind in _IMAGE),
        *((f"mask{end}", kind) for end, kind in _IMAGE),
    ]
)
"""One row per record batch. `image` and `mask` are numbers in the file's own type and order of axes [i, j, k], `_affine` their
voxel -> RAS mm as JSON; a mask is null where there is none. candidates, findings: JSON lists as in `cases`."""
_PLAIN = SCHEMA.names[:8]
_ADAPTED = ("title", "variant", "outputs", "loss", "expected", "preprocess", "augment")
"""Fields of a declaration that may depend on the raw files; a prepared file keeps those that do."""


def find_prepared(data_root: str, folder: str) -> Path | None:
    """The prepared file at `data_root`, or of this folder in it; None where it is something else.

    Raises:
        ValueError: there are several.
    """
    root = Path(data_root)
    if data_root.endswith(".arrow"):
        return root if root.is_file() else None
    found = sorted(root.glob(f"{folder}.arrow")) + sorted(root.glob(f"{folder}-*.arrow")) if data_root and root.is_dir() else []
    if len(found) > 1:
        raise ValueError(f"{root} holds {', '.join(path.name for path in found)}; name one of these files: data_root=...")
    return found[0] if found else None


def read_facts(file: Path, folder: str) -> dict[str, Any]:
    """What a prepared file says of itself: folder, split, options, declaration, synthetic.

    Raises:
        ValueError: it is no such file, cut off, or of another folder or format.
    """
    try:
        metadata = pa.ipc.open_file(pa.memory_map(str(file))).schema.metadata or {}
        facts = json.loads(metadata[FACTS])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{file} is no file of prepro_finetuning_vision_data.py, or cut off ({type(error).__name__}); make it again"
        ) from error
    if facts["format"] != FORMAT:
        raise ValueError(f"{file} has format {facts['format']} and this version reads {FORMAT}; make it again")
    if facts["folder"] != folder:
        raise ValueError(f"{file} was made for downstream/{facts['folder']}, not for {folder}; name another data_root")
    return facts


def with_stored(given: Mapping[str, Any], facts: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The user's words and those that the file was made with.

    Raises:
        ValueError: the two contradict one another.
    """
    stored = {"split": facts["split"], **facts["options"]}
    if facts["split"] == "original":  # whose lists may differ between folds
        stored["fold"] = facts["fold"]
    other = [f"{name}={stored[name]!r}" for name in stored if name in given and str(given[name]) != str(stored[name])]
    if other:
        raise ValueError(f"{file} was prepared with {', '.join(other)}; prepare another file, or name the raw folder")
    return {**stored, **given}


def with_declared(task: Task, facts: Mapping[str, Any]) -> Task:
    """The declaration with what the raw files once decided of it."""
    kinds = {"preprocess": Preprocess, "augment": Augment}
    fields = {
        name: kinds[name](**_tuples(value)) if name in kinds else tuple(value) if isinstance(value, list) else value
        for name, value in facts["declared"].items()
    }
    return dataclasses.replace(task, **fields)


def declared(task: Task, without_files: Task) -> dict[str, Any]:
    """What of a declaration is otherwise than it would be without the raw files, as builtins."""
    one, other = ({name: getattr(of, name) for name in _ADAPTED} for of in (task, without_files))
    found = {name: value for name, value in one.items() if value != other[name]}
    return json.loads(json.dumps(found, default=dataclasses.asdict))


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def read_cases(file: Path) -> list[Case]:
    """The cases of a prepared file, in its order."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    cases = []
    for row in range(reader.num_record_batches):
        batch = reader.get_batch(row)
        held = {name: batch.column(name)[0].as_py() for name in _PLAIN}
        cases.append(
            Case(
                **held
                | {
                    "target": tuple(held["target"]),
                    "candidates": tuple(Candidate(tuple(place), target) for place, target in json.loads(held["candidates"])),
                    "findings": tuple(Finding(tuple(place), *rest) for place, *rest in json.loads(held["findings"])),
                },
                image=ArrowRow(file, row),
                mask=None if batch.column("mask")[0].as_py() is None else ArrowRow(file, row, "mask"),
            )
        )
    return cases


def write_cases(file: Path, cases: Sequence[Case], facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """Writes a prepared file, whole or not at all, and returns the cases set aside, which `<file>.refused.csv` also names.

    It grows beside its place; a killed run goes on behind its last whole case. Cases that could not be read are tried again.

    Raises:
        ValueError: a file is there already, one was begun with other settings, or no case could be read.
    """
    metadata = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
    partial, kept = (file.with_name(f".{file.name}.{end}") for end in ("partial", "kept"))
    if file.exists():
        raise ValueError(f"{file} is there already; remove it, or name another: --out")
    file.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists() and not kept.exists():
        partial.replace(kept)
    refused = []
    schema = SCHEMA.with_metadata({FACTS: metadata})
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        done = set()
        for batch in _whole_batches(kept, metadata):
            writer.write_batch(batch)
            done.add(batch.column("case_id")[0].as_py())
        sink.flush()
        kept.unlink(missing_ok=True)
        for case in tqdm([case for case in cases if case.case_id not in done], desc=file.name, disable=None):
            try:
                batch = _batch(case, schema)
            except (ValueError, OSError) as error:
                refused.append({"case_id": case.case_id, "reason": str(error).split("\n")[0]})
                continue
            writer.write_batch(batch)
    if len(refused) == len(cases):
        partial.unlink()
        raise ValueError(f"none of the {len(cases)} cases could be read; {refused[0]['reason'] if refused else 'there is none'}")
    beside = file.with_name(f"{file.name}.refused.csv")
    beside.unlink(missing_ok=True)
    if refused:
        write_bytes(beside, pd.DataFrame(refused).to_csv(index=False).encode())
    partial.replace(file)
    return refused


def _whole_batches(kept: Path, metadata: str) -> Iterator[pa.RecordBatch]:
    """What a killed run wrote: a file without its end, whose messages behind the first 8 bytes are those of a stream."""
    if not kept.exists():
        return
    stream = pa.memory_map(str(kept))
    try:
        stream.seek(8)
        reader = pa.ipc.open_stream(stream)
    except (pa.ArrowException, OSError):
        return
    if (reader.schema.metadata or {}).get(FACTS, b"").decode() != metadata:
        raise ValueError(f"{kept} was begun with other settings; remove it, or give the settings that it was begun with")
    while True:
        try:
            yield reader.read_next_batch()
        except (StopIteration, pa.ArrowException, OSError):
            return


def _batch(case: Case, schema: pa.Schema) -> pa.RecordBatch:
    held = {name: getattr(case, name) for name in _PLAIN}
    held |= {"target": list(case.target), "candidates": json.dumps(case.candidates), "findings": json.dumps(case.findings)}
    held |= {**_image("image", case.image), **_image("mask", case.mask)}
    return pa.RecordBatch.from_arrays([pa.array([held[name]], schema.field(name).type) for name in schema.names], schema=schema)


def _image(name: str, source: Source | None) -> dict[str, Any]:
    if source is None:
        return dict.fromkeys((f"{name}{end}" for end, _ in _IMAGE))
    array, affine = read_array(source)
    values = (array.tobytes(), array.dtype.str, list(array.shape), json.dumps(affine.tolist()))
    return {f"{name}{end}": value for (end, _), value in zip(_IMAGE, values, strict=True)}
