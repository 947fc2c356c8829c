"""The challenge's table of new scans: PatientID, probCOVID, probSevere; see README.md.

usage: python downstream/stoic2021/predict.py input=<folder of .mha or one file> checkpoint=<best.ckpt> output=<table.csv>
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mg3d.files import write_bytes
from mg3d.finetune.folders import load_task
from mg3d.finetune.run import run
from mg3d.finetune.settings import read_words

TASK = load_task(Path(__file__).parents[1], "stoic2021")
NEEDED = ("input", "checkpoint", "output")


def as_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions of a run as the challenge's table."""
    scores = {name: predictions[f"score/{name}"] for name in TASK.outputs}
    return pd.DataFrame({"PatientID": predictions["case_id"], **scores})


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, 2 for a mistake, 3 when some scans could not be used (told on stdout)."""
    try:
        given = read_words(arguments)
    except ValueError as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    absent = [f"{name}=..." for name in NEEDED if not given.get(name)]
    if absent:
        print(f"mg3d: {', '.join(absent)} is missing; {__doc__.splitlines()[-1]}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="stoic2021-"))
    others = [word for word in arguments if not word.startswith(("output=", "mode="))]
    try:
        code = run(TASK, [*others, "mode=predict", f"output={folder / 'found'}"])
        predictions = folder / "found" / "predictions.csv"
        if code == 0 and predictions.is_file():
            table = as_table(pd.read_csv(predictions, dtype={"case_id": str}))
            write_bytes(Path(str(given["output"])), table.to_csv(index=False).encode())
        return code or 3 * (folder / "found" / "refused.csv").is_file()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
