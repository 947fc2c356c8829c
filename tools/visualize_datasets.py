"""Write a PNG of one scan: axial, coronal and sagittal plane, the report and the labels.

PATH is a folder of Arrow files or one .arrow index; a CT-RATE or CTRG root, or the folder of a synthetic set; one NIfTI or MHA
file; or a folder with one DICOM series or JPEG slices.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from mg3d.cli import ArgumentParser, output_file

if TYPE_CHECKING:
    import numpy as np

    from mg3d.preparation.records import VolumeRecord

CHEST_WINDOW_HU = (-1000.0, 400.0)
UINT8_WINDOW = (0.0, 255.0)
OUT_FOLDER = Path("result/figures")


class ShownCase(NamedTuple):
    """A scan as it is displayed."""

    name: str
    volume: "np.ndarray"
    """[z, y, x], +z superior, +y posterior, +x patient left."""
    report: str
    spacing_mm: Sequence[float] | None
    """z y x; None = unknown."""
    window: tuple[float, float]
    """Values displayed as black and white."""
    labels: Sequence[int] = ()
    """Of the 18 findings: 1 present, 0 absent, -1 unknown."""

    @property
    def title(self) -> str:
        """The name and the findings labelled present."""
        from mg3d.glossary import LABELS

        present = ", ".join(name for name, label in zip(LABELS, self.labels) if label == 1)
        is_unknown = all(label == -1 for label in self.labels)
        return self.name if is_unknown else f"{self.name}: {present or 'none of the 18 findings'}"


def read_case(path: Path, case: str | None) -> ShownCase:
    """The scan that PATH and --case select.

    Raises:
        FileNotFoundError: PATH does not exist.
        ValueError: PATH is not a data set or scan, it does not contain the case, or a file is unreadable.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".arrow":
        return read_arrow_case([path], case)
    if path.is_dir() and (indices := sorted(path.glob("clm_*.arrow"))):
        return read_arrow_case(indices, case)
    from mg3d.preparation.sources.ctrg import ANNOTATIONS

    ct_rate = next((root for root in (path / "ct_rate", path) if _is_ct_rate(root)), None)
    if ct_rate is not None:
        return read_ct_rate_case(ct_rate, case)
    ctrg = next((root for root in (path / "ctrg", path) if any((root / name).is_file() for name in ANNOTATIONS)), None)
    if ctrg is not None:
        return read_ctrg_case(ctrg, case)
    if case is not None:
        raise ValueError(f"--case selects a scan of Arrow files, CT-RATE or CTRG, and {path} is none of them. Omit it")
    return read_file_case(path)


def read_arrow_case(indices: Sequence[Path], case: str | None) -> ShownCase:
    """A volume or study of the first index that contains it (ids with or without the data set's name), or the first volume."""
    from mg3d.datasets.arrow import VolumeIndex

    for path in indices:
        index = VolumeIndex(path)
        ids = index.table.select(["volume_id", "study_id"]).to_pylist()
        names = [{short for name in row.values() for short in (name, name.split("/")[-1])} for row in ids]
        row = next((row for row, known in enumerate(names) if case is None or case in known), None)
        if row is not None:
            stored = index.table.slice(row, 1).to_pylist()[0]
            window = CHEST_WINDOW_HU if stored["intensity_unit"] == "hu" else UINT8_WINDOW
            name = stored["volume_id"].split("/")[-1]
            return ShownCase(name, index.volume(row), stored["report"], stored["spacing_mm"], window, stored["labels"])
    searched = ", ".join(path.name for path in indices)
    raise ValueError(f"no volume{'' if case is None else f' or study {case}'} in {indices[0].parent} ({searched})")


def read_ct_rate_case(root: Path, case: str | None) -> ShownCase:
    """A volume of CT-RATE by its name, as the preparation reads it."""
    from mg3d.preparation.sources.ct_rate import list_ct_rate
    from mg3d.preparation.sources.options import SourceOptions

    with TemporaryDirectory() as folder:
        inventory = list_ct_rate(root, SourceOptions(out=Path(folder)))
    records = {record.volume_id.split("/")[-1]: record for record in inventory.records if record.files}
    return _read(_select(records, case, root), inventory.root)


def read_ctrg_case(root: Path, case: str | None) -> ShownCase:
    """A case of CTRG by its 0-based position in the annotation, `ctrg_12` or `12`; folder names may identify people."""
    from mg3d.preparation.sources.ctrg import case_folder, find_annotation, find_case, is_nifti, read_annotation

    items = [item for part in read_annotation(find_annotation(root)).values() for item in part]
    located = {f"ctrg_{k}": find_case(root, case_folder(item)) for k, item in enumerate(items)}
    cases = {name: path for name, path in located.items() if path is not None}
    name = case if case is None or case in cases else f"ctrg_{case}"
    location = _select(cases, name, root)
    name = next(key for key, path in cases.items() if path is location)
    item = items[int(name.removeprefix("ctrg_"))]
    sections = [item.get(key, item.get(other)) for key, other in (("report", "findings"), ("result", "impression"))]
    files, reader = ((location.name,), "grey_nifti") if is_nifti(location) else (_slices(location), "jpeg_slices")
    folder = location.parent if reader == "grey_nifti" else location
    return _read(_record(name, files, reader, sections), folder)


def read_file_case(path: Path) -> ShownCase:
    """One NIfTI or MHA file, or a folder with a DICOM series or JPEG slices. Folder names are not shown."""
    from mg3d.preparation.readers.registry import READER_OF_SUFFIX, reader_of

    if path.is_dir():
        slices = _slices(path)
        record = _record("slices", slices, "jpeg_slices") if slices else _record("series", (".",), "dicom")
        return _read(record, path)
    reader = reader_of(path)
    if reader is None:
        raise ValueError(f"{path} is not a .arrow, {', '.join(READER_OF_SUFFIX)} file or a folder")
    suffix = next(suffix for suffix in (".nii.gz", path.suffix) if path.name.lower().endswith(suffix.lower()))
    return _read(_record(path.name[: -len(suffix)], (path.name,), reader), path.parent)


def _is_ct_rate(root: Path) -> bool:
    return any((root / folder / "radiology_text_reports").is_dir() for folder in ("dataset", "."))


def _select(cases: Mapping[str, Any], case: str | None, root: Path) -> Any:
    """The named case, or the first one."""
    if not cases:
        raise ValueError(f"{root} lists scans, but none of them has been downloaded")
    if case is not None and case not in cases:
        raise ValueError(f"{root} has no scan {case.removeprefix('ctrg_')}; an available one is --case {next(iter(cases))}")
    return cases[next(iter(cases)) if case is None else case]


def _slices(folder: Path) -> tuple[str, ...]:
    """Names of a folder's JPEG slices, in order."""
    from mg3d.preparation.sources.ctrg import natural_key, slice_names

    try:
        return tuple(sorted(slice_names(folder), key=natural_key))
    except OSError as error:  # its message contains the folder
        raise ValueError(f"the folder cannot be read ({type(error).__name__})") from None


def _record(name: str, files: Sequence[str], reader: str, sections: Sequence[object] = (None, None)) -> "VolumeRecord":
    from mg3d.preparation.records import VolumeRecord
    from mg3d.report_sections import clean_section

    findings, impression = map(clean_section, sections)
    return VolumeRecord(
        volume_id=name, study_id=name, patient_id=name, dataset="custom", official_split="none", split="train", reconstruction=1,
        findings=findings, impression=impression, files=tuple(files), source=name, reader=reader,
    )  # fmt: skip


def _read(record: "VolumeRecord", root: Path) -> ShownCase:
    """A record as the preparation reads it; a NIfTI that is not a CT in HU, such as a label map, as stored."""
    import numpy as np

    from mg3d.preparation.geometry import table_affine, to_lps
    from mg3d.preparation.quarantine import Refusal
    from mg3d.preparation.readers.nifti import read_nifti
    from mg3d.preparation.readers.registry import READERS
    from mg3d.sentence_spans import build_report

    report, name = build_report(record.findings, record.impression)[0], record.volume_id.split("/")[-1]
    try:
        raw = READERS[record.reader](record, root)
    except Refusal as refusal:
        if refusal.code != "hu_ambiguous" or record.reader != "nifti":
            raise ValueError(f"{name} cannot be read: {refusal.reason}") from None
        stored, affine = read_nifti(root / record.files[0])
        volume, spacing = to_lps(stored, table_affine(record.table) if affine is None else affine)
        low, high = np.nanpercentile(stored, (1, 99))
        return ShownCase(name, volume, report, spacing, (float(low), float(high)), record.labels)
    slope, intercept = raw.scale
    window = UINT8_WINDOW if raw.hu_source == "uint8_unknown_window" else CHEST_WINDOW_HU
    return ShownCase(name, raw.voxels * slope + intercept, report, raw.spacing_mm, window, record.labels)


def main(arguments: Sequence[str]) -> int:
    """Writes the figure; returns the exit code."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("path", metavar="PATH", type=Path, help="data set, file or folder of a scan (see above)")
    parser.add_argument(
        "--case", help="volume or study, e.g. train_1_a_1; CTRG: 0-based position in its JSON, e.g. ctrg_12 (default: the first)"
    )
    parser.add_argument("--out", type=output_file, metavar="FILE.png", help=f"output file (default: {OUT_FOLDER}/CASE.png)")
    options = parser.parse_args(arguments)
    try:
        if options.out is not None and options.out.suffix != ".png":
            raise ValueError(f"--out {options.out} must end in .png")
        case = read_case(options.path, options.case)
        from mg3d.files import write_bytes
        from mg3d.visualize.page import png
        from mg3d.visualize.planes import case_figure

        figure = case_figure(case.volume, report=case.report, title=case.title, spacing_mm=case.spacing_mm, window=case.window)
        out = options.out or OUT_FOLDER / f"{case.name}.png"
        write_bytes(out, png(figure))
    except (ValueError, OSError) as error:
        print(f"visualize_datasets: {error}", file=sys.stderr)
        return 2
    print(f"{case.name}: {' x '.join(map(str, case.volume.shape))} voxels (z, y, x), saved to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
