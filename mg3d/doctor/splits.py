"""Checks of what lies where: counts against the published ones, and what splits and evaluation lists share."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from mg3d.datasets.integrity import LEAK_CHECKS, check_arrow_files, find_leaks
from mg3d.datasets.schema import DATASETS
from mg3d.doctor.catalogue import Catalogue, index_files
from mg3d.doctor.findings import Finding, examples, number
from mg3d.doctor.published import COUNTS, Counts

UNTOLD = "not told"
"""In the place of an official split, of volumes that are left out and whose ids do not tell it."""


def counts(catalogue: Catalogue) -> list[dict[str, object]]:
    """Rows of a table: data set, official split, patients, studies, volumes, left out, published volumes.

    What is left out is counted where its id tells its split, as CT-RATE's do, else in a row of its own, `UNTOLD`, so that the
    splits' volumes add up to those of `all`. A case of CTRG is a patient and a study; of an own volume that is left out neither
    is known.
    """
    table, rows = [], catalogue.rows
    for dataset in catalogue.datasets:
        mine = rows[rows["dataset"] == dataset]
        refused = [entry.volume_id for entry in catalogue.refused if entry.dataset == dataset]
        splits = list(dict.fromkeys([*COUNTS.get(dataset, {}), *mine["official_split"]]))
        told = {name: split for name in refused for split in splits if name.startswith(f"{dataset}/{split}_")}
        for split in [*splits, *([UNTOLD] if told.keys() < set(refused) else [])]:
            part = mine if split == "all" else mine[mine["official_split"] == split]
            lost = [name for name in refused if split in {"all", told.get(name, UNTOLD)}]
            table.append(
                {
                    "data set": DATASETS[dataset].title if dataset in DATASETS else dataset,
                    "dataset": dataset,
                    "official split": split,
                    "patients": len({*part["patient_id"], *_owners(lost, dataset, 2)}),
                    "studies": len({*part["study_id"], *_owners(lost, dataset, 1)}),
                    "volumes": len({*part["volume_id"], *lost}),
                    "left out": len(lost),
                }
            )
    return table


def _owners(lost: Sequence[str], dataset: str, levels: int) -> list[str]:
    """Studies (levels 1) or patients (2) of volumes that are left out, where their ids tell them."""
    if dataset == "ctrg":
        return list(lost)
    return [name.rsplit("_", levels)[0] for name in lost if dataset == "ct_rate"]


def check_counts(catalogue: Catalogue) -> list[Finding]:
    """Each data set's counts against the published ones; a synthetic set is only told to be one."""
    table = counts(catalogue)
    own = [row for row in table if catalogue.synthetic or row["dataset"] not in COUNTS]
    findings = [_told(row) for row in own if row["official split"] not in {"all", UNTOLD}]
    if catalogue.synthetic:
        told = "a synthetic set: nothing is compared with published counts and shares"
        return [*findings, Finding(code="synthetic", severity="fact", found=told)]
    for row in table:
        published = COUNTS.get(row["dataset"], {}).get(row["official split"])
        if published:
            findings.append(_compare(row, published))
    return findings


def _told(row: Mapping[str, object]) -> Finding:
    here = Counts(row["patients"], row["studies"], row["volumes"])
    return Finding(
        code="counts", severity="fact", found=f"{row['data set']} {row['official split']}: {_spell(here)}", values=dict(row)
    )


def _compare(row: Mapping[str, object], published: Counts) -> Finding:
    here = Counts(row["patients"], row["studies"], row["volumes"])
    where, told = f"{row['data set']} {row['official split']}", _spell(published)
    values = {"found": list(here), "published": list(published)}
    if here == published:
        return Finding(code="counts", severity="fact", found=f"{where} is complete: {told}", values=values)
    if any(mine > theirs for mine, theirs in zip(here, published)):
        return Finding(
            code="too_many",
            severity="warning",
            found=f"{where} holds more than was published: {_spell(here)}",
            expected=told,
            action="look for folders of another data set or copies",
            values=values,
        )
    share = here.volumes / published.volumes
    return Finding(
        code="partial",
        severity="warning",
        found=f"{where} is {share:.1%} there: {_spell(here)}",
        expected=told,
        action="go on with the download, or with this part knowingly",
        values=values,
    )


def _spell(part: Counts) -> str:
    parts = (number(part.patients, "patient"), number(part.studies, "study", "studies"), number(part.volumes, "volume"))
    return ", ".join(parts)


def check_raw_leaks(catalogue: Catalogue) -> list[Finding]:
    """Patients and studies in two splits of what was scanned."""
    columns = ["volume_id", "patient_id", "study_id", "split"]
    table = pa.table({name: pa.array(catalogue.rows[name].tolist(), pa.string()) for name in columns})
    return [
        Finding(
            code=leak.code,
            severity="blocking",
            found=leak.message,
            expected="every patient and study in one split",
            action="take them out of all splits but one",
            volumes=tuple(sorted(set(leak.volumes))),
        )
        for leak in find_leaks(table)
        if leak.is_error
    ]


def check_index_files(folder: Path) -> list[Finding]:
    """The blocking checks that preparation and training make, but for pixels and reports, which other checks look at closer.

    Of one index file nothing can be said but that.
    """
    if not folder.is_dir():
        return [Finding(code="one_index", severity="fact", found="one index file: leaks between splits cannot be seen")]
    datasets = dict.fromkeys(name for name, _ in index_files(folder))
    try:
        problems = check_arrow_files(folder, datasets)
    except (FileNotFoundError, ValueError) as error:
        return [Finding(code="cannot_read", severity="blocking", found=str(error), action="prepare the data again")]
    return [
        Finding(
            code=problem.code,
            severity="blocking" if problem.is_error else "warning",
            found=problem.message,
            action=problem.fix,
            volumes=problem.volumes,
        )
        for problem in problems
        if problem.code not in {LEAK_CHECKS["image_sha256"].code, LEAK_CHECKS["report_sha256"].code}
    ]


def read_list(path: Path) -> set[str]:
    """The ids of an evaluation list: a volume, study or patient a line, as a bare id, a file name or a path; # begins a remark.

    Raises:
        ValueError: the file is empty or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text; one id a line is expected") from None
    names = {bare(line.split("#")[0]) for line in lines} - {""}
    if not names:
        raise ValueError(f"{path} holds no id; one volume, study or patient a line is expected")
    return names


def bare(name: str) -> str:
    """An id without folders, data set and file ending."""
    return re.sub(r"\.(?:nii(?:\.gz)?|npz)$", "", name.strip().strip(",;").replace("\\", "/").rsplit("/", 1)[-1])


def check_lists(catalogue: Catalogue, lists: Mapping[str, set[str]]) -> list[Finding]:
    """Volumes of train and val that an evaluation list names, by volume, study or patient."""
    findings, rows = [], catalogue.rows
    own = {column: rows[column].map(bare) for column in ("volume_id", "study_id", "patient_id")}
    for title, names in lists.items():
        listed = pd.concat([column.isin(names) for column in own.values()], axis=1).any(axis=1)
        known = {name for column in own.values() for name in column[column.isin(names)]}
        for split, severity in (("train", "blocking"), ("val", "warning")):
            found = tuple(rows["volume_id"][listed & (rows["split"] == split)])
            if found:
                findings.append(
                    Finding(
                        code="in_evaluation_list",
                        severity=severity,
                        found=f"{number(len(found), 'volume')} of {split} on the list {title} ({examples(found)})",
                        expected="nothing that is evaluated on is trained on",
                        action="take these patients out of train, or do not evaluate on this list",
                        volumes=found,
                    )
                )
        told = f"the list {title} names {number(len(names), 'id')}, {len(known):,} of them are here"
        findings.append(Finding(code="evaluation_set", severity="fact", found=told))
    return findings
