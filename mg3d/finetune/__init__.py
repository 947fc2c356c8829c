"""Fine-tuning on the folders of downstream/, or on any table of scans: `mg3d.finetune.fit("labels.csv")` (docs/finetune.md)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FinetunedRun:
    """The results folder of a run."""

    folder: Path

    def scores(self) -> "pd.DataFrame":
        """Rows of scores.json: split, name, value, low, high, cases, patients."""
        import pandas as pd

        from mg3d.finetune.results import read_summary

        scores = read_summary(self.folder)["scores"]
        return pd.DataFrame([{"split": split, **row} for split, rows in scores.items() for row in rows])

    def predictions(self, split: str = "val") -> "pd.DataFrame":
        """Predictions on `val` or `test`."""
        from mg3d.finetune.results import predictions_file, read_table

        return read_table(predictions_file(self.folder, split))

    def evaluate(self, table: str | Path, **settings: Any) -> "FinetunedRun":
        """External validation: every row of another table is a test case."""
        return _run(table=str(table), mode="evaluate", checkpoint=self._checkpoint(), **settings)

    def predict(self, scans: str | Path, output: str | Path, **settings: Any) -> "pd.DataFrame":
        """Predictions for a scan or a folder of scans, also written to the new folder `output`."""
        import pandas as pd

        run = _run(mode="predict", input=str(scans), output=str(output), checkpoint=self._checkpoint(), **settings)
        return pd.read_csv(run.folder / "predictions.csv", dtype={"case_id": str, "patient_id": str})

    def _checkpoint(self) -> str:
        return str(self.folder / "checkpoints" / "best.ckpt")


def fit(table: str | Path, **settings: Any) -> FinetunedRun:
    """Fine-tunes on a table of scans, as `bash run_scripts/finetune.sh custom table=...`; a finished run is only read.

    settings: of `mg3d.finetune.custom.CustomSettings`, such as pretrained, targets, epochs, log_dir.

    Raises:
        ValueError, OSError: a setting, the table or the checkpoint cannot be used.
    """
    return _run(table=str(table), **settings)


def _run(**settings: Any) -> FinetunedRun:
    from mg3d.finetune.custom import TASK
    from mg3d.finetune.experiment import command

    return FinetunedRun(command(TASK, settings))
