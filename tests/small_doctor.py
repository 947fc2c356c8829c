"""A synthetic raw set that tests modify, and shortcuts to run the doctor."""

import pandas as pd

from mg3d.doctor.run import DoctorOptions, run_doctor
from mg3d.phantom.generate import PhantomSettings

TABLES = {
    "reports": "radiology_text_reports/{}_reports.csv",
    "metadata": "metadata/{}_metadata.csv",
    "labels": "multi_abnormality_labels/{}_predicted_labels.csv",
}
SETTINGS = PhantomSettings(
    train_patients=12, valid_patients=4, ctrg_cases=7, grid=32, second_scans=0.0, second_reconstructions=0.3, raw_tree=True
)


class RawSet:
    """A synthetic set whose files and tables can be modified."""

    def __init__(self, root):
        self.root, self.dataset = root, root / "ct_rate" / "dataset"

    def path(self, name, tree="{}_fixed"):
        split, patient, scan, _ = name.split("_")
        study = f"{split}_{patient}_{scan}"
        return self.dataset / tree.format(split) / f"{split}_{patient}" / study / f"{name}.nii.gz"

    def table(self, kind, split="train"):
        long = "validation" if split == "valid" and kind != "labels" else split
        return self.dataset / TABLES[kind].format(long)

    def edit(self, kind, name, column, value):
        """Changes cells of one row, or of all rows of a study."""
        path = self.table(kind, name.split("_")[0])
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.loc[table["VolumeName"].str.startswith(name), column] = value
        table.to_csv(path, index=False)

    def add_row(self, kind, like, name, **cells):
        """Copies the row of another volume under a new name."""
        table = pd.read_csv(self.table(kind, like.split("_")[0]), dtype=str, keep_default_na=False)
        row = table[table["VolumeName"] == f"{like}.nii.gz"].assign(VolumeName=f"{name}.nii.gz", **cells)
        path = self.table(kind, name.split("_")[0])
        pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False), row]).to_csv(path, index=False)

    def move_to_first_release(self, name):
        """Removes the corrected file; returns the path in the tree of the first release."""
        self.path(name).unlink()
        return self.path(name, "{}")


def diagnose(path, **options):
    """Runs the doctor without a progress bar."""
    return run_doctor(DoctorOptions(path=path, **options), lambda items, description, total: iter(items))


def problems(report):
    """Code -> volumes without data set, for errors and warnings."""
    return {
        result.code: sorted(name.split("/")[-1] for name in result.volumes)
        for result in report.results
        if result.severity != "info"
    }
