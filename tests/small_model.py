"""A small model and a small batch, for tests."""

import torch

from mg3d.datasets.masking import label_positions
from mg3d.models.mg3d import MG3D
from mg3d.models.released import ReleasedMG3D
from mg3d.models.text.encoder import tiny_text_encoder
from mg3d.models.vision.swin import SwinEncoder
from mg3d.settings.schema import ModelSettings
from mg3d.types import Batch

OBJECTIVES = ("mlm", "sal", "mim", "cml", "dcl", "ssm")
SHAPE = (16, 8, 24)
WIRINGS = ("paper", "intended", "released")


def build(wiring="paper", *, objectives=OBJECTIVES, frozen=False, seed=0, width=24, vision=None, shape=SHAPE, **settings):
    """A small MG3D in float64; `settings` of ModelSettings."""
    torch.manual_seed(seed)
    masks = wiring == "paper" and "mim" in objectives
    vision = vision or SwinEncoder(embed_dim=12, patch_size=2, window_size=4, depths=(2,), num_heads=(2,), mask_token=masks)
    text = tiny_text_encoder(vocab_size=40, width=16, layers=1, heads=2, max_positions=32, frozen=frozen)
    sizes = {"hidden_size": width, "embedding_size": 20, "fusion_heads": 3, "mim_decoder": "linear"}
    model = MG3D if wiring == "paper" else ReleasedMG3D
    settings = ModelSettings(wiring=wiring, **(sizes | settings))
    return model(vision, text, settings, objectives=objectives, volume_shape=shape).double()


def losses_of(model, batch, branches=None):
    """Objective -> loss of a batch, of all branches or of some."""
    return model.losses(model(batch, branches))


def random_batch(size=3, *, seed=0, shape=SHAPE, patch=4):
    """A batch of `size` patients with 2, 3, ... sentences; `patch`: side of a masked patch in voxels."""
    generator = torch.Generator().manual_seed(seed)
    tokens, most = 14, 4
    index = torch.full((size, tokens), -1)
    attention = torch.zeros(size, tokens, dtype=torch.bool)
    for row in range(size):
        words, count = 7 + row % 5, 2 + row % 3
        index[row, 1 : words + 1] = torch.arange(words) * count // words
        attention[row, : words + 2] = True
    rows = [
        {
            "volume": torch.rand(1, *shape, generator=generator, dtype=torch.float64),
            "patch_mask": torch.rand(*(side // patch for side in shape), generator=generator) < 0.5,
            "ids": torch.randint(5, 40, (tokens,), generator=generator),
            "mlm": torch.rand(tokens, generator=generator) < 0.4,
        }
        for _ in range(size)
    ]
    stack = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    ids = torch.where(attention, stack["ids"], 0)
    masked = stack["mlm"] & (index >= 0)
    labels = torch.where(masked, ids, -100)
    whole = {"ids": ids, "attention": attention, "index": index}
    views = {name: torch.stack([part[:, :8], part[:, 4:12]], 1) for name, part in whole.items()}
    views["attention"][..., 0] = True
    sentences = torch.arange(most) <= index.max(1, keepdim=True).values
    return Batch(
        volume=stack["volume"], patch_mask=stack["patch_mask"], report_ids=ids, attention_mask=attention, sentence_index=index,
        sentence_mask=sentences, sentence_polarity=torch.where(sentences, 1, 0).to(torch.int8),
        mlm_ids=torch.where(masked, 4, ids), mlm_labels=labels, mlm_positions=label_positions(labels),
        view_ids=views["ids"], view_attention_mask=views["attention"], view_sentence_index=views["index"],
        patient_key=torch.arange(size), report_key=100 + torch.arange(size),
        view_key=200 + torch.arange(2 * size).view(size, 2),
        labels=torch.zeros(size, 18, dtype=torch.int8), study_id=[str(row) for row in range(size)],
    )  # fmt: skip
