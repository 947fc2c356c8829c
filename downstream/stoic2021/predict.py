"""Predictions as the challenge's table: PatientID, probCOVID, probSevere; see README.md.

usage: python downstream/stoic2021/predict.py input=<folder of .mha or one file> checkpoint=<best.ckpt> output=<table.csv>
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mg3d.finetune.run import run
from mg3d.finetune.settings import read_arguments
from mg3d.finetune.task import load_task

NEEDED = ("input", "checkpoint", "output")
OUTPUTS = ("probCOVID", "probSevere")


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, 2 for a mistake of the user, 3 if some scans could not be used."""
    import pandas as pd

    from mg3d.files import write_bytes

    try:
        overrides = read_arguments(arguments)
    except ValueError as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    missing = [f"{name}=..." for name in NEEDED if not overrides.get(name)]
    if missing:
        print(f"mg3d: missing {', '.join(missing)}; {__doc__.splitlines()[-1]}", file=sys.stderr)
        return 2
    task = load_task(Path(__file__).parents[1], "stoic2021")
    shared = [argument for argument in arguments if not argument.startswith(("output=", "mode="))]
    with tempfile.TemporaryDirectory(prefix="stoic2021-") as folder:
        out = Path(folder, "predictions")
        code = run(task, [*shared, "mode=predict", f"output={out}"])
        if code == 0:
            table = pd.read_csv(out / "predictions.csv", dtype={"case_id": str})
            columns = {"PatientID": table["case_id"], **{name: table[f"score/{name}"] for name in OUTPUTS}}
            write_bytes(Path(str(overrides["output"])), pd.DataFrame(columns).to_csv(index=False).encode())
        return code or 3 * (out / "excluded.csv").is_file()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
