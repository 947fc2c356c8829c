"""Show three planes of a case and its report, from Arrow files, a NIfTI file, CTRG, CT-RATE or a synthetic set (`--help`)."""

import csv
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from PIL import Image, UnidentifiedImageError

from mg3d.checkpoints.command import Parser, new_file
from mg3d.datasets.arrow import VolumeIndex
from mg3d.files import write_bytes
from mg3d.glossary import LABELS
from mg3d.phantom.ct_rate import REPORTS_NAME, volume_path
from mg3d.preparation.geometry import table_affine
from mg3d.preparation.hounsfield import choose_hu_rescale
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.nifti import is_blank
from mg3d.preparation.records import TableGeometry
from mg3d.preparation.sources.ct_rate import table_geometry
from mg3d.preparation.sources.ctrg import ANNOTATIONS, case_folder, natural_key, read_annotation, slice_names
from mg3d.sentence_spans import clean_section, report_units
from mg3d.visualize.page import png
from mg3d.visualize.planes import case_figure

CHEST_WINDOW_HU = (-1000.0, 400.0)
PICTURES = Path("result/pictures")
_VOLUME_NAME = re.compile(r"(train|valid)_\d+_[a-z]+_\d+")


class Case(NamedTuple):
    """What is shown of one volume."""

    name: str
    volume: np.ndarray
    """[z, y, x], +z superior, +y posterior, +x patient left."""
    report: str
    spacing_mm: Sequence[float] | None
    """z y x; None = not known."""
    window: tuple[float, float]
    """Voxel values that become black and white."""
    labels: Sequence[int] = ()
    """Of the 18 findings: 1 present, 0 absent, -1 not known; empty = none known."""

    @property
    def title(self) -> str:
        """The name and what is labelled present."""
        present = ", ".join(name for name, label in zip(LABELS, self.labels) if label == 1)
        unknown = all(label == -1 for label in self.labels)
        return self.name if unknown else f"{self.name}: {present or 'none of the 18 findings'}"


def read_case(path: Path, case: str | None) -> Case:
    """The case that PATH and --case name.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is no data set, or holds no such case, or cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; give an .arrow index, a NIfTI file, or a folder of slices or of a data set")
    if path.suffix == ".arrow":
        return read_row(path, case)
    dataset = next((folder for folder in (path / "ct_rate/dataset", path / "dataset", path) if _is_ct_rate(folder)), None)
    if dataset is not None:
        return read_nifti(_find_volume(dataset, case))
    if path.is_dir() and (indices := sorted(path.glob("clm_*.arrow"))):
        return read_folder(indices, case)
    annotated = next((folder for folder in (path / "ctrg", path) if any((folder / name).is_file() for name in ANNOTATIONS)), None)
    if annotated is not None:
        return read_jpeg_slices(_find_case(annotated, case))
    if case is not None:
        raise ValueError("--case chooses a volume of Arrow files, of CT-RATE or of CTRG, and PATH is none of them; leave it out")
    if path.name.endswith((".nii", ".nii.gz")):
        return read_nifti(path)
    if path.is_dir():
        return read_jpeg_slices(path)
    raise ValueError(f"{path} is no .arrow index, no .nii or .nii.gz file and no folder")


def read_row(path: Path, case: str | None) -> Case:
    """A volume of an index file by its volume or study id, with or without the data set's name; the first without a case."""
    index = VolumeIndex(path)
    ids, studies = (index.table[column].to_pylist() for column in ("volume_id", "study_id"))
    if not ids:
        raise ValueError(f"{path} is an index without a volume; run the preparation on more data")
    named = (row for row, names in enumerate(zip(ids, studies)) if case in {*names, *(name.split("/")[-1] for name in names)})
    row = 0 if case is None else next(named, None)
    if row is None:
        raise ValueError(f"{path} has no volume or study {case}; the first of its {len(ids)} volumes is {ids[0]}")
    stored = {name: index.table[name][row].as_py() for name in ("report", "spacing_mm", "intensity_unit", "labels")}
    window = CHEST_WINDOW_HU if stored["intensity_unit"] == "hu" else (0.0, 255.0)
    name = ids[row].split("/")[-1]
    return Case(name, index.volume(row), stored["report"], stored["spacing_mm"], window, stored["labels"])


def read_folder(indices: Sequence[Path], case: str | None) -> Case:
    """A volume of several index files: of the first that has it."""
    for path in indices:
        ids = VolumeIndex(path).table.select(["volume_id", "study_id"]).to_pydict()
        names = {name for column in ids.values() for full in column for name in (full, full.split("/")[-1])}
        if (case is None and names) or case in names:
            return read_row(path, case)
    searched = ", ".join(path.name for path in indices)
    raise ValueError(f"{indices[0].parent} has no volume{'' if case is None else f' or study {case}'}; looked for in {searched}")


def read_nifti(path: Path) -> Case:
    """A NIfTI file, turned upright; in a CT-RATE tree with its report and labels, and its geometry where the header is blank."""
    try:
        image = nib.load(path)
        stored = np.asanyarray(image.dataobj)
    except (ImageFileError, HeaderDataError, EOFError, zlib.error, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as NIfTI ({type(error).__name__}); download it again") from error
    while stored.ndim > 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim != 3:
        raise ValueError(f"{path} has {stored.ndim} axes, {'x'.join(map(str, stored.shape))}; a volume of three axes is expected")
    texts, metadata, labels = _ct_rate_rows(path)
    table = table_geometry(metadata) if metadata else None
    volume, spacing_mm = _upright(stored, image, table)
    try:
        rescale = choose_hu_rescale(stored, table and (table.slope, table.intercept))
        volume, window = volume * rescale.slope + rescale.intercept, CHEST_WINDOW_HU
    except Refusal:  # a label map, or scanner values without a table: shown as they are
        low, high = np.nanpercentile(stored, (1, 99))
        window = (float(low), float(high))
    sections = (clean_section(texts.get(column)) for column in ("Findings_EN", "Impressions_EN"))
    known = [{"0": 0, "1": 1}.get(labels.get(label, "").removesuffix(".0"), -1) for label in LABELS]
    return Case(re.sub(r"\.nii(\.gz)?$", "", path.name), volume, report_units(*sections)[0], spacing_mm, window, known)


def read_jpeg_slices(folder: Path) -> Case:
    """A folder of CTRG's JPEG slices, which run from the top down; the report is looked up in the JSON above it.

    The folder's name may be a person's: the picture is called by the case's place in the JSON.
    """
    try:
        names = sorted(slice_names(folder), key=natural_key)
    except OSError as error:
        raise ValueError(f"the folder cannot be read ({type(error).__name__}); make it readable") from None
    if not names:
        raise ValueError("the folder holds neither JPEG slices nor CT-RATE's dataset; give one that does, or a file")
    try:
        slices = [np.asarray(Image.open(folder / name).convert("L")) for name in names]
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"a JPEG slice cannot be read ({type(error).__name__}); download the case again") from None
    shapes = {plane.shape for plane in slices}
    if len(shapes) > 1:
        raise ValueError(f"the slices have different sizes, {sorted(shapes)}; the folder should hold those of one case")
    place, item = _ctrg_item(folder.resolve())
    sections = (
        clean_section(item.get(name, item.get(other))) for name, other in (("report", "findings"), ("result", "impression"))
    )
    return Case(f"ctrg_{place}" if item else "ctrg_case", np.stack(slices[::-1]), report_units(*sections)[0], None, (0.0, 255.0))


def _is_ct_rate(folder: Path) -> bool:
    return (folder / "radiology_text_reports").is_dir()


def _find_volume(dataset: Path, case: str | None) -> Path:
    first = next(iter(dataset.glob("*/*/*/*.nii.gz")), None)
    if first is None:
        raise ValueError(f"{dataset} holds no volume yet; download some, or give another folder")
    if case is None:
        return first
    hint = f"one that is there is {first.name.removesuffix('.nii.gz')}"
    if not _VOLUME_NAME.fullmatch(case):
        raise ValueError(f"--case {case} is no name of a CT-RATE volume; {hint}")
    path = next((path for path in (volume_path(dataset, case, fixed=fixed) for fixed in (True, False)) if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{dataset} has no volume {case}; {hint}")
    return path


def _ct_rate_rows(path: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """The file's rows of the reports, the metadata and the labels; empty outside of a CT-RATE tree."""
    split = path.name.split("_")[0]
    dataset = next((folder for folder in path.resolve().parents if _is_ct_rate(folder)), None)
    if dataset is None or split not in REPORTS_NAME:
        return {}, {}, {}
    tables = (
        f"radiology_text_reports/{REPORTS_NAME[split]}_reports.csv",
        f"metadata/{REPORTS_NAME[split]}_metadata.csv",
        f"multi_abnormality_labels/{split}_predicted_labels.csv",
    )
    reports, metadata, labels = (_table_row(dataset / table, path.name) for table in tables)
    return reports, metadata, labels


def _table_row(table: Path, volume_name: str) -> dict[str, str]:
    if not table.is_file():
        return {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            return next((row for row in csv.DictReader(file) if (row.get("VolumeName") or "").strip() == volume_name), {})
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} cannot be read as a CSV table ({type(error).__name__}); download it again") from None


def _upright(
    stored: np.ndarray, image: nib.Nifti1Image, table: TableGeometry | None
) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """[z, y, x] with +z superior, +y posterior, +x left, and its spacing, of voxels [i, j, k].

    A blank header gives way to the table, and without one to CT-RATE's order of axes and no spacing.
    """
    affine = image.affine
    if is_blank(image.header):
        try:
            affine = table_affine(table)
        except Refusal:
            return stored.transpose(2, 1, 0), None
    if not np.isfinite(affine).all():
        raise ValueError("the header's geometry holds values that are no numbers, so the volume cannot be turned upright")
    upright = nib.as_closest_canonical(nib.Nifti1Image(stored, affine))
    volume = np.asanyarray(upright.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]  # from RAS
    return volume, tuple(float(size) for size in upright.header.get_zooms()[::-1])


def _find_case(root: Path, case: str | None) -> Path:
    """The folder of a CTRG case by its place in the JSON, ctrg_12 or 12; the first that is there without one."""
    annotation = next(root / name for name in ANNOTATIONS if (root / name).is_file())
    folders = [root / case_folder(item) for part in read_annotation(annotation).values() for item in part]
    there = [place for place, folder in enumerate(folders) if folder.is_dir()]
    if not there:
        raise ValueError(f"none of the {len(folders)} cases of {annotation.name} is there as a folder of slices; download some")
    if case is None:
        return folders[there[0]]
    number = case.removeprefix("ctrg_")
    if not number.isdecimal() or int(number) not in there:
        raise ValueError(f"--case {case} is no case that is there; give its place in {annotation.name}, such as ctrg_{there[0]}")
    return folders[int(number)]


def _ctrg_item(folder: Path) -> tuple[int, dict[str, Any]]:
    """Place, from 0, and entry of a case's folder in the annotation file of the folders above; (0, {}) when there is none."""
    files = (above / name for above in folder.parents for name in ANNOTATIONS)
    annotation = next((path for path in files if path.is_file()), None)
    if annotation is None:
        return 0, {}
    items = [item for part in read_annotation(annotation).values() for item in part]
    return next(((place, item) for place, item in enumerate(items) if case_folder(item).name == folder.name), (0, {}))


def main(arguments: Sequence[str]) -> int:
    """Writes the picture; returns the exit code."""
    parser = Parser(description=__doc__)
    parser.add_argument("path", type=Path, help="Arrow file or folder of them, NIfTI, slices, CT-RATE, CTRG or synthetic set")
    parser.add_argument("--case", help="volume or study, train_1_a_1; of CTRG the place in its JSON, ctrg_12; default: the first")
    parser.add_argument("--out", type=new_file, help=f"the picture; default: {PICTURES}/<case>.png")
    given = parser.parse_args(arguments)
    try:
        if given.out is not None and given.out.suffix != ".png":
            raise ValueError(f"--out {given.out} should end in .png, the only kind of picture this writes")
        case = read_case(given.path, given.case)
        figure = case_figure(case.volume, report=case.report, title=case.title, spacing_mm=case.spacing_mm, window=case.window)
        out = given.out or PICTURES / f"{case.name}.png"
        write_bytes(out, png(figure))
    except (ValueError, OSError) as error:
        print(f"visualize_datasets: {error}", file=sys.stderr)
        return 2
    print(f"{case.name}: {' x '.join(map(str, case.volume.shape))} voxels (z, y, x), shown in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
