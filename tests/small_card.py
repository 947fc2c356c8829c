"""A card of a few volumes, and a model by hand that knows left from right, for tests."""

import dataclasses
import re

import numpy as np
import torch
from small_arrow import write_split

from mg3d.evaluation.cards import find_card
from mg3d.glossary import LABELS

WINDOW = (-1000.0, 1000.0)


def small_card(**changes):
    """Of the 3 patients, 6 studies and 12 volumes that `write` writes; the index files say neither crop nor true labels."""
    facts = {"volumes": 12, "studies": 6, "patients": 3, "label_source": "test", "crop": "not told", "rule": "ct_rate_train"}
    return dataclasses.replace(find_card("phantom"), **{"ids_sha256": None, "labels_sha256": None, **facts, **changes})


def write(folder, **changes):
    write_split(folder, "ct_rate", "train", **{"patients": 3, "scans": 2, "reconstructions": 2, **changes})
    return folder


def bright_side(number, shape):
    """HU brighter on the left (+x) for odd numbers, on the right for even ones, by more the larger the number."""
    voxels = np.full(shape, -500, np.int16)
    half = slice(shape[2] // 2, None) if number % 2 else slice(0, shape[2] // 2)
    voxels[:, :, half] += np.int16(100 + 10 * number)
    return voxels


class SideEmbedder:
    """Volumes by the share of brightness that is on the left; a finding of even place is there when it is, of odd when it is not.

    So it is always right on volumes of `bright_side`, whose labels `write_split` alternates.
    """

    logit_scale = 10.0

    def volumes(self, volumes):
        side = volumes.shape[-1] // 2
        left, right = volumes[..., side:].mean((1, 2, 3, 4)), volumes[..., :side].mean((1, 2, 3, 4))
        return torch.nn.functional.normalize(torch.stack([left, right], 1), dim=1)

    def texts(self, texts):
        return torch.tensor([[1.0, 0.0] if self._on_left(text.report) else [0.0, 1.0] for text in texts])

    def _on_left(self, text):
        study = re.search(r"in study (\d+)", text)
        if study:
            return int(study[1]) % 2 == 1
        place = next((p for p, name in enumerate(LABELS) if name.lower() in text.lower()), 0)
        return (place % 2 == 0) != bool(re.search(r"\b(no|not)\b", text.lower()))
