"""The list of checks. To add one: a row of `CHECKS`, or a function in `dataset_checks.py` if it is not about single volumes."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from mg3d.doctor.data import CtRateTables, DoctorData
from mg3d.doctor.published import PUBLISHED_PREVALENCE
from mg3d.doctor.results import CheckResult, Severity, examples, pluralize
from mg3d.doctor.statistics import VolumeStatistics
from mg3d.preparation.chest import MIN_CHEST_AIR
from mg3d.preparation.geometry import MAX_LENGTH_MM, SPACING_MM
from mg3d.preparation.records import TableGeometry

ENCODING_DAMAGE = "\ufffd|&(?:[a-z]{2,6}|#\\d{1,5});|\u00c3[\u0080-\u00bf]|\u00e2\u20ac|\u00c2[\u00a0-\u00bf]"
"""Replacement characters, HTML entities, and UTF-8 that was read as Latin-1."""
PLACEHOLDERS = {"not given", "n/a", "na", "nan", "none", "null", "test", "xxx", "...", "-", "see above", "report"}
MIN_WORDS, MAX_WORDS = 5, 1500
MIN_LENGTH_MM = 100.0
"""The shortest volume of CT-RATE's valid split has 152 mm."""
MAX_LOW_HU, MIN_HIGH_HU = -700.0, -500.0
"""A 1st percentile above, or a 95th percentile below, is not a chest in HU."""
COMMON = 0.05
"""From this fraction of the volumes on, a fault is systematic and becomes an error."""
_AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class Check(NamedTuple):
    """A check of single volumes."""

    code: str
    severity: Severity
    find: Callable[[DoctorData], Iterable[str]]
    """Ids of the affected volumes."""
    message: str
    """Follows the number of volumes."""
    expected: str
    action: str
    error_above: float = 1.0
    """The severity becomes error above this fraction of the volumes whose voxels were read."""


def run_checks(data: DoctorData) -> list[CheckResult]:
    """The results of all `CHECKS` that found something."""
    results = []
    for check in CHECKS:
        if volumes := tuple(sorted(check.find(data))):
            is_common = len(volumes) > check.error_above * max(len(data.statistics), 1)
            results.append(
                CheckResult(
                    code=check.code,
                    severity="error" if is_common else check.severity,
                    message=f"{pluralize(len(volumes), 'volume')} {check.message} ({examples(volumes)})",
                    expected=check.expected,
                    action=check.action,
                    volumes=volumes,
                )
            )
    return results


def _in_tables(find: Callable[[CtRateTables], Iterable[str]]) -> Callable[[DoctorData], list[str]]:
    """Names of volumes in CT-RATE's tables."""
    return lambda data: [f"ct_rate/{name}" for tables in data.ct_rate for name in find(tables)]


def _in_grids(is_faulty: Callable[[TableGeometry], bool]) -> Callable[[DoctorData], list[str]]:
    """Volumes by their geometry in CT-RATE's metadata."""
    return _in_tables(lambda tables: [name for name, grid in tables.grids.items() if is_faulty(grid)])


def _in_reports(is_faulty: Callable[[pd.DataFrame], pd.Series]) -> Callable[[DoctorData], tuple[str, ...]]:
    """Volumes by their row, among those with a report."""

    def find(data: DoctorData) -> tuple[str, ...]:
        rows = data.catalog.rows[data.catalog.rows["report"] != ""]
        return data.catalog.ids(rows.index[is_faulty(rows).astype(bool)])

    return find


def _in_voxels(is_faulty: Callable[[VolumeStatistics], bool]) -> Callable[[DoctorData], tuple[str, ...]]:
    """Volumes by their HU statistics."""

    def find(data: DoctorData) -> tuple[str, ...]:
        items = data.statistics.items()
        return data.catalog.ids(
            [row for row, item in items if item.intensity_unit == "hu" and not item.refused and is_faulty(item)]
        )

    return find


def _repeated_rows(tables: CtRateTables) -> set[str]:
    return {name for table in tables.tables.values() for name in table.index[table.index.duplicated()]}


def _not_downloaded(tables: CtRateTables) -> list[str]:
    return [name for name in tables.listed - tables.files if name.rsplit("_", 2)[0] not in tables.patients]


def _without_metadata(tables: CtRateTables) -> frozenset[str]:
    names = tables.names["metadata"]
    return (tables.listed | tables.files) - names if names else frozenset()


def _unusual_position(tables: CtRateTables) -> list[str]:
    metadata = tables.tables["metadata"]
    return [] if "PatientPosition" not in metadata else list(metadata.index[~metadata["PatientPosition"].isin({"HFS", ""})])


def _has_unusual_length(grid: TableGeometry) -> bool:
    length = grid.shape_zyx[0] * grid.spacing_zyx_mm[0]
    return bool(np.isfinite(length)) and not MIN_LENGTH_MM <= length <= MAX_LENGTH_MM


def _differing(data: DoctorData, values: pd.Series) -> tuple[str, ...]:
    """Volumes of studies whose volumes have different values."""
    return data.catalog.ids(values.groupby(data.catalog.rows["study_id"]).transform("nunique") > 1)


def _differing_labels(data: DoctorData) -> tuple[str, ...]:
    labels = [row.tobytes() for row in data.catalog.labels]
    return _differing(data, pd.Series(labels, index=data.catalog.rows.index, dtype=object))


def _without_labels(data: DoctorData) -> tuple[str, ...]:
    is_unknown = (data.catalog.labels < 0).all(axis=1)
    return data.catalog.ids(is_unknown & data.catalog.rows["dataset"].isin(PUBLISHED_PREVALENCE).to_numpy())


_DOWNLOAD = "download the table again"
_LOOK = "look at them with tools/visualize_datasets.py"
_READ = "read some of them"
CHECKS = (
    # CT-RATE's tables
    Check("repeated_row", "warning", _in_tables(_repeated_rows), "have several rows in one table", "one row per volume",
          "the first row is used; check which one is right"),
    Check("orphan_label", "warning", _in_tables(lambda t: t.names["labels"] - t.listed - t.files),
          "have labels, but no report, metadata or file", "none", _DOWNLOAD),
    Check("file_without_row", "warning", _in_tables(lambda t: t.files - t.names["reports"]), "have a file, but no report", "none",
          _DOWNLOAD),
    Check("no_metadata_row", "warning", _in_tables(_without_metadata), "have no row in the metadata", "none",
          f"{_DOWNLOAD}; volumes of the first release cannot be read without it"),
    Check("no_label_row", "warning", _in_tables(lambda t: t.listed - t.names["labels"] if t.names["labels"] else ()),
          "have no row in the labels", "none", _DOWNLOAD),
    Check("not_downloaded", "info", _in_tables(_not_downloaded), "are listed, but their patient has no folder", "",
          "continue the download if you need them"),
    Check("patient_position", "warning", _in_tables(_unusual_position), "were not scanned head first and supine", "HFS",
          f"{_LOOK}: the head should be at the top"),
    Check("spacing_outlier", "warning",
          _in_grids(lambda grid: any(size < SPACING_MM[0] or size > SPACING_MM[1] for size in grid.spacing_zyx_mm)),
          "have an implausible spacing in the metadata", f"{SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm",
          "compare with the headers of the files"),
    Check("length_outlier", "warning", _in_grids(_has_unusual_length), "have an implausible length",
          f"{MIN_LENGTH_MM:g} to {MAX_LENGTH_MM:g} mm", _LOOK),
    Check("oblique", "warning", _in_grids(lambda grid: np.abs(np.abs(grid.orientation) - _AXIAL).max() > 0.01),
          "have slices that are not axial", "axial slices", "the preparation quarantines rotations of more than 5 degrees"),
    # Reports and labels
    Check("encoding_damage", "warning", _in_reports(lambda rows: rows["report"].str.contains(re.compile(ENCODING_DAMAGE))),
          "have damaged characters in the report", "none", f"{_DOWNLOAD}, as UTF-8"),
    Check("placeholder_report", "warning",
          _in_reports(lambda rows: rows["report"].str.lower().str.strip(" .\n").isin(PLACEHOLDERS)),
          "have a placeholder as report", "none", "remove them from the tables"),
    Check("short_report", "warning", _in_reports(lambda rows: rows["report"].str.split().str.len() < MIN_WORDS),
          f"have a report of less than {MIN_WORDS} words", "none", _READ),
    Check("long_report", "warning", _in_reports(lambda rows: rows["report"].str.split().str.len() > MAX_WORDS),
          f"have a report of more than {MAX_WORDS:,} words", "none", _READ),
    Check("no_report", "info", lambda data: data.catalog.ids(data.catalog.rows["report"] == ""),
          "have no report; they are used as images only", "", ""),
    Check("report_differs", "warning", lambda data: _differing(data, data.catalog.rows["report_key"]),
          "have a different report than other reconstructions of their study", "one report per study",
          "check which row is right; pre-training uses that of the first volume"),
    Check("label_differs", "warning", _differing_labels, "have different labels than other reconstructions of their study",
          "equal labels within a study", "check which row is right; pre-training uses those of the first volume"),
    Check("no_labels", "warning", _without_labels, "have no labels", "18 labels per volume",
          "download the table of labels again; evaluation needs it, pre-training does not"),
    # Voxels
    Check("not_rescaled", "warning", _in_voxels(lambda item: item.low > MAX_LOW_HU), "contain no air",
          "air near -1000 HU and tissue near 40 HU", f"{_LOOK}; if the intercept is wrong, prepare them again", COMMON),
    Check("double_rescaled", "warning", _in_voxels(lambda item: item.high < MIN_HIGH_HU), "contain only air",
          "air near -1000 HU and tissue near 40 HU", f"{_LOOK}; if the intercept is wrong, prepare them again", COMMON),
    Check("not_a_chest", "warning",
          _in_voxels(lambda item: item.high >= MIN_HIGH_HU and item.inside_air < MIN_CHEST_AIR),
          f"have less than {MIN_CHEST_AIR:.0%} air inside the body", "lungs in every volume",
          f"{_LOOK}; add heads and abdomens to the list of volumes without a chest", COMMON),
)  # fmt: skip
