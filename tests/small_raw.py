"""Small raw CT-RATE and CTRG trees. Every axis has a different size, and voxel values encode their position."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from mg3d.glossary import LABELS
from mg3d.preparation.records import VolumeRecord
from mg3d.preparation.sources.options import SourceOptions

SHAPE = (26, 22, 24)
"""z y x."""
SPACING = (5.0, 3.0, 3.0)
LPS = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
REPORT = {
    "Findings_EN": "The heart is normal. No effusion, mass, or node is seen.\nLungs clear.",
    "Impressions_EN": "Emphysema  Hernia",
}
GOOD_ROW = {
    "XYSpacing": f"[{SPACING[1]}, {SPACING[2]}]", "ZSpacing": SPACING[0], "Rows": SHAPE[1], "Columns": SHAPE[2],
    "NumberofSlices": SHAPE[0], "RescaleSlope": 1, "RescaleIntercept": -1024,
    "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]", "Manufacturer": "x",
}  # fmt: skip


def chest(seed=0):
    """HU [z, y, x]: air around a body whose HU increase towards superior, posterior and left."""
    rng = np.random.default_rng(seed)
    volume = np.full(SHAPE, -1000) + rng.integers(-3, 4, SHAPE)
    z, y, x = np.meshgrid(*(np.arange(length) for length in SHAPE), indexing="ij")
    body = slice(2, -2), slice(5, -4), slice(4, -4)
    volume[body] = (8 * z + 20 * y + 3 * x)[body] + seed
    return volume.astype(np.int16)


def source_options(**changes):
    """Options of `list_*` without a val split."""
    return SourceOptions(**{"out": Path("unused"), "val_patients": 0, **changes})


def volume_record(*files, reader, **changes):
    """A record of which only the files and the reader matter."""
    ids = dict.fromkeys(("volume_id", "study_id", "patient_id", "source"), "a")
    texts = {"findings": None, "impression": None, "official_split": "train", "split": "train", "reconstruction": 1}
    return VolumeRecord(**{**ids, **texts, "dataset": "ct_rate", "files": files, "reader": reader, **changes})


def write_nifti(path, stored_xyz, affine, *, blank=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(stored_xyz, affine)
    if blank:
        image.header.set_sform(None, 0)
        image.header.set_qform(None, 0)
        image = nib.Nifti1Image(stored_xyz, None, image.header)
    nib.save(image, path)


class CtRateTree:
    """Collects volumes and table rows; `write` writes the tables."""

    def __init__(self, root: Path) -> None:
        self.root, self.rows, self.no_chest = root, {}, []

    def add(self, name, hu=None, *, folder=None, row=None, report=REPORT, stored=None, affine=LPS, blank=False, file=True):
        """Add a volume; `folder` defaults to `<split>_fixed`; `stored` [x, y, z] overrides `hu` [z, y, x]."""
        split = name.split("_")[0]
        path = self.path(name, folder or f"{split}_fixed")
        path.parent.mkdir(parents=True, exist_ok=True)
        if file:
            hu = chest(len(self.rows)) if hu is None else hu
            write_nifti(path, hu.transpose(2, 1, 0) if stored is None else stored, affine, blank=blank)
        self.rows[name] = ({**GOOD_ROW, **(row or {})}, report)
        return path

    def path(self, name, folder):
        patient, study = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
        return self.root / "dataset" / folder / patient / study / f"{name}.nii.gz"

    def write(self):
        data = self.root / "dataset"
        for split, word in (("train", "train"), ("valid", "validation")):
            rows = {f"{name}.nii.gz": row for name, row in self.rows.items() if name.startswith(split)}
            reports = [{"VolumeName": name, "Technique_EN": "", **report} for name, (_, report) in rows.items() if report]
            write_csv(data / "radiology_text_reports" / f"{word}_reports.csv", reports)
            metadata = [{"VolumeName": name, **row} for name, (row, _) in rows.items()]
            write_csv(data / "metadata" / f"{word}_metadata.csv", metadata)
            labels = [{"VolumeName": name, **{label: int(k == 2) for k, label in enumerate(LABELS)}} for name in rows]
            write_csv(data / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", labels)
            lines = [f"somewhere/dataset/{split}/{name}.nii.gz" for name in self.no_chest if name.startswith(split)]
            (data / "metadata" / f"no_chest_{split}.txt").write_text("\n".join(lines) + "\n")
        return self.root


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_ctrg(root, count, *, slices=20, as_list=True, edit=None):
    """Cases `Person <k>` of JPEG slices [22, 24] from superior to inferior; slice k has grey value 10 k."""
    items = []
    for case in range(count):
        folder = root / "Chest_New" / f"Person {case}"
        folder.mkdir(parents=True)
        names = [f"Person {case}_05_{number}_{number}.jpg" for number in range(1, slices + 1)]
        for number, name in enumerate(names):
            grey = np.full((SHAPE[1], SHAPE[2]), 10 * number, np.uint8)
            grey[0, 0] = case
            Image.fromarray(grey).save(folder / name, quality=95)
        inside = f"./Chest_New/Person {case}"
        path = [f"{inside}/{name}" for name in reversed(names)] if as_list else inside
        items.append({"id": case, "image_path": path, "report": f"Case {case} lung clear, heart large.", "result": "Normal."})
    annotation = edit(items) if edit else items
    (root / "chest_ctrg_jpg.json").write_text(json.dumps(annotation))
    return root
