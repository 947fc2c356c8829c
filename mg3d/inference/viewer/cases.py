"""The cases that the viewer shows, and a model's answers about them as plain values for JSON."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mg3d.glossary import LABELS
from mg3d.inference.index import SearchIndex
from mg3d.inference.model import ScanModel
from mg3d.inference.results import Region
from mg3d.inference.scans import Scan, as_nifti
from mg3d.inference.sources import Item, SetAside, list_scans, read_item

_KEPT_SCANS, _KEPT_MAPS = 16, 16
_NEIGHBOURS = 8
_HEADERS = (".mha", ".mhd")
_SAME_SCAN = 1 - 1e-4
"""Cosine above which two embeddings by one model are of one scan; devices differ by less."""


class Unusable(ValueError):
    """A case or a question that has no answer; the message is for the page and may name a file, so it belongs into no log."""


class Cases:
    """The scans of one source in the order of `list_scans`; a case's id is its place there.

    Nothing but what was listed is read, and of that only what lies below `folders` once links are followed. One question at a
    time reaches the model.

    Args:
        source: folder, scan or `.arrow` index, as `list_scans` takes it.
        also: further folders in which the targets of links may lie.

    Raises:
        FileNotFoundError, ValueError: there is nothing to show, the only scan cannot be read, or the index is another model's.
    """

    def __init__(
        self,
        model: ScanModel,
        source: Path,
        *,
        table: Path | None = None,
        index: SearchIndex | None = None,
        findings: Sequence[str] = LABELS,
        wording: str = "there_is",
        also: Sequence[Path] = (),
    ) -> None:
        if index is not None:
            index.require(model.fingerprint)
        self.model, self.index, self.findings, self.wording = model, index, findings, wording
        self._root = source if source.is_dir() else source.parent
        self._prepared = source.suffix == ".arrow"
        self._folders = [folder.resolve() for folder in (self._root, *also)]
        listed = list_scans(model, source, table=table)
        self.items = [item for item in listed if self._prepared or self._is_below(self._root / item.key)]
        self.left_out = len(listed) - len(self.items)
        if not self.items:
            raise ValueError("every scan lies outside the folder, behind a link; name the folder that holds them with --also")
        self._place_of = {item.key: place for place, item in enumerate(self.items)}
        self._reports = _rows_of(index, "report") if index is not None else {}
        self._indexed = _rows_of(index, "scan") if index is not None else {}
        self._maps: OrderedDict[str, bytes] = OrderedDict()
        pairs = model.prompts(findings, wording=wording)
        self._denials = dict(pairs)
        self._lock = threading.Lock()
        self._scan = lru_cache(_KEPT_SCANS)(self._read)
        self._vector = lru_cache(None)(lambda case: model.embed(self._scan(case)))
        if len(self.items) == 1:
            self._read_the_only_one(source)

    def _read_the_only_one(self, source: Path) -> None:
        try:
            self._read(0)  # and not kept: what is a file now may be a link when it is asked for
        except Unusable as error:
            raise ValueError(f"{source} holds no scan that can be shown: {error}") from None

    def overview(self) -> dict[str, Any]:
        """What the page shows before a case is chosen."""
        return {
            "model": repr(self.model),
            "window_hu": self.model.preprocessing.window_hu,
            "indexed": repr(self.index) if self.index is not None else "",
            "cases": [{"id": place, "name": item.key} for place, item in enumerate(self.items)],
        }

    def case(self, case: int) -> dict[str, Any]:
        """The report, the scores with their prompts and the nearest entries of one case.

        What the model cannot tell is left empty, with the reason under `<part>_missing`. `warning`: the index means another scan
        by this name, so its report is not this case's.

        Raises:
            Unusable: there is no such case, or its scan cannot be read.
        """
        with self._lock:
            item, scan = self._item(case), self._scan(case)
            told = {"id": case, "name": item.key, "report": self._report(case), "warning": ""}
            told |= {"scan": str(scan), "frame": self._frame(scan)}
            if item.key in self._indexed and not self._is_indexed(case):
                told["warning"] = "the index holds another scan under this name: is it of another folder, or older than the scan?"
            return told | _or_why("scores", lambda: self._scores(case)) | _or_why("neighbours", lambda: self._neighbours(case))

    def nifti(self, case: int) -> bytes:
        """The scan as `.nii` in HU, in its own geometry; errors as `case`."""
        with self._lock:
            scan, item = self._scan(case), self._item(case)
            if self._prepared:
                low, high = self.model.preprocessing.window_hu
                return _stored(scan.in_file(scan.upright(scan.volume) * (high - low) + low), np.int16)
            return as_nifti(self._root / item.key).to_bytes()

    def ground(self, case: int, sentence: str) -> dict[str, Any]:
        """Makes the map of a sentence and tells its id; errors as `case`, and where the model grounds no text."""
        with self._lock:
            scan = self._scan(case)
            try:
                region = self.model.ground(scan, sentence, against=self._denials.get(sentence))
            except ValueError as error:
                raise Unusable(str(error)) from None
            name = secrets.token_urlsafe(12)
            self._maps[name] = _map_file(region)
            if len(self._maps) > _KEPT_MAPS:
                self._maps.popitem(last=False)
            return {"map": name, "told": str(region), "peak_mm": region.peak_mm(), "most": float(region.cells.max())}

    def map(self, name: str) -> bytes:
        """A map made before, as `.nii`; Unusable where it is not kept."""
        with self._lock:
            if name not in self._maps:
                raise Unusable("this map is no longer kept; ask for it again")
            return self._maps[name]

    def _frame(self, scan: Scan) -> dict[str, str]:
        """What the places on the page are measured in."""
        unit = "mm" if scan.spacing_mm else "voxels"
        return {"unit": unit, "of": "of the prepared volume, from its corner" if self._prepared else "of the file"}

    def _item(self, case: int) -> Item:
        if not 0 <= case < len(self.items):
            raise Unusable(f"there is no case {case}; there are {len(self.items)}, from 0")
        return self.items[case]

    def _read(self, case: int) -> Scan:
        item = self._item(case)
        # Asked again: what was a file when the folder was listed may be a link by now.
        if not (self._prepared or self._is_below(self._root / item.key)):
            raise Unusable("this scan lies outside the folder, behind a link")
        scan = read_item(item)
        if isinstance(scan, SetAside):
            raise Unusable(scan.reason)
        return scan

    def _is_below(self, path: Path) -> bool:
        """Whether all that reading `path` may touch lies below the folders once links are followed."""
        touched = [path]
        if path.is_dir():
            touched += path.rglob("*")
        elif path.name.lower().endswith(_HEADERS):
            touched += path.parent.iterdir()  # its voxels may lie in any file beside it
        try:
            return all(any(place.resolve().is_relative_to(folder) for folder in self._folders) for place in touched)
        except (OSError, RuntimeError):  # links in a circle
            return False

    def _report(self, case: int) -> str:
        item = self._item(case)
        if item.report or item.key not in self._reports or not self._is_indexed(case):
            return item.report
        return self.index.entries["text"][self._reports[item.key]].as_py()

    def _is_indexed(self, case: int) -> bool:
        """Whether the entry of this case's name is of this scan: equal names in two folders say nothing of patients."""
        row = self._indexed.get(self._item(case).key)
        return row is not None and float(self.index.vectors[row] @ self._vector(case)) > _SAME_SCAN

    def _scores(self, case: int) -> list[dict[str, Any]]:
        pairs = self.model.prompts(self.findings, wording=self.wording)
        found = self.model.findings(self._vector(case)[None], self.findings, pairs)[0]
        return [row._asdict() for row in found]

    def _neighbours(self, case: int) -> list[dict[str, Any]]:
        if self.index is None:
            raise ValueError("no search index was given; make one with tools/embed.py and name it with --index")
        own, near = self._item(case).key if self._is_indexed(case) else None, []
        for kind in ("scan", "report"):
            if len(self.index.rows_of[kind]):
                rows = self.index.search(self._vector(case)[None], k=_NEIGHBOURS + 1, kind=kind)[0]
                # A scan is no neighbour of itself; its own report found among others is worth seeing.
                near += [row for row in rows if (row.kind, row.key) != ("scan", own)][:_NEIGHBOURS]
        return [row._asdict() | {"id": self._place_of.get(row.key), "own": row.key == own} for row in near]


def _or_why(part: str, ask: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {part: ask()}
    except ValueError as error:
        return {part: [], f"{part}_missing": str(error)}


def _rows_of(index: SearchIndex, kind: str) -> dict[str, int]:
    """Key -> row of the index."""
    rows = index.rows_of[kind]
    return dict(zip(index.entries["key"].take(rows).to_pylist(), rows.tolist(), strict=True))


def _map_file(region: Region) -> bytes:
    """One byte a voxel: a map is as large as its scan, and 1/255 of its largest number is finer than any colour shown."""
    return _stored(region.in_file(), np.uint8)


def _stored(image: nib.Nifti1Image, kind: type) -> bytes:
    image.set_data_dtype(kind)  # nibabel finds the slope
    return image.to_bytes()
