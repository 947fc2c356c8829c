"""Scans of a folder, of a table with reports, of one file, or of a prepared Arrow file; read lazily."""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import GEOMETRY_STEPS, differing_steps
from mg3d.datasets.storage import Storage
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import sample_intensities
from mg3d.files import write_json
from mg3d.inference.scan import Scan
from mg3d.inference.scan_model import ScanModel
from mg3d.preparation.quarantine import REASONS
from mg3d.preparation.sources.listing import ListedVolume, read_listing
from mg3d.preparation.sources.scan_walk import SCAN_SUFFIXES, dicom_scans, walk_scans
from mg3d.sentence_spans import build_report


class ScanSource(NamedTuple):
    """A scan that has not been read. Its report and key may identify a patient and must not be logged."""

    key: str
    """Path below the folder, or study id."""
    report: str
    """Empty if unknown."""
    read: Callable[[], Scan]
    """Raises ValueError or OSError if the scan cannot be used."""


class UnreadableScan(NamedTuple):
    """A scan that could not be used."""

    key: str
    reason: str


def record_source(path: Path, source: str | Path) -> None:
    """Record in the file `path` the folder that the keys of an output refer to.

    Raises:
        ValueError: the output already refers to another folder, where equal keys may be other patients.
    """
    folder = str(Path(source).resolve())
    recorded = json.loads(path.read_text(encoding="utf-8"))["source"] if path.is_file() else folder
    if recorded != folder:
        raise ValueError(
            f"{path.parent} has results for the scans of {recorded}, not of {folder}, where equal names may be other scans. "
            f"Choose another --out, or remove {path} if the same scans were moved."
        )
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"source": folder})


def list_scans(model: ScanModel, source: str | Path, *, table: str | Path | None = None) -> list[ScanSource]:
    """Scans of a folder (all below it, or those of a table with their reports), of one file, or of an `.arrow` index.

    Raises:
        FileNotFoundError: the source does not exist or has no scan.
        ValueError: the table or index cannot be read, or the index does not fit the model.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist. Name a folder of scans, a scan, or an .arrow index of prepared data.")
    if source.suffix == ".arrow":
        return _list_prepared(model, source)
    if table is not None:
        listing = read_listing(source, Path(table))
        _print_notes(listing.notes)
        return [_listed_scan(model, source, volume) for volume in listing.volumes]
    if source.is_file():
        return [ScanSource(source.name, "", partial(model.read, source))]
    walk = walk_scans(source)
    if not walk.scans:
        passed_over = f"; {walk.note}" if walk.note else ""
        raise FileNotFoundError(f"{source} has no scan ({', '.join(SCAN_SUFFIXES)} or DICOM folders){passed_over}")
    _print_notes([walk.note] if walk.note else [])
    paths = [path for scan in walk.scans for path in _series_paths(source / scan)]
    return [ScanSource(path.relative_to(source).as_posix(), "", partial(model.read, path)) for path in paths]


def _series_paths(scan: Path) -> list[Path]:
    """A scan file or folder of DICOM slices itself; of a folder with several axial CT series, the first slice of each."""
    series = dicom_scans(scan) if scan.is_dir() else {}
    return list(series) if len(series) > 1 else [scan]


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"mg3d: {note}", file=sys.stderr)


def _listed_scan(model: ScanModel, root: Path, volume: ListedVolume) -> ScanSource:
    """Scan of a table row; faulty rows fail when they are read."""
    key = str(volume.path)
    if volume.quarantine_code:
        return ScanSource(key, "", partial(_fail, REASONS[volume.quarantine_code]))
    report, _ = build_report(volume.findings, volume.impression)
    return ScanSource(key, report, partial(model.read, root / key))


def _fail(reason: str) -> Scan:
    raise ValueError(reason)


def _list_prepared(model: ScanModel, path: Path) -> list[ScanSource]:
    index = VolumeIndex(path, Storage(path.parent))
    expected = model.preprocessing.recipe.shape
    if tuple(index.shape) != expected:
        shape, model_shape = ("x".join(map(str, sides)) for sides in (index.shape, expected))
        raise ValueError(f"{path} has volumes of {shape} voxels, but the model reads {model_shape}. Prepare them in that size.")
    if steps := differing_steps(model.config["preprocessing"].get("recipe"), index.recipe, GEOMETRY_STEPS):
        raise ValueError(
            f"{path} differs from the model's training data in preprocessing ({', '.join(steps)}). Prepare it the same way, or "
            "name the folder of the original scans."
        )
    studies = Studies(index, text_unit=model.settings.data.text_unit, window_hu=model.preprocessing.window_hu)
    names = index.table["study_id"].take(studies.first_rows).to_pylist()
    return [ScanSource(name, studies.report(row).report, partial(_stored_scan, studies, row)) for row, name in enumerate(names)]


def _stored_scan(studies: Studies, study: int) -> Scan:
    """A stored volume as a scan in the geometry of the stored grid; the original file is unknown."""
    volume = sample_intensities(studies.sample(study))[0]
    spacing = studies.index.table["spacing_mm"][int(studies.rows(study)[0])].as_py()
    z, y, x = spacing or (1.0, 1.0, 1.0)
    return Scan(
        volume=volume,
        source_shape=volume.shape,
        box=tuple((0, side) for side in volume.shape),
        affine=np.diag([-x, -y, z, 1.0]),
        spacing_mm=(z, y, x) if spacing else None,
    )


def read_ahead(sources: Iterable[ScanSource], *, workers: int = 2) -> Iterator[tuple[ScanSource, Scan | UnreadableScan]]:
    """Every source with its scan, in order, while `workers` threads read the next ones."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        for source in sources:
            pending.append((source, pool.submit(read_source, source)))
            if len(pending) > 2 * workers:
                first, job = pending.popleft()
                yield first, job.result()
        for source, job in pending:
            yield source, job.result()


def read_source(source: ScanSource) -> Scan | UnreadableScan:
    """The scan, or why it cannot be used; the reason does not contain the path."""
    try:
        return source.read()
    except (ValueError, OSError) as error:
        sentence = " ".join(str(error).split())
        return UnreadableScan(source.key, sentence.split(" cannot be used: ", 1)[-1])


def batches(
    scans: Iterable[tuple[ScanSource, Scan | UnreadableScan]], size: int, unreadable: list[UnreadableScan]
) -> Iterator[Sequence[tuple[ScanSource, Scan]]]:
    """Batches of usable scans; the others are appended to `unreadable`."""
    batch: list[tuple[ScanSource, Scan]] = []
    for source, scan in scans:
        if isinstance(scan, UnreadableScan):
            unreadable.append(scan)
            continue
        batch.append((source, scan))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
