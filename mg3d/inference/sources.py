"""The scans of a folder, of a table of an own folder, or of prepared Arrow files, one after the other."""

import json
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
from mg3d.inference.model import ScanModel
from mg3d.inference.scans import Scan
from mg3d.preparation.quarantine import REASONS
from mg3d.preparation.readers.registry import READER_OF_SUFFIX
from mg3d.preparation.sources.custom import ListedVolume, read_listing, volumes_below
from mg3d.sentence_spans import build_report

_SUFFIXES = (*READER_OF_SUFFIX, ".npz")


class Item(NamedTuple):
    """A scan that is not read yet. Its report and key may name a patient: they belong into no log."""

    key: str
    """Its path below the folder, or the study's id."""
    report: str
    """Empty = none known."""
    read: Callable[[], Scan]
    """Raises ValueError or OSError where the scan cannot be used."""


class SetAside(NamedTuple):
    """A scan that could not be used."""

    key: str
    reason: str


def remember_source(note: Path, source: str | Path) -> None:
    """Writes into the file `note` where scans come from whose keys, paths below that place, stand in what lies beside it.

    Raises:
        ValueError: what lies there is of another place: equal keys there may be other patients' scans.
    """
    place = str(Path(source).resolve())
    before = json.loads(note.read_text(encoding="utf-8"))["source"] if note.is_file() else place
    if before != place:
        raise ValueError(
            f"{note.parent} goes on with scans of {before}, and these are of {place}, where equal names may be other scans; name "
            f"another --out, or remove {note} if they are the same scans, moved"
        )
    if not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"source": place})


def list_scans(model: ScanModel, source: str | Path, *, table: str | Path | None = None) -> list[Item]:
    """The scans of a folder (all below it, or those of a table, with their reports), of one file, or of an `.arrow` index.

    Raises:
        FileNotFoundError: there is nothing, or no scan below it.
        ValueError: the table or the index cannot be read, or holds volumes of another size than the model's.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}; name a folder of scans, a scan, or an .arrow index of prepared files")
    if source.suffix == ".arrow":
        return _prepared(model, source)
    if table is not None:
        listing = read_listing(source, Path(table), suffixes=_SUFFIXES)
        return [_listed(model, source, volume) for volume in listing.volumes]
    elif source.is_file():
        return [Item(source.name, "", partial(model.read, source))]
    else:
        reports = {str(path): "" for path in volumes_below(source, _SUFFIXES)}
    if not reports:
        raise FileNotFoundError(
            f"{source} holds no scan ({', '.join(_SUFFIXES)} or DICOM folders); name the folder that does"
        )
    return [Item(key, report, partial(model.read, source / key)) for key, report in reports.items()]


def _listed(model: ScanModel, root: Path, volume: ListedVolume) -> Item:
    """A row of a table; what the table contradicts itself about, or what is not there, is set aside."""
    key = str(volume.path)
    report, _ = build_report(volume.findings, volume.impression)
    if volume.fault:
        return Item(key, "", partial(_refuse, REASONS[volume.fault]))
    return Item(key, report, partial(model.read, root / key))


def _refuse(reason: str) -> Scan:
    raise ValueError(reason)


def _prepared(model: ScanModel, path: Path) -> list[Item]:
    index = VolumeIndex(path, Storage(path.parent))
    expected = model.preprocessing.recipe.shape
    if tuple(index.shape) != expected:
        shapes = ("x".join(map(str, shape)) for shape in (index.shape, expected))
        raise ValueError("{} holds volumes of {} and the model reads {}; prepare them anew in that size".format(path, *shapes))
    if other := differing_steps(model.config["preprocessing"].get("recipe"), index.recipe, GEOMETRY_STEPS):
        raise ValueError(
            f"{path} was prepared otherwise ({', '.join(other)}) than the model's training volumes; prepare "
            "them anew in that way, or name the folder of the scans themselves"
        )
    studies = Studies(index, text_unit=model.settings.data.text_unit, window_hu=model.preprocessing.window_hu)
    names = index.table["study_id"].take(studies.first_rows).to_pylist()
    return [Item(name, studies.report(place).report, partial(_sample, studies, place)) for place, name in enumerate(names)]


def _sample(studies: Studies, study: int) -> Scan:
    """A stored volume as a scan of its own: nothing is known of the file that it came from."""
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


def read_ahead(items: Iterable[Item], *, workers: int = 2) -> Iterator[tuple[Item, Scan | SetAside]]:
    """Every item with its scan, in order, while `workers` threads read those that follow."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append((item, pool.submit(read_item, item)))
            if len(waiting) > 2 * workers:
                first, job = waiting.popleft()
                yield first, job.result()
        for item, job in waiting:
            yield item, job.result()


def read_item(item: Item) -> Scan | SetAside:
    """The scan, or why it cannot be used, without the path of its file."""
    try:
        return item.read()
    except (ValueError, OSError) as error:
        sentence = " ".join(str(error).split())
        return SetAside(item.key, sentence.split(" cannot be used: ", 1)[-1])


def batches(
    pairs: Iterable[tuple[Item, Scan | SetAside]], size: int, set_aside: list[SetAside]
) -> Iterator[Sequence[tuple[Item, Scan]]]:
    """Usable scans, `size` at a time; the others are added to `set_aside`."""
    held: list[tuple[Item, Scan]] = []
    for item, scan in pairs:
        if isinstance(scan, SetAside):
            set_aside.append(scan)
            continue
        held.append((item, scan))
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
