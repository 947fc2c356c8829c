"""Join the reports of a spreadsheet to studies by accession number, StudyInstanceUID or PatientID."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mg3d.preparation.sources.tables import match_columns, read_table

KEYS: dict[str, tuple[str, ...]] = {
    "accession": ("accessionnumber", "accessionno", "accessionnr", "acc", "accno"),
    "study_uid": ("studyinstanceuid", "studyuid", "study"),
    "patient_id": ("patientid", "patient", "mrn", "pid", "patientnumber", "patientno"),
}
"""Key -> other names of its column in a spreadsheet."""
SECTIONS: dict[str, tuple[str, ...]] = {
    "findings": ("finding", "findings_en"),
    "impression": ("impressions", "impressions_en", "conclusion"),
}
"""Columns of these names stay separate; the text of all others is the column `report`."""
_ADVICE = "name the columns with --key KEY=COLUMN and --text COLUMN"
_ADDENDUM = re.compile(r"\W*(addendum|addenda|nachtrag|erg[aä]nzung)", re.IGNORECASE)


class Report(NamedTuple):
    """The texts of one row. The repr contains none of them."""

    row: int
    texts: dict[str, str]
    """Column of the table -> text."""

    def __repr__(self) -> str:
        return f"Report(row={self.row})"


class Unmatched(NamedTuple):
    """A row of the spreadsheet, or a study, that has no partner."""

    what: str
    """row or study."""
    name: str
    """Row number, or StudyInstanceUID."""
    reason: str


class ReportTable(NamedTuple):
    """The reports of a spreadsheet."""

    by_key: dict[str, list[Report]]
    """In row order."""
    unusable: list[Unmatched]
    """Rows without key or text."""
    notes: list[str]


class JoinResult(NamedTuple):
    """What was joined."""

    notes: list[str]
    unmatched: list[Unmatched]


def read_reports(path: Path, key: str, text_columns: Sequence[str]) -> ReportTable:
    """Read a spreadsheet.

    key: a key of `KEYS`, or KEY=COLUMN.

    Raises:
        FileNotFoundError, ValueError: the table or a column does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the table of reports {path} does not exist")
    name, _, column = key.partition("=")
    if name not in KEYS:
        raise ValueError(f"--key {key}: expected one of {', '.join(KEYS)}, or for example accession=COLUMN")
    columns = {column: ()} if column else {name: KEYS[name]}
    key_column = next(iter(columns))
    required = [key_column, *text_columns]
    table, notes = read_table(path, columns | dict.fromkeys(text_columns, ()), required=required, advice=_ADVICE)
    sections = match_columns(text_columns, SECTIONS) if len(text_columns) > 1 else {}
    target = {text_columns[position]: section for section, position in sections.items()}
    reports, unusable = defaultdict(list), []
    for row, cells in table.to_dict("index").items():
        texts: dict[str, str] = {}
        for text_column in text_columns:
            where = target.get(text_column, "report")
            texts[where] = "\n".join(filter(None, (texts.get(where), cells[text_column])))
        if not cells[key_column] or not any(texts.values()):
            unusable.append(Unmatched("row", str(row), f"no {key_column}" if not cells[key_column] else "no text"))
            continue
        reports[cells[key_column]].append(Report(row, texts))
    return ReportTable(dict(reports), unusable, notes)


def join_reports(
    rows: Sequence[dict[str, Any]],
    reports: ReportTable,
    key: str,
    make_patient: Callable[[str], str],
) -> JoinResult:
    """Add the texts to the rows of the studies that a key names.

    make_patient: PatientID -> pseudonym.

    A second row of one key is an addendum and follows the report; a PatientID names a report only if the patient has one study
    and one report with its addenda.
    """
    name = key.partition("=")[0]
    studies: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        studies[row["patient"], row["study"]].append(row)
    of_key, names = defaultdict(set), {"accession": "accession", "study_uid": "study", "patient_id": "patient"}
    for study, members in studies.items():
        for member in members:
            of_key[member[names[name]]].add(study)
    of_key.pop("", None)
    alike = _by_short(of_key)
    unmatched, n_addenda, n_joined, n_rows = [*reports.unusable], 0, 0, 0
    taken: set[tuple[str, str]] = set()
    for value, found in sorted(reports.by_key.items(), key=lambda item: item[0] not in of_key):  # keys without leading zeros last
        wanted = make_patient(value) if name == "patient_id" else value
        same = alike[_short(wanted)]
        targets = of_key.get(wanted) or (of_key[same[0]] if len(same) == 1 else set())
        is_unclear = len(same) > 1 and wanted == _short(wanted)  # Excel writes 007 and 7 as 7
        reason = "several keys differ from this one in leading zeros only" if is_unclear else _reason(name, found, targets, taken)
        if reason:
            unmatched += [Unmatched("row", str(report.row), reason) for report in found]
            continue
        texts, added = merge_texts(found)
        n_addenda, n_joined, n_rows = n_addenda + added, n_joined + len(targets), n_rows + len(found)
        taken |= targets
        for study in targets:
            for member in studies[study]:
                member |= texts
    wanted_studies = {study for study, members in studies.items() if any(member["use"] for member in members)}
    missing = sorted(wanted_studies - taken)
    unmatched += [Unmatched("study", study, "no report") for _, study in missing]
    n_lost = sum(entry.what == "row" for entry in unmatched)
    notes = [
        *reports.notes,
        f"reports: {n_rows:,} of {n_rows + n_lost:,} rows joined to {n_joined:,} studies ({n_addenda:,} addenda); "
        f"{n_lost:,} rows, and {len(missing):,} of {len(wanted_studies):,} studies with a used series, have no partner"
    ]
    return JoinResult(notes, unmatched)


def merge_texts(reports: Sequence[Report]) -> tuple[dict[str, str], int]:
    """The texts of one study, addenda last, and the number of added rows. A text that another one contains counts once."""
    merged: dict[str, list[str]] = defaultdict(list)
    ordered = sorted(reports, key=lambda report: any(_ADDENDUM.match(text) for text in report.texts.values()))
    for report in ordered:
        for section, text in report.texts.items():
            if not any(text in before for before in merged[section]):
                merged[section] = [before for before in merged[section] if before not in text] + [text]
    n_texts = max((len(texts) for texts in merged.values()), default=0)
    return {section: "\n\n".join(texts) for section, texts in merged.items()}, max(n_texts - 1, 0)


def _reason(name: str, found: Sequence[Report], targets: set[tuple[str, str]], taken: set[tuple[str, str]]) -> str:
    """Why reports of one key cannot be joined; empty if they can."""
    if not targets:
        return "no study has this key"
    if len({patient for patient, _ in targets}) > 1:
        return "studies of several patients have this key"
    if name == "patient_id" and len(targets) > 1:
        return "the patient has several studies: use --key accession or study_uid"
    is_first = [report for report in found if not any(_ADDENDUM.match(text) for text in report.texts.values())]
    if name == "patient_id" and len({tuple(report.texts.values()) for report in is_first}) > 1:
        return "the patient has several reports: use --key accession or study_uid"
    return "another key named the same study" if targets & taken else ""


def _short(value: str) -> str:
    """A number without leading zeros, which spreadsheets drop; another key in lower case."""
    return value.strip().lower().lstrip("0") if value.strip().isdigit() else value.strip().lower()


def _by_short(keys: Mapping[str, Any]) -> dict[str, list[str]]:
    alike = defaultdict(list)
    for key in keys:
        alike[_short(key)].append(key)
    return alike
