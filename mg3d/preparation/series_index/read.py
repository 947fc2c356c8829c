"""Read the headers of all DICOM files below a folder, in parallel; a stopped run continues where it was."""

import json
import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mg3d.files import walk_folders, write_bytes
from mg3d.preparation.engines import follow_parent
from mg3d.preparation.geometry import check_slices
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom import can_decode
from mg3d.preparation.readers.dicom_series import (
    Header,
    SeriesKey,
    choose_series,
    is_dicom,
    load_pydicom,
    read_dataset,
    read_file,
)  # fmt: skip
from mg3d.preparation.readers.dicom_stack import stack_series
from mg3d.preparation.readers.registry import reader_of
from mg3d.preparation.series_index.words import BODY_PARTS, KINDS, find_words
from mg3d.preparation.sources.scan_walk import is_known_other, other_kind

_VERSION = 1
_SMALL = 500
"""Up to this number of files are read without worker processes."""
_DESCRIPTIONS = ("SeriesDescription", "BodyPartExamined", "ProtocolName", "StudyDescription")
_DAMAGED, _UNREADABLE = "damaged DICOM files", "unreadable files"
_RETRIED = {_DAMAGED, _UNREADABLE}
_RETRIED_CODES = {"codec_missing"}
_SERIES_TAGS = [
    "AccessionNumber", "StudyDate", "ConvolutionKernel", "SliceThickness", "ContrastBolusAgent", "ImageType", "PatientName",
    *_DESCRIPTIONS,
]  # fmt: skip


@dataclass(frozen=True)
class FoundSeries:
    """A series, or the part of one that is in a folder. Holds the PatientID: never log or publish it."""

    folder: str
    """Relative to the root."""
    file: str
    """First file of the series in that folder; names the series in a table."""
    key: SeriesKey
    accession: str
    date: str
    modality: str
    body_part: str
    """Parts joined by +; empty if unknown."""
    kind: str
    """Kinds of `words.KINDS` joined by +; empty for an ordinary reconstruction."""
    kernel: str
    image_type: str
    contrast: bool
    orientation: str
    """axial, coronal, sagittal, oblique, or empty."""
    files: int
    slices: int
    """Positions of the axial slices that would be read."""
    rows: int
    columns: int
    thickness_mm: float | None
    spacing_mm: float | None
    """Median distance of neighboring slices."""
    pixel_mm: float | None
    code: str
    """Why the series cannot be used: a key of `quarantine.REASONS`; empty if it can."""
    detail: str
    heights: tuple[int, ...]
    """Slice positions in 0.01 mm along the normal, sorted."""
    path_has_name: bool
    """Whether the path contains the PatientID or PatientName."""


class FolderResult(NamedTuple):
    """The series of one folder, and the number of other files."""

    folder: str
    state: list[int]
    """Modification time in ns and number of files of the folder."""
    series: list[FoundSeries]
    passed_over: dict[str, int]


Track = Callable[[Iterable[FolderResult], int], Iterator[FolderResult]]


def read_series(
    root: Path, cache: Path, *, workers: int, track: Track
) -> tuple[list[FoundSeries], Counter[str]]:
    """All series below `root`, sorted by folder and file, and what was passed over.

    Finished folders are kept in `cache`, readable by its owner only, and read again if a file was added or removed, if a file was
    damaged or unreadable (it may have been incomplete), or if a decoder was missing.

    track: shows progress over results; its second argument is the number of folders.
    """
    load_pydicom()
    passed_over: Counter[str] = Counter()
    folders = {path.relative_to(root).as_posix(): (path, files) for path, files in walk_folders(root, passed_over)}
    known = _read_cache(cache)
    states = {name: [path.stat().st_mtime_ns, len(files)] for name, (path, files) in folders.items()}
    todo = [(root, name, files, states[name]) for name, (_, files) in folders.items() if _is_new(name, states, known)]
    results = [result for name, result in known.items() if name in folders and not _is_new(name, states, known)]
    with _open_cache(cache) as stream:
        for result in track(_read_folders(todo, workers), len(todo)):
            stream.write(json.dumps(_as_json(result)) + "\n")
            stream.flush()
            results.append(result)
    results.sort(key=lambda result: result.folder)
    write_bytes(cache, "".join(json.dumps(_as_json(result)) + "\n" for result in results).encode(), mode=0o600)
    for result in results:
        passed_over.update(result.passed_over)
    return [series for result in results for series in result.series], passed_over


def _is_new(name: str, states: dict[str, list[int]], known: dict[str, FolderResult]) -> bool:
    if name not in known or known[name].state != states[name]:
        return True
    return bool(_RETRIED & known[name].passed_over.keys()) or any(part.code in _RETRIED_CODES for part in known[name].series)


def _read_folders(todo: Sequence[tuple[Any, ...]], workers: int) -> Iterator[FolderResult]:
    if workers < 2 or sum(len(files) for _, _, files, _ in todo) <= _SMALL:
        yield from map(_read_folder, todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=follow_parent) as pool:
        try:
            yield from pool.map(_read_folder, todo)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read_folder(task: tuple[Path, str, list[str], list[int]]) -> FolderResult:
    root, name, files, state = task
    pydicom = load_pydicom()
    headers: dict[SeriesKey, list[Header]] = {}
    passed_over: Counter[str] = Counter()
    for file in files:
        found, reason = _try_headers(pydicom, root / name / file)
        for header in found:
            headers.setdefault(header.series, []).append(header)
        if reason:
            passed_over[reason] += 1
    series = [_describe(pydicom, root, name, key, found) for key, found in headers.items()]
    return FolderResult(name, state, sorted(series, key=lambda part: part.file), dict(passed_over))


def _try_headers(pydicom: Any, path: Path) -> tuple[list[Header], str]:
    """The headers of a file (several of a multi-frame file), or what it is instead."""
    if reader_of(path):
        is_zip = path.suffix.lower() == ".zip"
        return [], "zip files (unpack those with DICOM files)" if is_zip else "scan files of other formats"
    if is_known_other(path.name):
        return [], other_kind(path.name)
    try:
        headers = read_file(pydicom, path) if is_dicom(path) else []
    except Refusal:
        return [], _DAMAGED
    except OSError:
        return [], _UNREADABLE
    if headers and not headers[0].series.series_uid:
        return [], "DICOM files without a SeriesInstanceUID"
    return headers, "" if headers else "other files"


def _describe(pydicom: Any, root: Path, folder: str, key: SeriesKey, headers: list[Header]) -> FoundSeries:
    first = min(headers, key=lambda header: header.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tags = read_dataset(pydicom, first.path, stop_before_pixels=True, specific_tags=_SERIES_TAGS)
        texts = {name: _text(tags, name) for name in _SERIES_TAGS}
    slices, spacing_mm, code, detail = _judge(headers)
    if not code and (syntax := tags.file_meta.get("TransferSyntaxUID")) and syntax.is_compressed and not can_decode(syntax):
        code, detail = "codec_missing", syntax.name
    path = f"{folder}/{first.path.name}".lower()
    names = [name.lower() for name in (key.patient_id, *texts["PatientName"].replace("^", " ").split()) if len(name) > 3]
    image_type = "\\".join(first.image_type)
    return FoundSeries(
        folder=folder,
        file=first.path.name,
        key=key,
        accession=texts["AccessionNumber"],
        date=texts["StudyDate"],
        modality=first.modality,
        body_part="+".join(find_words((texts[name] for name in _DESCRIPTIONS), BODY_PARTS)),
        kind="+".join(find_words((image_type, texts["SeriesDescription"]), KINDS)),
        kernel=texts["ConvolutionKernel"].split("\\")[0][:16],
        image_type=image_type,
        contrast=bool(texts["ContrastBolusAgent"]),
        orientation=_orientation(first),
        files=len({header.path for header in headers}),
        slices=slices,
        rows=first.size[0],
        columns=first.size[1],
        thickness_mm=_number(texts["SliceThickness"]),
        spacing_mm=spacing_mm,
        pixel_mm=first.spacing_mm[0] if first.spacing_mm else None,
        code=code,
        detail=detail,
        heights=tuple(sorted({round(header.height_mm * 100) for header in headers if header.position_mm and header.orientation})),
        path_has_name=any(name in path for name in names),
    )


def _judge(headers: list[Header]) -> tuple[int, float | None, str, str]:
    """Slice positions, their median distance in mm, and why the series cannot be used."""
    heights = sorted({round(header.height_mm, 2) for header in headers if header.is_axial_slice})
    spacing = float(np.median(np.diff(heights))) if len(heights) > 1 else None
    try:
        stack = stack_series(choose_series(headers)[0])
        check_slices(len(stack.slices), spacing)
    except Refusal as refusal:
        return len(heights), spacing, refusal.code, refusal.detail
    return len(stack.slices), spacing, "", ""


def _orientation(header: Header) -> str:
    if header.orientation is None:
        return ""
    normal = np.abs(header.axes[2])
    return ("sagittal", "coronal", "axial")[int(normal.argmax())] if normal.max() > 0.9 else "oblique"


def _text(tags: Any, name: str) -> str:
    """The value of a tag; empty if it is missing or damaged."""
    try:
        value = tags.get(name)
    except Exception:  # values are parsed here, and a damaged one raises anything
        return ""
    parts = value if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]
    return "\\".join(str(part) for part in parts if part is not None).strip()


def _number(text: str) -> float | None:
    try:
        return float(text.split("\\")[0])
    except ValueError:
        return None


# Cache


def _as_json(result: FolderResult) -> dict[str, Any]:
    series = [asdict(part) for part in result.series]
    return {"version": _VERSION, "folder": result.folder, "state": result.state, "series": series, "other": result.passed_over}


def _read_cache(path: Path) -> dict[str, FolderResult]:
    """Folder -> result; a line that a killed run left incomplete is ignored."""
    results = {}
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            item = json.loads(line)
            series = [_from_json(part) for part in item["series"]]
        except (ValueError, TypeError, KeyError):
            continue
        if item["version"] == _VERSION:
            results[item["folder"]] = FolderResult(item["folder"], item["state"], series, item["other"])
    return results


def _from_json(part: dict[str, Any]) -> FoundSeries:
    return FoundSeries(**part | {"key": SeriesKey(*part["key"]), "heights": tuple(part["heights"])})


def _open_cache(path: Path) -> Any:
    stream = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8")
    stream.write("\n")  # ends a line that a killed run left incomplete
    return stream
