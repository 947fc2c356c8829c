"""Data of the viewer: scans of one source and a model's outputs for them, as values for JSON."""

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
from mg3d.inference.scan import Scan, as_nifti
from mg3d.inference.scan_model import ScanModel
from mg3d.inference.scan_sources import ScanSource, UnreadableScan, list_scans, read_source
from mg3d.inference.search_index import SearchIndex

_MAX_SCANS, _MAX_MAPS = 16, 16
"""Sizes of the caches."""
_NEIGHBOURS = 8
_SAME_SCAN = 1 - 1e-4
"""Two embeddings by one model are of the same scan above this cosine; devices differ by less."""


class RequestError(ValueError):
    """A request that cannot be answered. The message is for the page; it may name a file and must not be logged."""


class ViewerSession:
    """Scans of one source, in the order of `list_scans`; the id of a scan is its index. Requests run one at a time.

    Args:
        source, table: see `list_scans`.
        index: search index for neighbours, and for reports of the same scans.

    Raises:
        FileNotFoundError, ValueError: there is no scan, the only scan cannot be read, or the index is of another model.
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
    ) -> None:
        if index is not None:
            index.require(model.fingerprint)
        self.model, self.index, self.findings = model, index, findings
        self._root = source if source.is_dir() else source.parent
        self._is_prepared = source.suffix == ".arrow"
        self.scans: list[ScanSource] = list_scans(model, source, table=table)
        self._id_of = {scan.key: number for number, scan in enumerate(self.scans)}
        self._indexed = {kind: _rows_of(index, kind) if index is not None else {} for kind in ("scan", "report")}
        self._maps: OrderedDict[str, bytes] = OrderedDict()
        self._pairs = model.prompts(findings, wording=wording)
        self._lock = threading.Lock()
        self._scan = lru_cache(_MAX_SCANS)(self._read)
        self._vector = lru_cache(None)(lambda scan_id: model.embed(self._scan(scan_id)))
        if len(self.scans) == 1:
            try:
                self._scan(0)
            except RequestError as error:
                raise ValueError(f"{source} has no scan that can be shown: {error}") from None

    def overview(self) -> dict[str, Any]:
        """Content of the page before a scan is chosen."""
        return {
            "model": repr(self.model),
            "window_hu": self.model.preprocessing.window_hu,
            "index": repr(self.index) if self.index is not None else "",
            "scans": [{"id": number, "name": scan.key} for number, scan in enumerate(self.scans)],
        }

    def scan(self, scan_id: int) -> dict[str, Any]:
        """Report, scores with their prompts, and nearest entries of a scan.

        What the model cannot compute is empty, with the reason in `<part>_missing`. `warning`: the index has a different scan of
        this name, so its report is not shown.

        Raises:
            RequestError: the scan does not exist or cannot be read.
        """
        with self._lock:
            source, scan = self._source(scan_id), self._scan(scan_id)
            warning = ""
            if source.key in self._indexed["scan"] and not self._is_indexed(scan_id):
                warning = "the index has a different scan of this name (from another folder, or an older version)"
            content = {"id": scan_id, "name": source.key, "report": self._report(scan_id), "warning": warning}
            content |= {"scan": str(scan), "frame": self._frame(scan)}
            content |= _or_reason("scores", lambda: self._scores(scan_id))
            return content | _or_reason("neighbours", lambda: self._neighbours(scan_id))

    def nifti(self, scan_id: int) -> bytes:
        """The scan as `.nii` in HU with the geometry of its file; errors as `scan`."""
        with self._lock:
            scan = self._scan(scan_id)
            if self._is_prepared:
                low, high = self.model.preprocessing.window_hu
                return _to_bytes(scan.in_file(scan.upright(scan.volume) * (high - low) + low), np.int16)
            return as_nifti(self._root / self._source(scan_id).key).to_bytes()

    def ground(self, scan_id: int, sentence: str) -> dict[str, Any]:
        """Compute the map of a sentence, to be fetched by its id; RequestError also if the model cannot ground text."""
        with self._lock:
            scan = self._scan(scan_id)
            try:
                region = self.model.ground(scan, sentence, against=dict(self._pairs).get(sentence))
            except ValueError as error:
                raise RequestError(str(error)) from None
            map_id = secrets.token_urlsafe(12)
            # One byte per voxel: steps of 1/255 of the maximum are finer than the colour scale.
            self._maps[map_id] = _to_bytes(region.in_file(), np.uint8)
            if len(self._maps) > _MAX_MAPS:
                self._maps.popitem(last=False)
            return {"map": map_id, "summary": str(region), "peak_mm": region.peak_mm(), "max": float(region.cells.max())}

    def map(self, map_id: str) -> bytes:
        """A map of `ground` as `.nii`."""
        with self._lock:
            if map_id not in self._maps:
                raise RequestError("this map is no longer stored; request it again")
            return self._maps[map_id]

    def _frame(self, scan: Scan) -> dict[str, str]:
        """Unit and origin of positions on the page."""
        unit = "mm" if scan.spacing_mm else "voxels"
        return {"unit": unit, "origin": "from the corner of the prepared volume" if self._is_prepared else "of the file"}

    def _source(self, scan_id: int) -> ScanSource:
        if not 0 <= scan_id < len(self.scans):
            raise RequestError(f"scan {scan_id} does not exist; ids are 0 to {len(self.scans) - 1}")
        return self.scans[scan_id]

    def _read(self, scan_id: int) -> Scan:
        scan = read_source(self._source(scan_id))
        if isinstance(scan, UnreadableScan):
            raise RequestError(scan.reason)
        return scan

    def _report(self, scan_id: int) -> str:
        source, rows = self._source(scan_id), self._indexed["report"]
        if source.report or source.key not in rows or not self._is_indexed(scan_id):
            return source.report
        return self.index.entries["text"][rows[source.key]].as_py()

    def _is_indexed(self, scan_id: int) -> bool:
        """Whether the index entry of this name is of this scan: scans of different folders may have equal names."""
        row = self._indexed["scan"].get(self._source(scan_id).key)
        return row is not None and float(self.index.vectors[row] @ self._vector(scan_id)) > _SAME_SCAN

    def _scores(self, scan_id: int) -> list[dict[str, Any]]:
        (scores,) = self.model.classify_embeddings(self._vector(scan_id)[None], self.findings, self._pairs)
        return [score._asdict() for score in scores]

    def _neighbours(self, scan_id: int) -> list[dict[str, Any]]:
        if self.index is None:
            raise ValueError("no search index; make one with tools/embed.py and pass it with --index")
        own_key = self._source(scan_id).key if self._is_indexed(scan_id) else None
        neighbours = []
        for kind in ("scan", "report"):
            if len(self.index.rows_of[kind]):
                rows = self.index.search(self._vector(scan_id)[None], k=_NEIGHBOURS + 1, kind=kind)[0]
                neighbours += [row for row in rows if (row.kind, row.key) != ("scan", own_key)][:_NEIGHBOURS]
        return [row._asdict() | {"id": self._id_of.get(row.key), "own": row.key == own_key} for row in neighbours]


def _or_reason(part: str, compute: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {part: compute()}
    except ValueError as error:
        return {part: [], f"{part}_missing": str(error)}


def _rows_of(index: SearchIndex, kind: str) -> dict[str, int]:
    """Key -> row of the index."""
    rows = index.rows_of[kind]
    return dict(zip(index.entries["key"].take(rows).to_pylist(), rows.tolist(), strict=True))


def _to_bytes(image: nib.Nifti1Image, dtype: type) -> bytes:
    image.set_data_dtype(dtype)  # nibabel chooses the slope
    return image.to_bytes()
