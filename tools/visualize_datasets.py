"""Show three planes of a case and its report, from an Arrow index, NIfTI file, CTRG folder or synthetic set (`--help`)."""

import argparse
import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image

from mg3d.datasets.arrow import VolumeIndex
from mg3d.phantom.ct_rate import volume_path
from mg3d.pictures.page import png
from mg3d.pictures.planes import case_figure

CHEST_WINDOW_HU = (-1000.0, 400.0)


class Case(NamedTuple):
    """What is shown."""

    name: str
    volume: np.ndarray
    """[z, y, x], +z superior, +y posterior, +x patient left."""
    spacing_mm: tuple[float, float, float] | None
    report: str
    is_hu: bool


def open_case(path: Path, wanted: str | None) -> Case:
    """The case at a path, by what the path is; FileNotFoundError or ValueError says what is wrong."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if path.suffix == ".arrow":
        return from_arrow(path, wanted)
    if path.name.endswith((".nii", ".nii.gz")):
        return from_nifti(path)
    if (path / "ct_rate" / "dataset").is_dir():
        return from_synthetic_set(path, wanted)
    if path.is_dir() and any(path.glob("*.jpg")):
        return from_slices(path)
    raise ValueError(
        f"{path} is none of: an .arrow index, a .nii(.gz) file, a folder of .jpg slices, a synthetic set (holds ct_rate/dataset)"
    )


def from_arrow(path: Path, wanted: str | None) -> Case:
    """A row of an index; default: the first."""
    index = VolumeIndex(path)
    names = index.table["volume_id"].to_pylist()
    matches = [row for row, name in enumerate(names) if wanted is None or wanted in (name, name.split("/", 1)[1])]
    if not matches:
        raise ValueError(f"{path} has no volume {wanted}; one of its {len(names)} is {names[0] if names else 'missing'}")
    row = matches[0]
    spacing = index.table["spacing_mm"][row].as_py()
    report = index.table["report"][row].as_py()
    is_hu = index.table["unit"][row].as_py() == "hu"
    return Case(names[row], index.volume(row), tuple(spacing) if spacing else None, report, is_hu)


def from_nifti(path: Path) -> Case:
    """A NIfTI file, turned by its header; with its report when it lies in a CT-RATE tree."""
    image = nib.load(path)
    if len(image.shape) != 3:
        raise ValueError(f"{path} has {len(image.shape)} axes, not 3")
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS"))
    image = image.as_reoriented(turn)
    volume = np.asarray(image.dataobj).transpose(2, 1, 0)
    return Case(path.name.split(".nii")[0], volume, tuple(image.header.get_zooms()[::-1]), ct_rate_report(path), True)


def ct_rate_report(path: Path) -> str:
    """The report of a volume of a CT-RATE tree, or nothing."""
    tables = [table for folder in path.parents[3:5] for table in folder.glob("radiology_text_reports/*_reports.csv")]
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["VolumeName"] == path.name:
                    return f"{row['Findings_EN']}\n{row['Impressions_EN']}"
    return ""


def from_slices(folder: Path) -> Case:
    """A CTRG folder: slices from the top down, sorted by number; with its report when the annotations lie beside."""
    paths = sorted(folder.glob("*.jpg"), key=lambda path: [int(number) for number in re.findall(r"\d+", path.stem)])
    volume = np.stack([np.asarray(Image.open(path).convert("L")) for path in reversed(paths)])
    annotations = folder.parent.parent / "chest_ctrg_jpg.json"
    report = ""
    if annotations.is_file():
        for item in json.loads(annotations.read_text(encoding="utf-8")):
            if folder.name in str(item["image_path"]):
                report = f"{item['report']}\n{item['result']}"
    return Case(folder.name, volume, None, report, False)


def from_synthetic_set(root: Path, wanted: str | None) -> Case:
    """A volume of a synthetic set, e.g. train_1_a_1 (the default)."""
    name = wanted or "train_1_a_1"
    if name.count("_") != 3:
        raise ValueError(f"--case {name} is no name of a volume; they look like train_1_a_1")
    path = volume_path(root / "ct_rate" / "dataset", name, fixed=True)
    if not path.is_file():
        raise FileNotFoundError(f"{root} has no volume {name}")
    return from_nifti(path)


def main(arguments: Sequence[str]) -> int:
    """Writes the picture; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("path", type=Path, help="index file, NIfTI file, folder of slices, or synthetic set")
    parser.add_argument("--case", help="volume of an index or a synthetic set; default: the first")
    parser.add_argument("--out", type=Path, help="the picture; default: result/pictures/<case>.png")
    given = parser.parse_args(arguments)
    try:
        case = open_case(given.path, given.case)
    except (ValueError, OSError, nib.filebasedimages.ImageFileError) as error:
        print(f"visualize_datasets: {error}", file=sys.stderr)
        return 2
    window = CHEST_WINDOW_HU if case.is_hu else None
    figure = case_figure(case.volume, report=case.report, title=case.name, spacing_mm=case.spacing_mm, window=window)
    out = given.out or Path("result/pictures") / f"{case.name.replace('/', '_')}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(png(figure))
    print(f"{case.name}: {' x '.join(map(str, case.volume.shape))} voxels (z, y, x), shown in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
