"""CTRG-Chest alone: JPEG folders and their list, and the 8-bit NIfTI form with a split for report generation."""

import json
from typing import Any

import numpy as np
from PIL import Image

from mg3d.files import write_json
from mg3d.phantom.ctrg import ANNOTATIONS
from mg3d.phantom.downstream.ct_rate import write_part
from mg3d.phantom.spec import DatasetSpec
from mg3d.phantom.writers import write_nifti

SPLIT = "chest_ctrg_nitfy_ori_split.json"
VOLUMES = "Chest_New_nitfy_2"


def write(spec: DatasetSpec) -> None:
    """Write the cases, four fifths of them for training, and `truth/`. Validation and test are the same cases, as published."""
    write_part(spec, "ctrg", ctrg_cases=spec.cases)
    cases = json.loads((spec.root / ANNOTATIONS).read_text(encoding="utf-8"))
    spec.map(_write_volume, [(spec, case) for case in cases])
    shuffled = spec.generator(80).permutation(len(cases)).tolist()
    n_training = round(0.8 * len(cases))
    train, held_out = ([cases[index] for index in sorted(part)] for part in (shuffled[:n_training], shuffled[n_training:]))
    validation = [_entry(case, "val") for case in held_out]  # the published entries of the test split also say "val"
    write_json(spec.root / SPLIT, {"train": [_entry(case, "train") for case in train], "val": validation, "test": validation})


def _write_volume(job: tuple[DatasetSpec, dict[str, Any]]) -> None:
    """Stack the slices of a case, superior first, as uint8 (x, y, z) with a blank header."""
    spec, case = job
    slices = []
    for path in case["image_path"]:
        with Image.open(spec.root / path) as image:
            slices.append(np.asarray(image))
    write_nifti(spec.root / VOLUMES / f"{case['id']}.nii.gz", np.stack(slices).transpose(2, 1, 0), np.eye(4))


def _entry(case: dict[str, Any], split: str) -> dict[str, str]:
    name = f"{case['id']}.nii.gz"
    texts = {"report": case["report"], "result": case["result"]}
    return {"id": name, **texts, "image_path": f"./{VOLUMES}/{name}", "split": split}
