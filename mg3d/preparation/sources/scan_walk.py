"""List the scans below a folder: the one walk of preparation, inference, fine-tuning and doctor."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

from mg3d.files import walk_folders
from mg3d.preparation.geometry import MIN_SLICES
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom_series import axial_series, is_dicom, load_pydicom, read_file, read_headers
from mg3d.preparation.readers.registry import READER_OF_SUFFIX

SCAN_SUFFIXES = tuple(READER_OF_SUFFIX)
"""Lower-case suffixes of files that are one scan each."""
_DICOM_SUFFIXES = {".dcm", ".ima", ".dicom", ".dic", ""}
_OTHER_SUFFIXES = {
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
    slices_of: dict[PurePosixPath, set[str]] = {}
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
        slices_of |= {relative: slices} if slices else {}
        listing.passed_over.update(other_kind(file) for file in others if file not in slices)
    for folder in _stray(root, slices_of):
        listing.passed_over["DICOM files above folders of series"] += len(slices_of.pop(folder))
    listing.scans = sorted([*listing.scans, *slices_of])
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


def _slices(folder: Path, files: Sequence[str]) -> set[str]:
    """The files of a folder of DICOM slices: those with the suffix of a file that is DICOM; empty without one."""
    groups: dict[str, list[str]] = {}
    for file in files:
        if not is_known_other(file):
            groups.setdefault(_suffix(file), []).append(file)
    found = set()
    for _, names in sorted(groups.items(), key=lambda group: (group[0] not in _DICOM_SUFFIXES, group[0])):
        if any(is_or_may_be_dicom(folder / name) for name in names):
            found |= set(names)
    return found


def is_known_other(file: str) -> bool:
    """Whether a file name is that of another format than DICOM."""
    return _suffix(file) in _OTHER_SUFFIXES or file == _DICOMDIR


def other_kind(file: str) -> str:
    """What a file is that is not a scan, without its name."""
    if file == _DICOMDIR:
        return _DICOMDIR
    return f"{_suffix(file)} files" if is_known_other(file) else "other files"


def _suffix(file: str) -> str:
    """The suffix in lower case, below .gz; empty for a number, which ends the name of a slice."""
    suffix = Path(file).suffix.lower()
    inner = Path(file[: -len(suffix)]).suffix.lower() if suffix == ".gz" else ""
    suffix = suffix if not inner or inner == ".tar" else inner
    return "" if suffix[1:].isdigit() else suffix


def _stray(root: Path, slices_of: Mapping[PurePosixPath, Iterable[str]]) -> list[PurePosixPath]:
    """Folders with fewer files than a scan has slices, above other folders of slices. A multi-frame file is a scan."""
    above = {parent for folder in slices_of for parent in folder.parents}
    few = [folder for folder, files in slices_of.items() if folder in above and len(set(files)) < MIN_SLICES]
    return [folder for folder in few if not any(_is_multi_frame(root / folder / file) for file in slices_of[folder])]


def _is_multi_frame(path: Path) -> bool:
    try:
        return any(header.frame is not None for header in read_file(load_pydicom(), path))
    except (Refusal, OSError):
        return False
