"""An evaluation card of a few volumes, and a hand-made encoder that distinguishes left from right."""

import dataclasses
import re

import numpy as np
import torch
from small_arrow import write_split

from mg3d.evaluation.cards import CARDS
from mg3d.glossary import LABELS

WINDOW = (-1000.0, 1000.0)


def small_card(**changes):
    """Card of the 3 patients, 6 studies and 12 volumes of `write`, whose index files have no crop and no true labels."""
    facts = {"volumes": 12, "studies": 6, "patients": 3, "label_source": "test", "crop": "unknown", "rule": "ct_rate_train"}
    return dataclasses.replace(CARDS["phantom"], **{"ids_sha256": None, "labels_sha256": None, **facts, **changes})


def write(folder, **changes):
    write_split(folder, "ct_rate", "train", **{"patients": 3, "scans": 2, "reconstructions": 2, **changes})
    return folder


def bright_side(number, shape):
    """HU brighter on the left (+x) for odd numbers, on the right for even ones; the contrast grows with the number."""
    voxels = np.full(shape, -500, np.int16)
    half = slice(shape[2] // 2, None) if number % 2 else slice(0, shape[2] // 2)
    voxels[:, :, half] += np.int16(100 + 10 * number)
    return voxels


class SideEncoder:
    """Embeds volumes by the brightness of each side: findings of even index are present if the left is brighter, odd ones if not.

    It is always right on volumes of `bright_side`, whose labels alternate in `write_split`.
    """

    logit_scale = 10.0

    def embed_volumes(self, volumes):
        middle = volumes.shape[-1] // 2
        left, right = volumes[..., middle:].mean((1, 2, 3, 4)), volumes[..., :middle].mean((1, 2, 3, 4))
        return torch.nn.functional.normalize(torch.stack([left, right], 1), dim=1)

    def embed_texts(self, texts):
        return torch.tensor([[1.0, 0.0] if self._on_left(text.report) else [0.0, 1.0] for text in texts])

    def _on_left(self, text):
        study = re.search(r"in study (\d+)", text)
        if study:
            return int(study[1]) % 2 == 1
        finding = next((index for index, name in enumerate(LABELS) if name.lower() in text.lower()), 0)
        return (finding % 2 == 0) != bool(re.search(r"\b(no|not)\b", text.lower()))
