"""A downstream data set in its published layout -> one Arrow file, for faster fine-tuning. An interrupted run continues.

usage: python prepro/prepro_finetuning_vision_data.py FOLDER data_root=... [name=value ...] [out=FILE.arrow]

FOLDER    one of downstream/: ACDC, cc-ccii, Covid19_20, Luna16, MSD, stoic2021
data_root the data set as its authors publish it (phantom: synthetic data)
name=value  settings of the folder that decide which cases are read, such as task of MSD or candidates of Luna16
out       Arrow file to write (default: data/finetune_vision_arrows/FOLDER.arrow; MSD: MSD-<task>.arrow)

Use the file as data_root of the folder's finetune.sh. Cases that cannot be read are listed in <file>.excluded.csv.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OUT = Path("data/finetune_vision_arrows")
DOWNSTREAM = Path(__file__).parents[1] / "downstream"
FOLDERS = ("ACDC", "cc-ccii", "Covid19_20", "Luna16", "MSD", "stoic2021")


def prepare(folder: str, overrides: dict[str, Any]) -> Path:
    """Writes the Arrow file of a folder and returns it; ValueError or OSError for a mistake of the user."""
    from mg3d.finetune.arrows import find_prepared, write_cases
    from mg3d.finetune.cases import require_cases
    from mg3d.finetune.data_root import find_root, is_synthetic
    from mg3d.finetune.settings import as_builtins, parse_settings
    from mg3d.finetune.task import load_task

    out = overrides.pop("out", "")
    if folder not in FOLDERS:
        raise ValueError(f"{folder!r}: expected one of {', '.join(FOLDERS)}")
    if not overrides.get("data_root"):
        raise ValueError("data_root=... is missing: the folder of the data set (data_root=phantom: synthetic data)")
    task = load_task(DOWNSTREAM, folder)
    synthetic = is_synthetic(str(overrides["data_root"]))
    settings = task.resolve(parse_settings(task.settings, overrides, task.defaults(overrides, synthetic)))
    if prepared := find_prepared(settings.data_root, folder):
        raise ValueError(f"{prepared} is prepared already; data_root is the published folder")
    root = find_root(task, settings, synthetic=synthetic)
    cases = task.read_cases(root, settings)
    require_cases(cases, where=root)
    stored = {name: as_builtins(settings)[name] for name in task.stored}
    variant = getattr(settings, task.variant) if task.variant else ""
    file = Path(out) if out else OUT / f"{'-'.join(filter(None, (folder, variant)))}.arrow"
    excluded = write_cases(file, cases, {"folder": folder, "settings": stored, "synthetic": synthetic, "cases": len(cases)})
    print(f"mg3d: {len(cases) - len(excluded)} of {len(cases)} cases prepared; wrote {file}")
    for row in excluded[:3]:
        print(f"mg3d: excluded {row['case_id']}: {row['reason']}")
    return file


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    from mg3d.finetune.run import error_message
    from mg3d.finetune.settings import read_arguments

    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        prepare(arguments[0], read_arguments(arguments[1:]))
    except (ValueError, OSError) as error:
        print(f"mg3d: {error_message(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
