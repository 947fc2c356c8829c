"""Shared by the golden tests: models filled by the recipe, encoder outputs to replay, and the comparison."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from golden import recipe
from torch import nn
from transformers import BertConfig, BertModel

from mg3d.checkpoints.released_names import to_released
from mg3d.datasets.masking import label_positions
from mg3d.models.build import build_model
from mg3d.models.text.encoder import TextEncoder
from mg3d.models.vision.swin import SwinEncoder
from mg3d.settings.parse import parse
from mg3d.settings.presets import PRESETS
from mg3d.types import Batch

DATA = Path(__file__).parent / "data"
STORED_TOLERANCE = {np.float32: 1e-6, np.float64: 1e-8}
"""In float64; limited by the format of the record: arrays are stored in float32, losses and lists in float64."""
FLOAT32_TOLERANCE = {"array": 2e-5, "number": 2e-6}
"""In float32; limited by rounding of the model: an array, or a single number such as a loss."""


@cache
def recorded(name):
    """Arrays (.npz) or numbers (.json) of a file, by name."""
    if name.endswith(".json"):
        return json.loads((DATA / name).read_text())
    with np.load(DATA / name) as arrays:
        return dict(arrays)


class Comparison:
    """Compares with the record, and adds the deviation to pytest's report."""

    def __init__(self, record_property):
        self.record = record_property

    def __call__(self, ours, golden, dtype, *, scale=1.0):
        """`scale`: magnitude of the values, if far from 1; the deviation is relative to it."""
        golden = np.asarray(golden)
        if dtype == torch.float64:
            tolerance = STORED_TOLERANCE[golden.dtype.type]
        else:
            tolerance = FLOAT32_TOLERANCE["array" if golden.ndim else "number"]
        ours = torch.as_tensor(ours).detach().double()
        assert ours.shape == golden.shape
        deviation = ((ours - torch.from_numpy(golden.astype(np.float64))).abs().max() / scale).item()
        self.record("deviation", deviation)
        self.record("dtype", str(dtype).removeprefix("torch."))
        assert deviation <= tolerance, f"differs by {deviation:.3g}"


@torch.no_grad()
def fill(module, prefix=""):
    """The module with the recipe's values for the released names of its tensors, in eval mode."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            values = recipe.weight(to_released(prefix + name), tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(values))
    return module.eval().requires_grad_(False)


def swin_b(dtype, **changes):
    """The filled encoder."""
    return fill(SwinEncoder(**changes).to(dtype), "vision.")


def build(preset, dtype, vision):
    """MG3D of this objective preset with the filled weights around `vision`."""
    settings = parse({**PRESETS[preset], "hidden_size": 768, "embedding_size": 768})
    config = BertConfig(vocab_size=recipe.VOCABULARY, num_hidden_layers=2)  # else BERT-base: width 768, 12 heads, eps 1e-12
    text = TextEncoder(BertModel(config, add_pooling_layer=False), frozen=True)
    model = build_model(settings, text).to(dtype)
    model.vision = nn.Identity()
    fill(model)
    model.vision = vision
    return settings, model


def batch(dtype):
    """The three patients."""
    text = {name: torch.from_numpy(rows) for name, rows in recipe.reports().items()}
    count, index = len(text["ids"]), text["sentence_index"]
    real = text["ids"] != recipe.PAD
    sentences = torch.arange(int(index.max()) + 1) <= index.max(1, keepdim=True).values
    none = torch.empty(count, 0, dtype=torch.int64)  # the original has no sentence views
    volumes = torch.stack([torch.from_numpy(recipe.volume(patient)).to(dtype) for patient in range(count)])
    return Batch(
        volume=volumes[:, None],
        patch_mask=torch.from_numpy(recipe.patch_mask()).expand(count, -1, -1, -1),
        report_ids=text["ids"], attention_mask=real, sentence_index=index,
        sentence_mask=sentences, sentence_polarity=sentences.to(torch.int8),
        mlm_ids=text["masked_ids"], mlm_labels=text["labels"], mlm_positions=label_positions(text["labels"]),
        view_ids=none[..., None], view_attention_mask=none[..., None].bool(), view_sentence_index=none[..., None],
        patient_key=torch.arange(count), report_key=torch.arange(count), view_key=none,
        labels=torch.zeros(count, 18, dtype=torch.int8), study_id=[str(patient) for patient in range(count)],
    )  # fmt: skip


def one_patient(batch, patient):
    """The batch of this patient alone."""
    rows = {name: value[patient : patient + 1] for name, value in batch._asdict().items()}
    return batch._replace(**rows)


class Encoded:
    """Encoder outputs of the three patients, clean and with masked patches, each computed once and alone.

    pyramid: feature maps of patient 0, clean. Of the same call, merged: input and output of the first patch merging; last: the
    last map before its normalization.
    """

    @torch.no_grad()
    def __init__(self, dtype):
        self.dtype, self.batch, encoder = dtype, batch(dtype), swin_b(dtype)
        self.inputs, self.maps = [], []
        mask = torch.from_numpy(recipe.voxel_mask())
        self._watch(encoder)
        for volumes in (self.batch.volume, self.batch.volume.masked_fill(mask, 0.0)):
            for volume in volumes:
                maps = encoder(volume[None])
                self.pyramid = getattr(self, "pyramid", maps)
                self.inputs.append(volume)
                self.maps.append(maps[-1][0])

    def _watch(self, encoder):
        def keep(name, value):
            if not hasattr(self, name):
                setattr(self, name, value)

        encoder.layers1[0].downsample.register_forward_hook(lambda module, inputs, out: keep("merged", (inputs[0], out)))
        encoder.layers4[0].downsample.register_forward_hook(lambda module, inputs, out: keep("last", out.movedim(-1, 1)))


class Replay(nn.Module):
    """Replaces the encoder: returns its outputs for the recorded volumes, and refuses other volumes."""

    mask_token, stride, channels, patch_size = None, (32, 32, 32), 768, (2, 2, 2)

    def __init__(self, encoded):
        super().__init__()
        self.encoded = encoded

    def grid(self, volume_shape):
        return tuple(side // step for side, step in zip(volume_shape, self.stride))

    def encode(self, volume, mask=None):
        assert mask is None, "the released encoder has no mask token"
        return torch.stack([self._map(single) for single in volume])

    def _map(self, volume):
        return next(output for known, output in zip(self.encoded.inputs, self.encoded.maps) if torch.equal(known, volume))
