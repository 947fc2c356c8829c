"""A synthetic raw set that tests edit, and an examination as they want it."""

import pandas as pd

from mg3d.doctor.examine import Options, examine
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
    """A synthetic set whose files and tables can be edited."""

    def __init__(self, root):
        self.root, self.dataset = root, root / "ct_rate" / "dataset"

    def path(self, name, tree="{}_fixed"):
        split, patient, scan, _ = name.split("_")
        study = f"{split}_{patient}_{scan}"
        return self.dataset / tree.format(split) / f"{split}_{patient}" / study / f"{name}.nii.gz"

    def table(self, kind, split="train"):
        word = "validation" if split == "valid" and kind != "labels" else split
        return self.dataset / TABLES[kind].format(word)

    def edit(self, kind, name, column, value):
        """Changes cells of one row, or of all rows of a scan."""
        split = name.split("_")[0]
        table = pd.read_csv(self.table(kind, split), dtype=str, keep_default_na=False)
        table.loc[table["VolumeName"].str.startswith(name), column] = value
        table.to_csv(self.table(kind, split), index=False)

    def add_row(self, kind, like, name, **cells):
        """A row as another volume has it, under a name of its own."""
        table = pd.read_csv(self.table(kind, like.split("_")[0]), dtype=str, keep_default_na=False)
        row = table[table["VolumeName"] == f"{like}.nii.gz"].assign(VolumeName=f"{name}.nii.gz", **cells)
        path = self.table(kind, name.split("_")[0])
        other = pd.read_csv(path, dtype=str, keep_default_na=False)
        pd.concat([other, row]).to_csv(path, index=False)

    def move_to_first_release(self, name):
        """The volume lies in the first release's tree alone."""
        self.path(name).unlink()
        return self.path(name, "{}")


def look(path, **more):
    """An examination without a progress bar."""
    return examine(Options(path=path, **more), lambda items, what, total: iter(items))


def bad(examination):
    """Code -> volumes without data set, of what is no mere fact."""
    return {
        finding.code: sorted(name.split("/")[-1] for name in finding.volumes)
        for finding in examination.findings
        if finding.severity != "fact"
    }
