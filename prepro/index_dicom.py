"""List the DICOM series below a folder in a table, join a spreadsheet of reports, and choose one series per study.

Headers are read, never pixels. Run the same command again to continue after an interruption or to add new files. Next to
FILE.csv are written: FILE.key.csv (pseudonyms and PatientIDs), FILE.salt.txt (secret of the pseudonyms), FILE.cache.jsonl
(headers) and FILE.unmatched.csv (rows and studies without a partner). All are readable by you only: keep them like patient files.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mg3d.cli import ArgumentParser, output_file, positive_int, run_and_print


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of DICOM files in any layout; links are followed")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE.csv", help="table to write: one row per series")
    parser.add_argument("--reports", type=Path, metavar="FILE", help="spreadsheet with a header: .xlsx, CSV or JSON")
    parser.add_argument(
        "--key", default="accession", metavar="KEY[=COLUMN]",
        help="what joins a report to a study: accession, study_uid or patient_id; COLUMN is its name in the spreadsheet if it is "
        "an unusual one (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--text", nargs="+", default=["report"], metavar="COLUMN",
        help="column of the report; several columns are joined, those called findings and impression stay apart "
        "(default: report)",
    )  # fmt: skip
    parser.add_argument(
        "--choose", nargs="?", const="", metavar="RULES.toml",
        help="use one series of each study, by the rules of a file (default: mg3d/preparation/series_index/choose.toml)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=positive_int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2,
        metavar="N", help="processes that read headers (default: one per core)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() != ".csv":
        parser.error(f"--out {options.out}: the name must end in .csv")
    return options


def run(options: argparse.Namespace) -> str:
    """Write the table and return a summary.

    Raises:
        FileNotFoundError: there is no folder, table or DICOM series.
        ValueError: the spreadsheet or the rules cannot be read.
    """
    from mg3d.preparation.series_index.choose import RULES, choose, read_rules
    from mg3d.preparation.series_index.read import read_series
    from mg3d.preparation.series_index.reports import Unmatched, join_reports, read_reports
    from mg3d.preparation.series_index.table import COLUMNS, describe, make_patient, make_rows, write_key, write_rows
    from mg3d.preparation.sources.pseudonyms import read_salt

    if not options.root.is_dir():
        raise FileNotFoundError(f"there is no folder {options.root}")
    rules = read_rules(Path(options.choose) if options.choose else RULES) if options.choose is not None else None
    reports = read_reports(options.reports, options.key, options.text) if options.reports else None
    beside = options.out.with_suffix
    salt = read_salt(beside(".salt.txt"))
    found, passed_over = read_series(options.root, beside(".cache.jsonl"), workers=options.workers, track=track)
    if not found:
        counts = ", ".join(f"{count:,} {what}" for what, count in passed_over.items())
        raise FileNotFoundError(f"{options.root} has no DICOM series; passed over: {counts or 'nothing'}")
    rows, columns, notes = make_rows(found, salt), list(COLUMNS), []
    if rules:
        choose(rows, rules)
    if reports:
        joined = join_reports(rows, reports, options.key, lambda patient_id: make_patient(patient_id, "", salt))
        notes = joined.notes
        write_rows(beside(".unmatched.csv"), Unmatched._fields, [entry._asdict() for entry in joined.unmatched])
        columns += [name for name in ("report", "findings", "impression") if any(name in row for row in rows)]
    write_rows(options.out, columns, rows)
    write_key(beside(".key.csv"), found, salt)
    return "\n".join([*describe(rows, found, passed_over), *notes, f"wrote {options.out}"])


def track(results: Iterable, total: int) -> Iterator:
    """Pass results through with a progress bar on stderr, which shows counts and no names."""
    from tqdm import tqdm

    interval_s = 0.5 if sys.stderr.isatty() else 60
    yield from tqdm(results, desc="headers", total=total, unit="folder", mininterval=interval_s, disable=not total)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    options = parse(arguments)
    try:
        return run_and_print(lambda: run(options))
    except KeyboardInterrupt:
        print("mg3d: stopped; run the same command to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
