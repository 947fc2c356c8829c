"""Checks of whole data sets: counts, splits, evaluation lists, label prevalence, duplicates, and quarantined volumes."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from mg3d.datasets.integrity import LEAK_CHECKS, check_arrow_files, find_leaks
from mg3d.datasets.schema import DATASETS
from mg3d.doctor.catalog import VolumeCatalog, index_files
from mg3d.doctor.data import DoctorData, bare_id
from mg3d.doctor.duplicates import identical_pairs, similar_pairs
from mg3d.doctor.published import PUBLISHED_COUNTS, PUBLISHED_PREVALENCE, ROUNDING, SplitCounts
from mg3d.doctor.results import CheckResult, examples, pluralize
from mg3d.glossary import LABELS
from mg3d.polarity import NEGATED, span_polarities
from mg3d.preparation.quarantine import REASONS
from mg3d.preparation.sources.ct_rate import NAME
from mg3d.sentence_spans import split_clauses

MAX_STANDARD_ERRORS = 3.5
"""From the published prevalence; by chance, one of the 18 labels deviates that much in about 1 % of correct data sets."""
MIN_STUDIES = 50
MAX_CONTRADICTIONS = 0.01
"""Of the negated findings; above, contradicting labels are more than single errors."""
_AGAIN = "download them again; the preparation skips them"
_COMPARE = "compare the file with its row of the metadata; the preparation skips them"
REASON_ACTIONS = {
    "no_chest": "nothing: they are excluded",
    **dict.fromkeys(("missing_file", "missing_slices", "gzip_truncated", "jpeg_truncated", "nifti_header", "not_3d",
                     "constant_image"), _AGAIN),
    **dict.fromkeys(("nan_spacing", "shape_mismatch", "spacing_out_of_range", "hu_ambiguous"), _COMPARE),
}  # fmt: skip


class Prevalence(NamedTuple):
    """Prevalence of a label among the studies of an official split."""

    dataset: str
    split: str
    label: str
    studies: int
    """With a known label."""
    fraction: float
    published: float | None

    @property
    def tolerance(self) -> float:
        """Largest deviation from the published value that is explained by chance and rounding."""
        return ROUNDING + MAX_STANDARD_ERRORS * math.sqrt(self.published * (1 - self.published) / self.studies)


def check_quarantine(data: DoctorData) -> list[CheckResult]:
    """One result per reason code: volumes that were quarantined, or could not be read now."""
    volumes: dict[tuple[str, bool], set[str]] = defaultdict(set)
    table_rows: dict[str, int] = {}
    for entry in data.catalog.quarantined:
        volumes[entry.code, False].add(entry.volume_id)
        table_rows[entry.volume_id] = entry.row
    for row, item in data.statistics.items():
        if item.refused:
            table_rows[data.catalog.rows["volume_id"][row]] = data.catalog.table_row(row)
            volumes[item.refused, data.catalog.kind == "arrow"].add(data.catalog.rows["volume_id"][row])
    results = []
    for (code, is_stored), ids in sorted(volumes.items()):
        usual = REASON_ACTIONS.get(code, "nothing, if you can do without them; the preparation skips them")
        names = tuple(sorted(ids))
        shown = [f"row {table_rows[name]}: {name}" if table_rows.get(name) else name for name in names]
        results.append(
            CheckResult(
                code=code,
                severity="error" if is_stored else "info" if code == "no_chest" else "warning",
                message=f"{pluralize(len(ids), 'volume')} unusable: {REASONS.get(code, code)} ({examples(shown)})",
                expected="all listed volumes are usable",
                action="the shard is damaged: run the preparation again" if is_stored else usual,
                volumes=names,
            )
        )
    return results


def count_volumes(catalog: VolumeCatalog) -> list[dict[str, object]]:
    """Rows of a table: data set, official split, patients, studies, volumes, quarantined.

    Quarantined volumes are included where their id contains the split, as in CT-RATE, and in CTRG's total.
    """
    columns = ["dataset", "official_split", "patient_id", "study_id", "volume_id"]
    usable = catalog.rows[columns].assign(quarantined=0)
    ids = set(usable["volume_id"])
    refused = [_quarantined_row(entry.dataset, entry.volume_id) for entry in catalog.quarantined if entry.volume_id not in ids]
    rows = pd.concat([usable, pd.DataFrame(refused, columns=[*columns, "quarantined"])], ignore_index=True)
    table = []
    for dataset in catalog.datasets:
        mine = rows[rows["dataset"] == dataset]
        published = PUBLISHED_COUNTS.get(dataset, {})
        for split in dict.fromkeys([*published, *mine["official_split"].dropna()]):
            part = mine if split == "all" else mine[mine["official_split"] == split]
            table.append(
                {
                    "data set": DATASETS[dataset].title if dataset in DATASETS else dataset,
                    "dataset": dataset,
                    "official split": split if split != "none" else "no official split",
                    "patients": part["patient_id"].nunique(),
                    "studies": part["study_id"].nunique(),
                    "volumes": part["volume_id"].nunique(),
                    "quarantined": int(part["quarantined"].sum()),
                }
            )
    return table


def _quarantined_row(dataset: str, volume_id: str) -> tuple[str, str | None, str | None, str | None, str, int]:
    match = NAME.fullmatch(f"{bare_id(volume_id)}.nii.gz") if dataset == "ct_rate" else None
    if match:
        return dataset, match["split"], f"{dataset}/{match['patient']}", f"{dataset}/{match['study']}", volume_id, 1
    case = volume_id if dataset == "ctrg" else None
    return dataset, None, case, case, volume_id, 1


def check_counts(data: DoctorData) -> list[CheckResult]:
    """Counts of each official split, compared with the published ones unless the set is synthetic."""
    results = []
    for row in count_volumes(data.catalog):
        counts = SplitCounts(row["patients"], row["studies"], row["volumes"])
        published = None if data.catalog.is_synthetic else PUBLISHED_COUNTS.get(row["dataset"], {}).get(row["official split"])
        name, text = f"{row['data set']} {row['official split']}", _describe_counts(counts)
        values = {"found": list(counts), "published": published and list(published)}
        if published is None or counts == published:
            message = f"{name}: {text}" + (" (complete)" if published else "")
            results.append(CheckResult(code="counts", severity="info", message=message, values=values))
            continue
        is_larger = any(found > expected for found, expected in zip(counts, published))
        results.append(
            CheckResult(
                code="more_than_published" if is_larger else "partial",
                severity="warning",
                message=f"{name} has more than was published: {text}"
                if is_larger
                else f"{name} is {counts.volumes / published.volumes:.1%} complete: {text}",
                expected=_describe_counts(published),
                action="look for folders of another data set or copies" if is_larger else "continue the download if you need all",
                values=values,
            )
        )
    if data.catalog.is_synthetic:
        message = "a synthetic set: counts and prevalences are not compared with published ones"
        results.append(CheckResult(code="synthetic", severity="info", message=message))
    return results


def _describe_counts(counts: SplitCounts) -> str:
    nouns = (("patient", "patients"), ("study", "studies"), ("volume", "volumes"))
    return ", ".join(pluralize(count, *noun) for count, noun in zip(counts, nouns))


def check_splits(data: DoctorData) -> list[CheckResult]:
    """Leaks between splits, and for Arrow files all problems that training would refuse or warn about.

    Equal images are covered by `check_duplicates`.
    """
    catalog = data.catalog
    if catalog.kind == "raw":
        columns = {"volume_id": "volume_id", "patient_id": "patient_id", "study_id": "study_id", "report_sha256": "report_key",
                   "split": "split"}  # fmt: skip
        problems = find_leaks(
            pa.table({key: pa.array(catalog.rows[name].tolist(), pa.string()) for key, name in columns.items()})
        )
    elif not catalog.path.is_dir():
        return [CheckResult(code="single_index", severity="info", message="one index file: leaks between splits are not checked")]
    else:
        try:
            problems = check_arrow_files(catalog.path, dict.fromkeys(name for name, _ in index_files(catalog.path)))
        except (FileNotFoundError, ValueError) as error:
            return [unreadable(str(error))]
    return [
        CheckResult(
            code=problem.code,
            severity="error" if problem.is_error else "warning",
            message=problem.message,
            action=problem.fix,
            volumes=tuple(sorted(problem.volumes)),
        )
        for problem in problems
        if problem.code != LEAK_CHECKS["image_sha256"].code
    ]


def unreadable(reason: str) -> CheckResult:
    """The result for a data set that cannot be checked."""
    return CheckResult(code="cannot_read", severity="error", message=reason, action="fix this first; the rest cannot be checked")


def check_evaluation_lists(data: DoctorData) -> list[CheckResult]:
    """Volumes of train and val that an evaluation list names by volume, study or patient."""
    rows, results = data.catalog.rows, []
    bare = [rows[column].map(bare_id) for column in ("volume_id", "study_id", "patient_id")]
    for name, ids in data.evaluation_lists.items():
        is_listed = pd.concat([column.isin(ids) for column in bare], axis=1).any(axis=1)
        found = {value for column in bare for value in column[column.isin(ids)]}
        for split, severity in (("train", "error"), ("val", "warning")):
            if volumes := data.catalog.ids(is_listed & (rows["split"] == split)):
                results.append(
                    CheckResult(
                        code="in_evaluation_list",
                        severity=severity,
                        message=f"{pluralize(len(volumes), 'volume')} of {split} in the list {name} ({examples(volumes)})",
                        expected="no training on data that is evaluated on",
                        action="remove these patients from train, or do not evaluate on this list",
                        volumes=volumes,
                    )
                )
        message = f"the list {name} has {pluralize(len(ids), 'id')}, {len(found):,} of them are present"
        results.append(CheckResult(code="evaluation_list", severity="info", message=message))
    return results


def prevalences(catalog: VolumeCatalog) -> list[Prevalence]:
    """The prevalence of every known label per data set and official split; each study counts once."""
    first = ~catalog.rows["study_id"].duplicated().to_numpy()
    parts = []
    for (dataset, split), rows in catalog.rows[first].groupby(["dataset", "official_split"], sort=False):
        published = None if catalog.is_synthetic else PUBLISHED_PREVALENCE.get(dataset, {}).get(split)
        for column, label in enumerate(LABELS):
            values = catalog.labels[rows.index, column]
            known = values[values >= 0]
            if len(known):
                parts.append(Prevalence(dataset, split, label, len(known), float(known.mean()), published and published[column]))
    return parts


def check_prevalence(data: DoctorData) -> list[CheckResult]:
    """Labels whose prevalence differs from the published one by more than chance."""
    compared = [part for part in prevalences(data.catalog) if part.published is not None and part.studies >= MIN_STUDIES]
    wrong = [part for part in compared if abs(part.fraction - part.published) > part.tolerance]
    if not wrong:
        return []
    worst = max(wrong, key=lambda part: abs(part.fraction - part.published) / part.tolerance)
    return [
        CheckResult(
            code="prevalence_deviates",
            severity="warning",
            message=f"the prevalence of {len(wrong)} of {len(compared)} labels differs from the published one, most of all "
            f"{worst.label} in {worst.split}: {worst.fraction:.1%} of {worst.studies:,} studies",
            expected=f"{worst.published:.1%} +- {worst.tolerance:.1%} ({worst.label})",
            action="check that the table of labels is the published one; a selected subset may differ",
            values={f"{part.dataset} {part.split} {part.label}": [part.fraction, part.published] for part in wrong},
        )
    ]


def check_contradicted_labels(data: DoctorData) -> list[CheckResult]:
    """Positive labels of findings that the report negates in every clause that names them."""
    catalog, negated, wrong = data.catalog, 0, set()
    rows = catalog.rows
    for row in np.flatnonzero(~rows["study_id"].duplicated().to_numpy() & (catalog.labels >= 0).any(axis=1)):
        for label in negated_labels(rows["report"][row]):
            negated += 1
            if catalog.labels[row, label] == 1:
                wrong.add(rows["study_id"][row])
    if not wrong:
        return []
    volumes = catalog.ids(rows["study_id"].isin(wrong))
    return [
        CheckResult(
            code="label_contradicts_report",
            severity="warning" if len(wrong) > MAX_CONTRADICTIONS * negated else "info",
            message=f"{pluralize(len(wrong), 'study', 'studies')} with a positive label that the report negates, of {negated:,} "
            f"negated findings ({examples(volumes)})",
            expected=f"at most {MAX_CONTRADICTIONS:.0%} of the negated findings",
            action="read some of them; labels that contradict reports affect evaluation, not pre-training",
            volumes=volumes,
            values={"studies": len(wrong), "negated": negated},
        )
    ]


def negated_labels(report: str) -> Iterator[int]:
    """Indices in LABELS of findings that a report names by the label itself and negates in each such clause."""
    lower = report.lower()
    named = [index for index, label in enumerate(LABELS) if label.lower() in lower]
    spans = split_clauses(report) if named else []
    clauses = [(lower[start:end], value) for (start, end), value in zip(spans, span_polarities(report, spans))]
    for index in named:
        if {value for clause, value in clauses if LABELS[index].lower() in clause} == {NEGATED}:
            yield index


def check_duplicates(data: DoctorData) -> list[CheckResult]:
    """Volumes of different studies with (nearly) the same voxels."""
    keys = data.catalog.rows["image_sha256"]
    if data.catalog.kind == "raw":
        keys = keys.index.to_series().map({row: item.sha256 for row, item in data.statistics.items()}).fillna("")
    return duplicate_results(data.catalog, sorted(similar_pairs(data.statistics) | identical_pairs(keys)))


def duplicate_results(catalog: VolumeCatalog, pairs: Iterable[tuple[int, int]]) -> list[CheckResult]:
    """Results for pairs of rows with the same voxels, by patient; reconstructions of a study are not duplicates."""
    groups: dict[str, list[tuple[int, int]]] = defaultdict(list)
    rows = catalog.rows
    for pair in pairs:
        first, second = (rows.loc[row] for row in pair)
        if first["study_id"] != second["study_id"]:
            is_same_patient = first["patient_id"] == second["patient_id"]
            groups["same_patient_duplicate" if is_same_patient else "duplicate_pixels"].append(pair)
    texts = {
        "same_patient_duplicate": "of studies of one patient with nearly the same voxels",
        "duplicate_pixels": "of volumes of different patients with nearly the same voxels",
    }
    results = []
    for code, found in groups.items():
        volumes = catalog.ids(list({row for pair in found for row in pair}))
        n_across = sum(rows["split"][first] != rows["split"][second] for first, second in found)
        results.append(
            CheckResult(
                code=code,
                severity="error" if n_across else "warning",
                message=f"{pluralize(len(found), 'pair')} {texts[code]}, {n_across:,} across splits ({examples(volumes)})",
                expected="different voxels for every study",
                action="nothing, if intended" if code == "same_patient_duplicate" else "remove one volume of each pair",
                volumes=volumes,
                values={"pairs": [list(rows.loc[list(pair), "volume_id"]) for pair in found[:1000]]},
            )
        )
    return results


DATASET_CHECKS = (
    check_quarantine, check_splits, check_counts, check_evaluation_lists, check_duplicates, check_prevalence,
    check_contradicted_labels,
)  # fmt: skip
