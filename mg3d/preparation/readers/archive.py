"""Zip archives of one scan: a volume file, or the slices of a DICOM series."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import RawVolume, VolumeRecord

MAX_UNPACKED_BYTES = 6 * 10**9


def read_archive(
    record: VolumeRecord, root: Path, readers: Mapping[str, Callable[[VolumeRecord, Path], RawVolume]],
    reader_of: Callable[[Path], str | None],
) -> RawVolume:  # fmt: skip
    """The scan of a zip archive, unpacked to a temporary folder.

    Raises:
        Refusal: missing_file, unreadable, archive_damaged, too_large; several_scans if it has more than one volume file; as the
            reader of its content.
    """
    with TemporaryDirectory(prefix="mg3d_zip_") as name:
        folder = Path(name)
        _unpack(root / record.files[0], folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() != ".zip" and reader_of(path))
        if len(files) > 1:
            raise Refusal("several_scans", f"{len(files)} volume files in the archive")
        path = files[0] if files else folder
        content = replace(record, files=(path.name,), reader=(reader_of(path) if files else None) or "dicom")
        return readers[content.reader](content, path.parent)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_hidden(entry.filename)]
            if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
                raise Refusal("too_large", f"more than {MAX_UNPACKED_BYTES / 1e9:g} GB unpacked")
            archive.extractall(folder, entries)  # leaves out .. and leading slashes
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise Refusal("archive_damaged", type(error).__name__) from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
