"""List the scans below a folder: the one walk of preparation, inference, fine-tuning and doctor."""

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

from mg3d.preparation.geometry import MIN_SLICES
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom_series import axial_series, is_dicom, read_headers
from mg3d.preparation.readers.registry import READER_OF_SUFFIX

SCAN_SUFFIXES = tuple(READER_OF_SUFFIX)
"""Lower-case suffixes of files that are one scan each."""
_DICOM_SUFFIXES = {".dcm", ".ima", ".dicom", ".dic", ""}
OTHER_SUFFIXES = {
    ".arrow", ".bmp", ".bval", ".bvec", ".csv", ".db", ".docx", ".gif", ".gz", ".htm", ".html", ".ini", ".jpeg", ".jpg", ".json",
    ".log", ".md", ".npy", ".npz", ".pdf", ".png", ".py", ".raw", ".sh", ".tar", ".tif", ".tiff", ".tsv", ".txt", ".xls", ".xlsx",
    ".xml", ".yaml", ".yml", ".zip", ".zraw",
}  # fmt: skip
"""Never opened to look for DICOM; counted by name. Other suffixes may be part of a person's name and are counted as one."""
_DICOMDIR = "DICOMDIR"


@dataclass
class ScanListing:
    """The scans below a folder, sorted, and the number of entries that are not scans."""

    scans: list[PurePosixPath] = field(default_factory=list, repr=False)
    """Scan files and folders of DICOM slices, relative to the root."""
    slice_folders: list[PurePosixPath] = field(default_factory=list, repr=False)
    """Folders of slice images, relative to the root; only of `image_suffixes`."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """What -> number of entries; contains no names."""

    @property
    def note(self) -> str:
        """What was passed over, as a phrase; empty if nothing was."""
        counts = sorted(self.passed_over.items(), key=lambda item: (-item[1], item[0]))
        return f"passed over: {', '.join(f'{count:,} {what}' for what, count in counts)}" if counts else ""


def walk_scans(
    root: Path,
    suffixes: Sequence[str] = SCAN_SUFFIXES,
    *,
    image_suffixes: Sequence[str] = (),
    max_folders: int | None = None,
) -> ScanListing:
    """List the scans below `root`. Symbolic links are followed; a folder that is reached twice is listed once.

    A folder with DICOM files is one scan, whatever their suffix, except a few stray files above folders of series. Hidden files
    and folders are not read.

    suffixes, image_suffixes: lower-case suffixes of scan files, and of slice images.
    max_folders: stop after this number of folders.
    """
    listing = ScanListing()
    n_slices: dict[PurePosixPath, int] = {}
    for folder, files in islice(walk_folders(root, listing.passed_over), max_folders):
        relative = PurePosixPath(folder.relative_to(root).as_posix())
        others = []
        for file in files:
            if file.lower().endswith(tuple(suffixes)):
                listing.scans.append(relative / file)
            else:
                others.append(file)
        images = [file for file in others if file.lower().endswith(tuple(image_suffixes))] if image_suffixes else []
        listing.slice_folders += [relative] if images else []
        others = [file for file in others if file not in set(images)]
        slices = _slices(folder, others)
        n_slices |= {relative: len(slices)} if slices else {}
        listing.passed_over.update(_kind(file) for file in others if file not in slices)
    for folder in _stray(n_slices):
        listing.passed_over["DICOM files above folders of series"] += n_slices.pop(folder)
    listing.scans = sorted([*listing.scans, *n_slices])
    listing.slice_folders.sort()
    return listing


def dicom_scans(folder: Path) -> dict[Path, int]:
    """First file of each axial CT series of a folder that is long enough for a scan -> number of slice positions."""
    try:
        found = axial_series(read_headers(folder))
    except Refusal:
        return {}
    n_positions = {
        min(header.path for header in headers): len({round(header.height_mm, 2) for header in headers})
        for headers in found.values()
    }
    return {path: count for path, count in sorted(n_positions.items()) if count >= MIN_SLICES}


def is_or_may_be_dicom(path: Path) -> bool:
    """True also for an unreadable file: the reader will report it."""
    try:
        return is_dicom(path)
    except OSError:
        return True


def walk_folders(root: Path, passed_over: Counter[str]) -> Iterator[tuple[Path, list[str]]]:
    """Every folder with the names of its files. Links come last, so that a folder below `root` is listed by its own path."""
    pending, links, seen = deque([root]), deque(), set()
    while pending or links:
        folder = pending.popleft() if pending else links.popleft()
        try:
            state = folder.stat()
            with os.scandir(folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            passed_over["unreadable folders"] += 1
            continue
        if (state.st_dev, state.st_ino) in seen:
            passed_over["links to folders that are listed already"] += 1
            continue
        seen.add((state.st_dev, state.st_ino))
        files = []
        for entry in entries:
            if entry.name.startswith("."):
                passed_over["hidden files and folders"] += 1
            elif entry.is_dir():
                (links if entry.is_symlink() else pending).append(folder / entry.name)
            elif entry.is_file():
                files.append(entry.name)
            else:
                passed_over["broken links and special files"] += 1
        yield folder, files


def _slices(folder: Path, files: Sequence[str]) -> set[str]:
    """The files of a folder of DICOM slices: those with the suffix of a file that is DICOM; empty without one."""
    groups: dict[str, list[str]] = {}
    for file in files:
        suffix = Path(file).suffix.lower()
        if suffix == ".gz" and Path(Path(file).stem).suffix.lower() in _DICOM_SUFFIXES - {""}:
            suffix = ".dcm"
        suffix = "" if suffix[1:].isdigit() else suffix
        if suffix not in OTHER_SUFFIXES and file != _DICOMDIR:
            groups.setdefault(suffix, []).append(file)
    found = set()
    for _, names in sorted(groups.items(), key=lambda group: (group[0] not in _DICOM_SUFFIXES, group[0])):
        if any(is_or_may_be_dicom(folder / name) for name in names):
            found |= set(names)
    return found


def _stray(n_slices: dict[PurePosixPath, int]) -> list[PurePosixPath]:
    """Folders with fewer files than a scan has slices, above other folders of slices."""
    above = {parent for folder in n_slices for parent in folder.parents}
    return [folder for folder, count in n_slices.items() if folder in above and count < MIN_SLICES]


def _kind(file: str) -> str:
    suffix = Path(file).suffix.lower()
    if file == _DICOMDIR:
        return _DICOMDIR
    return f"{suffix} files" if suffix in OTHER_SUFFIXES else "other files"
