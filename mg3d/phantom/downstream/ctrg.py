"""CTRG-Chest alone: JPEG folders and their list, and the 8-bit NIfTI form with its split and labels for report generation."""

import json
import shutil
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from mg3d.files import write_json
from mg3d.phantom.ct_rate import write_csv, write_whole
from mg3d.phantom.ctrg import ANNOTATIONS
from mg3d.phantom.downstream.order import Order, for_all
from mg3d.phantom.generate import PhantomSettings, generate

SPLIT = "chest_ctrg_nitfy_ori_split.json"
VOLUMES = "Chest_New_nitfy_2"
LABELS = {
    "Enlarged Cardiomediastinum": "Lymphadenopathy", "Cardiomegaly": "Cardiomegaly", "Lung Opacity": "Lung opacity",
    "Lung Lesion": "Lung nodule", "Edema": "", "Consolidation": "Consolidation", "Pneumonia": "", "Atelectasis": "Atelectasis",
    "Pneumothorax": "", "Pleural Effusion": "Pleural effusion", "Pleural Other": "", "Fracture": "",
    "Support Devices": "Medical material", "No Finding": "",
}  # fmt: skip
"""Column of the label table -> the phantom's finding it is told from."""
POSITIVE, NEGATIVE, UNCERTAIN = 1, 2, 3
CODES = {"+": POSITIVE, "-": NEGATIVE, "?": UNCERTAIN}


def write(order: Order, *, own_validation: bool = False) -> None:
    """Writes the cases, four in five of them for training, and the truth of each beside them.

    own_validation: the validation part is not the test part, as it is in the published split, but half of it.
    """
    settings = PhantomSettings(
        train_patients=0, valid_patients=0, ctrg_cases=order.cases, grid=order.voxels_in_plane, seed=order.seed
    )
    made = order.root / "made"
    generate(made, settings, workers=order.workers)
    for part in (made / "ctrg").iterdir():
        part.rename(order.root / part.name)
    (made / "truth").rename(order.root / "truth")
    shutil.rmtree(made)
    cases = json.loads((order.root / ANNOTATIONS).read_text(encoding="utf-8"))
    for _ in for_all(_write_volume, [(order, case) for case in cases], order.workers):
        pass
    mixed = order.generator(80).permutation(len(cases)).tolist()
    training = round(0.8 * len(cases))
    middle = training + (len(cases) - training) // 2
    parts = {"train": mixed[:training], "val": mixed[training:], "test": mixed[training:]}
    if own_validation:
        parts |= {"val": mixed[training:middle], "test": mixed[middle:]}
    # In the published file the entries of the test part say "val", too.
    words = {"train": "train", "val": "val", "test": "test" if own_validation else "val"}
    split = {part: [_entry(cases[place], words[part]) for place in sorted(places)] for part, places in parts.items()}
    write_json(order.root / SPLIT, split)
    write_csv(order.root / "CTRG_finding_labels.csv", ("id", *LABELS), (_labels(order, case) for case in cases))


def _write_volume(job: tuple[Order, dict[str, Any]]) -> None:
    """Stacks a case's slices as they are, top first, to uint8 (x, y, z) with a header that tells nothing."""
    order, case = job
    slices = []
    for relative in case["image_path"]:
        with Image.open(order.root / relative) as picture:
            slices.append(np.asarray(picture))
    stack = np.ascontiguousarray(np.stack(slices).transpose(2, 1, 0))
    write_whole(order.root / VOLUMES / f"{case['id']}.nii.gz", nib.Nifti1Image(stack, np.eye(4)))


def _entry(case: dict[str, Any], split: str) -> dict[str, str]:
    name = f"{case['id']}.nii.gz"
    texts = {"report": case["report"], "result": case["result"]}
    return {"id": name, **texts, "image_path": f"./{VOLUMES}/{name}", "split": split}


def _labels(order: Order, case: dict[str, Any]) -> dict[str, Any]:
    """1 stated, 2 denied, 3 unsure, empty where the report says nothing."""
    truth = json.loads((order.root / "truth" / "ctrg" / f"{case['id']}.json").read_text(encoding="utf-8"))
    said = {clause["label"]: CODES[clause["polarity"]] for clause in truth["clauses"] if clause["label"]}
    row = {column: said.get(label, "") for column, label in LABELS.items()}
    return {"id": f"{case['id']}.nii.gz", **row, "No Finding": "" if POSITIVE in said.values() else POSITIVE}
