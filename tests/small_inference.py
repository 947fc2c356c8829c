"""A small untrained model saved by mg3d, and scans of one chest, for tests of `mg3d.inference`."""

import nibabel as nib
import numpy as np
import torch
from released_files import small_bert
from small_raw import LPS, chest

from mg3d.checkpoints.pretrained import save_pretrained, text_config
from mg3d.config import resolve
from mg3d.datasets.tokenizer import train_wordpiece
from mg3d.models.build import build_model
from mg3d.preparation.recipe import Recipe
from mg3d.settings.parse import flatten

SIZES = {
    "image_size": 32, "mim_patch_size": 8, "embed_dim": 12, "patch_size": 2, "window_size": 3, "depths": [2], "num_heads": [2],
    "hidden_size": 24, "embedding_size": 16, "fusion_heads": 3, "pool_queries": 2, "freeze_text": True, "max_text_len": 40,
    "text_encoder": "nobody/no-such-bert",
}  # fmt: skip
REPORTS = ["There is no effusion. Lungs are clear.", "A small effusion on the left, a nodule on the right."]


def build(**changes):
    """A small untrained model and its settings."""
    torch.manual_seed(3)
    settings = resolve(["tiny"], SIZES | changes)
    return build_model(settings, small_bert(words=80, layers=1, width=16, heads=2, positions=48)).eval(), settings


RECIPE = Recipe(shape=(32, 24, 32)).provenance("custom")


def save(folder, recipe=RECIPE, **changes):
    """The model in `folder`, with its tokenizer."""
    model, settings = build(**changes)
    tokenizer = train_wordpiece(REPORTS, vocab_size=80, out_dir=folder.parent / "words")
    return save_pretrained(model, folder, settings=settings, tokenizer=tokenizer, recipe=recipe)


def save_run(folder, *, with_tokenizer=True, recipes=None):
    """A run folder: a checkpoint, and the tokenizer next to the folder of checkpoints."""
    model, settings = build()
    if with_tokenizer:
        train_wordpiece(REPORTS, vocab_size=80, out_dir=folder / "tokenizer")
    (folder / "checkpoints").mkdir(parents=True)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    identity = {"settings": flatten(settings), "text_config": text_config(model)} | ({"recipes": recipes} if recipes else {})
    torch.save({"state_dict": state, "mg3d": identity}, folder / "checkpoints" / "last.ckpt")
    return folder


def save_scan(path, *, seed=0, affine=LPS, hu=None):
    """A chest as NIfTI."""
    hu = chest(seed) if hu is None else hu
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), affine), path)
    return path


def with_lesion(centre, hu=2500):
    """A chest with a bright block of 3 x 3 x 3 voxels around z, y, x."""
    volume = np.array(chest(0))
    volume[tuple(slice(middle - 1, middle + 2) for middle in centre)] = hu
    return volume
