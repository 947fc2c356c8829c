"""Faults of real data sets, planted into a copy of a synthetic set. No patient gets two of them."""

import csv
import gzip
import io
import json

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from mg3d.glossary import LABELS
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

    def to_raw_tree(self, name, intercept):
        """Move a volume to the first release's tree, which has blank headers and raw values."""
        volume, _ = self.read(name)
        self.path(name).unlink()
        ct_rate.write_raw(self.only_path(name, fixed=False), volume, intercept)
        self.set_cells("metadata", name, RescaleIntercept=intercept)

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

    def change_slice(self, folder, change):
        """Change the bytes of the middle slice of a CTRG case."""
        paths = sorted((self.root / "ctrg" / ctrg.SLICES / folder).iterdir())
        path = paths[len(paths) // 2]
        path.write_bytes(change(path.read_bytes()))


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


def four_d(s):
    name = s.take()
    s.replace(name, np.stack([s.read(name)[0].T] * 2, axis=-1))
    return [name]


def rgb(s):
    name = s.take()
    s.replace(name, np.zeros(s.read(name)[0].T.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    return [name]


def wrong_header(s):
    name = s.take()
    s.replace(name, s.read(name)[0].T, z_mm=400.0)
    return [name]


def zip_bomb(s):
    """A file of 65 kB whose header promises 1.6 TB, and that decompresses to 64 MB of zeros."""
    name, header = s.take(), nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((20_000, 20_000, 2_000))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    s.only_path(name).write_bytes(gzip.compress(header.binaryblock + bytes(4)) + gzip.compress(bytes(4 << 20)) * 16)
    return [name]


def unreadable(s):
    """A file without read permission (root can read it nevertheless)."""
    name = s.take()
    s.only_path(name).chmod(0)
    return [name]


def shape_mismatch(s):
    name = s.take()
    s.set_cells("metadata", name, Rows=777)
    return [name]


def padding_8192(s):
    name = s.take()
    s.to_raw_tree(name, -8192)
    return [name]


def fixed_in_raw_tree(s):
    """A volume in HU in the first release's tree, where its intercept would be applied twice."""
    name = s.take()
    content = s.path(name).read_bytes()
    s.path(name).unlink()
    s.only_path(name, fixed=False).write_bytes(content)
    return [name]


def feet_first(s):
    """The file is upright all the same, as in CT-RATE."""
    name = s.take()
    s.set_cells("metadata", name, PatientPosition="FFS")
    return [name]


def orientation_spelling(s):
    names = [s.take(), s.take()]
    for name, text in zip(names, ("[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]", "['1', '0', '0', '0', '1', '0']"), strict=True):
        s.to_raw_tree(name, -1024)
        s.set_cells("metadata", name, ImageOrientationPatient=text)
    return names


def spacing_spelling(s):
    names = [s.take() for _ in range(3)]
    for name, pattern in zip(names, ("[{0},{0}]", "['{0}', '{0}']", "({0}, {0})"), strict=True):
        s.to_raw_tree(name, -1024)
        s.set_cells("metadata", name, XYSpacing=pattern.format(360 / s.settings.grid))
    return names


def blank_age(s):
    name = s.take()
    s.set_cells("metadata", name, PatientAge="")
    return [name]


def orphan_label(s):
    """A row of labels for a volume that does not exist."""
    s.copy_row("labels", s.take(), "train_99999_a_1")
    return ["train_99999_a_1"]


def missing_report(s):
    names = [s.take(), s.take()]
    for name, text in zip(names, ("Not given.", ""), strict=True):
        s.set_cells("reports", name, Findings_EN=text, Impressions_EN=text)
    return names


def two_rows(s):
    name = s.take()
    s.copy_row("reports", name, name, Findings_EN="Another report, of an unknown patient.", Impressions_EN="Unclear.")
    return [name]


def duplicate_report(s):
    """A validation patient has the report of a training patient."""
    name, other = s.take(), s.take(VALID)
    table = pd.read_csv(s.table_path("reports", "train"), dtype=str, keep_default_na=False).set_index("VolumeName")
    s.set_cells("reports", other, **table.loc[f"{name}.nii.gz", ["Findings_EN", "Impressions_EN"]])
    return [name, other]


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


def duplicate_voxels(s):
    """A validation patient has the voxels of a training patient, with another report."""
    name, other = s.take(), s.take(VALID)
    s.only_path(other).write_bytes(s.path(name).read_bytes())
    s.set_cells("metadata", other, NumberofSlices=len(s.read(name)[0]))
    return [name, other]


def latin1_table(s):
    name = s.take(VALID)
    s.set_cells("reports", name, Findings_EN="The largest node measures 9 ± 1 mm.")
    path = s.table_path("reports", "valid")
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    return [name]


def swapped_columns(s):
    """The column names of volumes and findings are exchanged."""
    path = s.table_path("reports", "train")
    header, _, rest = path.read_text().partition("\n")
    names = {"VolumeName": "Findings_EN", "Findings_EN": "VolumeName"}
    path.write_text(",".join(names.get(name, name) for name in next(csv.reader([header]))) + "\n" + rest)
    return []


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


def ctrg_mixed_sizes(s):
    def smaller(content):
        encoded = io.BytesIO()
        with Image.open(io.BytesIO(content)) as image:
            image.resize((image.width - 4, image.height - 2)).save(encoded, "JPEG")
        return encoded.getvalue()

    folder = s.take(CTRG)
    s.change_slice(folder, smaller)
    return [folder]


def ctrg_truncated_jpeg(s):
    folder = s.take(CTRG)
    s.change_slice(folder, lambda content: content[: len(content) // 2])
    return [folder]


def flipped_labels(s):
    """A label file that contradicts the reports is stored as it is."""
    name = s.take()
    s.set_cells("labels", name, **dict.fromkeys(LABELS[:3], 1))
    return [name]


def plant(root, settings, faults):
    """Plant fault functions into the set in `root`; returns name -> volumes (folders for CTRG) with the fault."""
    faulty = FaultySet(root, settings)
    return {fault.__name__: fault(faulty) for fault in faults}
