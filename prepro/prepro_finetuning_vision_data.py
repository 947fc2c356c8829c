"""Downstream sets, as their authors publish them -> one Arrow file each, for faster fine-tuning. Run it again to go on.

usage: python prepro/prepro_finetuning_vision_data.py FOLDER data_root=... [name=value ...] [out=...]

FOLDER is one of downstream/. The words are those of its finetune.sh that decide which cases are read (split, Luna16's candidates,
MSD's task). The file is data/finetune_vision_arrows/<FOLDER>.arrow (MSD: <FOLDER>-<task>.arrow) unless out= names another; it is
then a data_root like the raw folder. Cases that cannot be read are set aside in <file>.refused.csv.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mg3d.finetune.arrows import declared, write_cases
from mg3d.finetune.cases import check_cases
from mg3d.finetune.folders import load_task
from mg3d.finetune.run import declaration, sentence
from mg3d.finetune.settings import parse_settings, read_words
from mg3d.finetune.sources import read_root

OUT = Path("data/finetune_vision_arrows")
DOWNSTREAM = Path(__file__).parents[1] / "downstream"
KINDS = ("classification", "candidates", "segmentation")


def prepare(folder: str, given: dict[str, Any]) -> Path:
    """Writes the file of a set and returns it; ValueError or OSError for a user's mistake."""
    out = given.pop("out", "")
    if not given.get("data_root"):
        raise ValueError("give the folder of the data set: data_root=... (data_root=phantom: a synthetic one)")
    plain = load_task(DOWNSTREAM, folder)
    if plain.kind not in KINDS:
        raise ValueError(f"{folder} is a task of kind {plain.kind}; this script prepares {', '.join(KINDS)}")
    task, given, options, synthetic, prepared = declaration(plain, given)
    if prepared:
        raise ValueError(f"{prepared} is a prepared file already; data_root names the raw folder")
    settings = parse_settings(given, defaults=task.defaults, options=task.options)
    root = read_root(task, settings, synthetic=synthetic, say=print)
    task = plain.adapt(plain, options | {"data_root": str(root)}) if plain.adapt else plain
    without = plain.adapt(plain, options | {"data_root": ""}) if plain.adapt else plain
    cases = task.read_cases(root, settings)
    check_cases(cases, where=root)
    facts = {
        "folder": folder,
        "split": settings.split,
        "fold": settings.fold,
        "options": {name: options[name] for name in task.stored},
        "declared": declared(task, without),
        "synthetic": synthetic,
        "cases": len(cases),
    }
    file = Path(out) if out else OUT / f"{'-'.join(filter(None, (folder, task.variant)))}.arrow"
    refused = write_cases(file, cases, facts)
    print(f"mg3d: {len(cases) - len(refused)} of {len(cases)} cases prepared; wrote {file}")
    for row in refused[:3]:
        print(f"mg3d: set aside {row['case_id']}: {row['reason']}")
    return file


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        prepare(arguments[0], read_words(arguments[1:]))
    except (ValueError, OSError) as error:
        print(f"mg3d: {sentence(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
