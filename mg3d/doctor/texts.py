"""Checks of reports: missing parts, damage, length, sentences and how many of them recur between patients."""

import re
from collections import Counter, defaultdict

import numpy as np
import pandas as pd

from mg3d.doctor.catalogue import Catalogue
from mg3d.doctor.findings import Finding, examples, number
from mg3d.sentence_spans import normalise, split_sentences

DAMAGE = re.compile("\ufffd|&(?:[a-z]{2,6}|#\\d{1,5});|\u00c3[\u0080-\u00bf]|\u00e2\u20ac|\u00c2[\u00a0-\u00bf]")
"""Replacement characters, HTML entities, and UTF-8 that was read as Latin-1."""
PLACEHOLDERS = {"not given", "n/a", "na", "nan", "none", "null", "test", "xxx", "...", "-", "see above", "report"}
FEWEST_WORDS, MOST_WORDS = 5, 1500
COMMON = 0.01
"""Share of reports from which on a sentence is a stock phrase."""


def check_reports(catalogue: Catalogue) -> list[Finding]:
    """Damaged, placeholder, very short or very long reports, and missing sections."""
    rows, findings = catalogue.rows[catalogue.rows["report"] != ""], []
    words = rows["report"].str.split().str.len().fillna(0)
    plain = rows["report"].str.lower().str.strip(" .\n")
    for code, wrong, what, action in (
        (
            "encoding_damage",
            rows["report"].str.contains(DAMAGE),
            "with damaged letters",
            "download the table again, as UTF-8",
        ),
        ("placeholder_report", plain.isin(PLACEHOLDERS), "that say nothing", "take these volumes out of the tables"),
        ("short_report", words < FEWEST_WORDS, f"of less than {FEWEST_WORDS} words", "read some of them"),
        ("long_report", words > MOST_WORDS, f"of more than {MOST_WORDS:,} words", "read some of them"),
    ):
        names = tuple(rows["volume_id"][wrong.astype(bool)])
        if names:
            found = f"reports {what}: {number(len(names), 'volume')} ({examples(names)})"
            findings.append(Finding(code=code, severity="warning", found=found, expected="none", action=action, volumes=names))
    if len(rows) < len(catalogue.rows):
        names = tuple(catalogue.rows["volume_id"][catalogue.rows["report"] == ""])
        found = f"{number(len(names), 'volume')} without a report, for use of the images alone"
        findings.append(Finding(code="no_report", severity="fact", found=found, volumes=names))
    for column, section in (("has_findings", "findings"), ("has_impression", "impression")):
        names = tuple(rows["volume_id"][~rows[column].astype(bool)])
        if names:
            found = f"{number(len(names), 'volume')} ({len(names) / len(rows):.1%}) without {section}"
            findings.append(Finding(code=f"no_{section}", severity="fact", found=found, volumes=names))
    return findings


def check_reports_agree(catalogue: Catalogue) -> list[Finding]:
    """Studies whose reconstructions have different reports or labels."""
    findings, rows = [], catalogue.rows
    labels = pd.Series([row.tobytes() for row in catalogue.labels], index=rows.index, dtype=object)
    for code, column, what in (("report_differs", rows["report_key"], "reports"), ("label_differs", labels, "labels")):
        kinds = column.groupby(rows["study_id"]).nunique()
        studies = set(kinds.index[kinds > 1])
        names = tuple(rows["volume_id"][rows["study_id"].isin(studies)])
        if names:
            findings.append(
                Finding(
                    code=code,
                    severity="warning",
                    found=f"{number(len(studies), 'study', 'studies')} with different {what} of one scan ({examples(names)})",
                    expected=f"equal {what} for all reconstructions of a scan",
                    action="see which row is right; those of the first volume count in pre-training",
                    volumes=names,
                )
            )
    return findings


def check_equal_reports(catalogue: Catalogue) -> list[Finding]:
    """Equal reports of different patients: a warning across splits, a fact within one."""
    rows = catalogue.rows[catalogue.rows["report"] != ""]
    by_key = rows.groupby("report_key")
    patients, splits = by_key["patient_id"].nunique(), by_key["split"].nunique()
    shared = patients.index[patients > 1]
    if not len(shared):
        return []
    apart = int((splits[shared] > 1).sum())
    names = tuple(rows["volume_id"][rows["report_key"].isin(set(shared))])
    return [
        Finding(
            code="duplicate_report_other_patient",
            severity="warning" if apart else "fact",
            found=f"{number(len(shared), 'report')} of several patients, {apart:,} of them in two splits ({examples(names)})",
            expected="few, and short ones",
            action="nothing, if they only say that all is normal; else see whether two patients are one",
            volumes=names,
            values={"reports": len(shared), "across_splits": apart},
        )
    ]


def sentence_facts(catalogue: Catalogue) -> list[Finding]:
    """How many sentences reports have, and how many of these other patients' reports have too."""
    studies = catalogue.rows[catalogue.rows["report"] != ""].drop_duplicates("study_id")
    if studies.empty:
        return []
    counts, owners, total = [], defaultdict(set), Counter()
    for patient, report in zip(studies["patient_id"], studies["report"]):
        sentences = [normalise(report[start:end]) for start, end in split_sentences(report)]
        counts.append(len(sentences))
        total.update(sentences)
        for sentence in set(sentences):
            owners[sentence].add(patient)
    patients, everything = studies["patient_id"].nunique(), max(total.total(), 1)
    recurring = sum(times for sentence, times in total.items() if len(owners[sentence]) > 1) / everything
    stock = sum(times for sentence, times in total.items() if len(owners[sentence]) > max(1, COMMON * patients)) / everything
    low, middle, high = (float(value) for value in np.percentile(counts, (5, 50, 95)))
    return [
        Finding(
            code="sentences",
            severity="fact",
            found=f"{middle:.0f} sentences in a report (5 to 95 %: {low:.0f} to {high:.0f}); {recurring:.0%} of them recur in "
            f"another patient's, {stock:.0%} in more than {COMMON:.0%} of the patients",
            values={"reports": len(counts), "median": middle, "p05": low, "p95": high, "recurring": recurring, "stock": stock},
        )
    ]
