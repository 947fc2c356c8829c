"""Execute a study: pre-train its runs with several seeds, measure them on held-out patients, write one table with intervals."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.cli import ArgumentParser, run_and_print


def run(options: argparse.Namespace, failures: list[str]) -> str:
    """Execute what is not finished, and return the table; appends a sentence per failed run to `failures`."""
    from mg3d.evaluation.tables import format_tables
    from mg3d.settings.parse import refuse_unknown
    from mg3d.studies.execute import RESULTS, Folders, execute, execute_with_ray
    from mg3d.studies.page import collect, summary_rows, write_csv, write_study_page
    from mg3d.studies.study import read_study

    study = read_study(options.study)
    refuse_unknown(options.runs, study.runs, "run")
    folders = Folders(options.study.parent / RESULTS / study.name, options.work / study.name)
    if not options.table:
        jobs = [(run, seed) for run, seed in study.jobs if not options.runs or run.name in options.runs]
        failures += (execute_with_ray if options.engine == "ray" else execute)(study, folders, jobs)
    results = collect(study, folders)
    if not results:
        raise ValueError(f"no run of {options.study} is finished")
    page = folders.results.with_suffix(".html")
    write_csv(folders.results.with_suffix(".csv"), study, results)
    write_study_page(page, study, results)
    table = format_tables(study.title, {"Means over seeds": summary_rows(study, results)})
    return f"{table}\n* the difference to {study.baseline} has a 95 % interval that excludes zero\n{page}"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="study file, such as studies/ablation.yaml")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="execute these runs only")
    parser.add_argument("--table", action="store_true", help="execute nothing; write the table of what is finished")
    parser.add_argument("--engine", choices=("sequential", "ray"), default="sequential", help="ray: on a cluster")
    parser.add_argument("--work", type=Path, default=Path("result/studies"), metavar="FOLDER", help="checkpoints (%(default)s)")
    options = parser.parse_args(arguments)
    failures: list[str] = []
    try:
        code = run_and_print(lambda: run(options, failures))
    except KeyboardInterrupt:
        print("\nmg3d: interrupted; the same command continues", file=sys.stderr)
        return 130
    for failure in failures:
        print(f"mg3d: {failure}", file=sys.stderr)
    return code or int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
