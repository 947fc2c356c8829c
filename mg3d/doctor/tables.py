"""Checks of CT-RATE's own tables against one another and against the tree of files."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mg3d.doctor.findings import Finding, Severity, examples, number
from mg3d.preparation.geometry import MAX_LENGTH_MM, SPACING_MM
from mg3d.preparation.records import TableGeometry
from mg3d.preparation.sources.ct_rate import table_geometry
from mg3d.sentence_spans import clean_section

TABLES = {
    "reports": "radiology_text_reports/{long}_reports.csv",
    "metadata": "metadata/{long}_metadata.csv",
    "labels": "multi_abnormality_labels/{short}_predicted_labels.csv",
}
LONG = {"train": "train", "valid": "validation"}
SHORTEST_MM = 100.0
"""A chest is longer. CT-RATE's shortest volume of valid has 152 mm."""
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class Tables(NamedTuple):
    """The tables of one official split, every cell as text, and what lies in its trees."""

    reports: pd.DataFrame
    metadata: pd.DataFrame
    labels: pd.DataFrame
    files: frozenset[str]
    """Names of volumes, without ending."""
    patients: frozenset[str]
    """Names of the folders, which are there for whoever was downloaded."""


def read_tables(root: Path, split: str) -> Tables | None:
    """The tables of an official split below CT-RATE's folder, as far as they are there; None without any.

    Raises:
        ValueError: a table cannot be read.
    """
    root = root / "dataset" if (root / "dataset").is_dir() else root
    paths = {name: root / pattern.format(long=LONG[split], short=split) for name, pattern in TABLES.items()}
    if not any(path.is_file() for path in paths.values()):
        return None
    files = (path.name for tree in (split, f"{split}_fixed") for path in (root / tree).glob("*/*/*.nii.gz"))
    folders = frozenset(path.name for tree in (split, f"{split}_fixed") for path in (root / tree).glob("*"))
    return Tables(**{name: _read(path) for name, path in paths.items()}, files=frozenset(map(_stem, files)), patients=folders)


def _read(path: Path) -> pd.DataFrame:
    """The cells by volume name, in the order of the file; empty without the file."""
    if not path.is_file():
        return pd.DataFrame(columns=["VolumeName"]).set_index("VolumeName")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return table.set_index(table["VolumeName"].map(_stem).rename("VolumeName")).drop(columns="VolumeName")
    except (ValueError, KeyError) as error:  # a message of pandas may hold a cell
        raise ValueError(f"{path} cannot be read as a CSV table of volumes ({type(error).__name__}); download it again") from None


def _stem(name: str) -> str:
    return name.strip().removesuffix(".nii.gz")


def check_tables(tables: Tables, split: str) -> list[Finding]:
    """All checks of one split's tables."""
    return [*check_rows(tables, split), *check_given(tables), *check_spelling(tables), *check_geometry(tables)]


def check_rows(tables: Tables, split: str) -> list[Finding]:
    """Rows without file, files without row, labels of nobody, and several rows of one volume."""
    named = {name: frozenset(getattr(tables, name).index) for name in TABLES}
    told = named["reports"] | named["metadata"]
    absent = sorted(name for name in told - tables.files if name.rsplit("_", 2)[0] not in tables.patients)
    twice = {name for table in named for name in getattr(tables, table).index[getattr(tables, table).index.duplicated()]}
    checks = (
        ("two_rows", twice, "with several rows in one table", "the first row counts; see which is right"),
        ("orphan_label", named["labels"] - told - tables.files, "with labels only, no report, metadata or file", "nothing"),
        ("file_without_row", tables.files - named["reports"], "whose file is there, but no report", "download the table again"),
        (
            "no_metadata_row",
            (told | tables.files) - named["metadata"] if len(tables.metadata) else set(),
            "without a row of metadata",
            "nothing for files with true headers; those of the first release need it",
        ),
        ("no_label_row", told - named["labels"] if len(tables.labels) else set(), "without a row of labels", "see no_labels"),
    )
    findings = [_finding(code, "warning", names, what, action) for code, names, what, action in checks if names]
    if absent:
        what = f"of {split} listed, whose patient has no folder: not downloaded"
        findings.append(_finding("not_downloaded", "fact", absent, what, "go on with the download, if they are wanted"))
    return findings


def _finding(code: str, severity: Severity, names: Iterable[str], what: str, action: str) -> Finding:
    volumes = tuple(f"ct_rate/{name}" for name in sorted(names))
    found = f"{number(len(volumes), 'volume')} {what} ({examples(volumes)})"
    return Finding(code=code, severity=severity, found=found, expected="none", action=action, volumes=volumes)


def check_given(tables: Tables) -> list[Finding]:
    """Positions, ages and reports that are missing or unusual."""
    metadata, reports, findings = tables.metadata, tables.reports, []
    if "PatientPosition" in metadata:
        position = metadata["PatientPosition"].str.strip()
        odd = metadata.index[(position != "HFS") & (position != "")]
        action = "look at their pictures: the head should be on top"
        findings += [_finding("ffs_row", "warning", odd, "not scanned head first and supine", action)] if len(odd) else []
    if "PatientAge" in metadata:
        blank = metadata.index[metadata["PatientAge"].str.strip() == ""]
        findings += (
            [_finding("blank_age", "fact", blank, "without an age", "nothing, unless ages are used")] if len(blank) else []
        )
    sections = [column for column in ("Findings_EN", "Impressions_EN") if column in reports]
    if sections:
        empty = (reports[sections].apply(lambda cells: cells.str.strip()) == "").all(axis=1)
        without = reports[sections].map(lambda cell: clean_section(cell) is None).all(axis=1)
        action = "nothing: the preparation leaves them out"
        for code, names, what in (
            ("empty_report", reports.index[empty], "with empty cells for a report"),
            ("not_given", reports.index[without & ~empty], "whose report is said to be not given"),
        ):
            findings += [_finding(code, "warning", names, what, action)] if len(names) else []
    return findings


def check_spelling(tables: Tables) -> list[Finding]:
    """Lists of numbers in the metadata that are written in another way than most; all are understood here."""
    findings, metadata = [], tables.metadata
    for code, column, form in (
        ("iop_spelling", "ImageOrientationPatient", lambda cell: cell),
        ("xyspacing_spelling", "XYSpacing", lambda cell: re.sub(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", "#", cell)),
    ):
        if column not in metadata or not len(metadata):
            continue
        cells = metadata[column].str.strip()
        if code == "iop_spelling":
            axial = cells.map({cell: _orientation(cell) == AXIAL for cell in cells.unique()}).astype(bool)
            cells = cells[axial & (cells != "")]
        forms = cells[cells != ""].map(form)
        usual = Counter(forms).most_common(1)[0][0] if len(forms) else ""
        names = forms.index[forms != usual]
        if len(names):
            what = f"whose {column} is written in another way than most"
            findings.append(_finding(code, "fact", names, what, "nothing here; programs that cut the text by place go wrong"))
    return findings


def _orientation(cell: str) -> tuple[float, ...]:
    return table_geometry({"ImageOrientationPatient": cell}).orientation


def geometries(metadata: pd.DataFrame) -> dict[str, TableGeometry]:
    """Volume name -> what the table says of its grid; the first row of a name counts."""
    columns = [column for column in metadata.columns if column != "VolumeName"]
    rows: Mapping[str, dict[str, str]] = metadata[~metadata.index.duplicated()][columns].to_dict("index")
    return {name: table_geometry(cells) for name, cells in rows.items()}


def check_geometry(tables: Tables) -> list[Finding]:
    """Spacings that are missing or extreme, lengths that no chest has, oblique scans."""
    found: dict[str, list[str]] = {"nan_spacing": [], "spacing_outlier": [], "length_outlier": [], "oblique": []}
    for name, grid in geometries(tables.metadata).items():
        if not np.isfinite(grid.spacing_zyx_mm).all():
            found["nan_spacing"].append(name)
            continue
        if not all(SPACING_MM[0] <= size <= SPACING_MM[1] for size in grid.spacing_zyx_mm):
            found["spacing_outlier"].append(name)
        length = grid.shape_zyx[0] * grid.spacing_zyx_mm[0]
        if np.isfinite(length) and not SHORTEST_MM <= length <= MAX_LENGTH_MM:
            found["length_outlier"].append(name)
        if np.abs(np.abs(grid.orientation) - AXIAL).max() > 0.01:
            found["oblique"].append(name)
    told = {
        "nan_spacing": ("whose metadata have no spacing", "nothing: the preparation leaves them out"),
        "spacing_outlier": (f"with a spacing beyond {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm", "compare with their headers"),
        "length_outlier": (f"shorter than {SHORTEST_MM:g} or longer than {MAX_LENGTH_MM:g} mm", "look at their pictures"),
        "oblique": ("with slices that are not axial", "resample them to axial slices: more than 5 degrees are refused"),
    }
    return [_finding(code, "warning", names, *told[code]) for code, names in found.items() if names]


def vendors(tables: Tables) -> dict[str, str]:
    """Volume name -> first word of its manufacturer."""
    if "Manufacturer" not in tables.metadata:
        return {}
    words = tables.metadata["Manufacturer"].str.split().str[0].fillna("")
    return dict(zip(tables.metadata.index, words))
