"""Faults of real data sets, planted into a copy of a synthetic set to test the doctor. No patient gets two of them."""

import json

import nibabel as nib
import numpy as np
import pandas as pd

from mg3d.phantom import ct_rate, ctrg
from mg3d.phantom.generate import CTRG, TRAIN, VALID, plan

TABLES = {
    "reports": "radiology_text_reports/{}_reports.csv",
    "metadata": "metadata/{}_metadata.csv",
    "labels": "multi_abnormality_labels/{}_predicted_labels.csv",
}


class FaultySet:
    """A synthetic set whose files and tables are edited; `take` hands out patients that have no fault yet."""

    def __init__(self, root, settings):
        self.root, self.settings, self.dataset = root, settings, root / "ct_rate" / "dataset"
        self.free = {TRAIN: [], VALID: [], CTRG: []}
        for study in plan(root, settings):
            if study.scan == 0:
                self.free[study.group].append(study)

    def take(self, group=TRAIN):
        """Name of the first volume of the next patient; for CTRG the folder of the next case."""
        study = self.free[group].pop(0)
        return ctrg.case_folder(study.patient, self.settings.seed) if group == CTRG else f"{study.name}_1"

    def path(self, name, *, fixed=True):
        return ct_rate.volume_path(self.dataset, name, fixed=fixed)

    def read(self, name):
        """int16 HU [z, y, x] and the voxel size in mm."""
        image = nib.load(self.path(name))
        return np.asarray(image.dataobj).transpose(2, 1, 0), float(image.header.get_zooms()[0])

    def replace(self, name, stored_xyz, *, z_mm=None):
        """Write another array, or another slice spacing, in place of a volume."""
        _, mm = self.read(name)
        affine = np.diag([-mm, -mm, z_mm or mm, 1.0])
        nib.save(nib.Nifti1Image(np.ascontiguousarray(stored_xyz), affine), self.only_path(name))

    def only_path(self, name, *, fixed=True):
        """Path in one tree; the file in the other tree is removed."""
        self.path(name, fixed=not fixed).unlink(missing_ok=True)
        self.path(name, fixed=fixed).parent.mkdir(parents=True, exist_ok=True)
        return self.path(name, fixed=fixed)

    def table_path(self, kind, split):
        return self.dataset / TABLES[kind].format("validation" if split == "valid" and kind != "labels" else split)

    def set_cells(self, kind, name, **cells):
        """Change cells of one volume, or of all volumes whose names start with `name`."""
        path = self.table_path(kind, name.split("_")[0])
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column, value in cells.items():
            table.loc[table["VolumeName"].str.startswith(name), column] = str(value)
        table.to_csv(path, index=False)

    def copy_row(self, kind, name, new_name, **cells):
        """Append the row of a volume to the table of `new_name`, under that name."""
        table, path = (self.table_path(kind, each.split("_")[0]) for each in (name, new_name))
        row = pd.read_csv(table, dtype=str, keep_default_na=False).query("VolumeName == @name + '.nii.gz'").iloc[:1]
        other = pd.read_csv(path, dtype=str, keep_default_na=False)
        pd.concat([other, row.assign(VolumeName=f"{new_name}.nii.gz", **cells)]).to_csv(path, index=False)


def nan_spacing(s):
    names = [s.take() for _ in range(3)]
    for name in names:
        s.set_cells("metadata", name, ZSpacing="")
    return names


def missing_file(s):
    name = s.take()
    s.only_path(name).unlink()
    return [name]


def truncated_gzip(s):
    name = s.take()
    content = s.path(name).read_bytes()
    s.only_path(name).write_bytes(content[: len(content) // 2])
    return [name]


def not_3d(s):
    name = s.take()
    s.replace(name, s.read(name)[0][9].T)
    return [name]


def shape_mismatch(s):
    name = s.take()
    s.set_cells("metadata", name, Rows=777)
    return [name]


def missing_report(s):
    names = [s.take(), s.take()]
    for name, text in zip(names, ("Not given.", ""), strict=True):
        s.set_cells("reports", name, Findings_EN=text, Impressions_EN=text)
    return names


def no_chest_listed(s):
    """The list names volumes by paths on somebody else's disk."""
    name = s.take()
    path = s.path(name, fixed=False).relative_to(s.dataset)
    (s.dataset / "metadata" / "no_chest_train.txt").write_text(f"/data/ct_rate/dataset/{path.as_posix()}\n")
    return [name]


def patient_in_two_splits(s):
    """A training patient is also in valid, under another number."""
    name, other = s.take(), f"valid_{s.settings.valid_patients + 1}_a_1"
    for kind in TABLES:
        s.copy_row(kind, name, other)
    s.only_path(other).write_bytes(s.path(name).read_bytes())
    return [name, other]


def duplicate_report(s):
    """A validation patient has the report of a training patient."""
    name, other = s.take(), s.take(VALID)
    table = pd.read_csv(s.table_path("reports", "train"), dtype=str, keep_default_na=False).set_index("VolumeName")
    s.set_cells("reports", other, **table.loc[f"{name}.nii.gz", ["Findings_EN", "Impressions_EN"]])
    return [name, other]


def ctrg_gap(s):
    """Three slices of a case are missing from its folder and from the annotations."""
    folder = s.take(CTRG)
    paths = sorted((s.root / "ctrg" / ctrg.SLICES / folder).iterdir())
    missing = {path.name for path in paths[5:8]}
    for path in paths[5:8]:
        path.unlink()
    annotations = s.root / "ctrg" / ctrg.ANNOTATIONS
    cases = json.loads(annotations.read_text())
    for case in cases:
        case["image_path"] = [path for path in case["image_path"] if path.rsplit("/", 1)[-1] not in missing]
    annotations.write_text(json.dumps(cases))
    return [folder]
