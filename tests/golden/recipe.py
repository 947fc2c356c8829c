"""Closed-form inputs of the recorded results: weights, volumes, tokens and masks are functions of their name and index.

The original code, repaired just enough to run, was filled with these values and run in float64; its outputs are in `data`. With
the same values, mg3d must give the same outputs. This module does not depend on mg3d.
"""

import math
import zlib
from itertools import chain

import numpy as np

VOLUME_SHAPE, PATCH = (128, 96, 128), 16
TOKENS, VOCABULARY = 250, 512
PAD, CLS, SEP, MASK = range(4)
REPORTS = ((0, 1, 2), (1, 3), (0, 4, 6, 5))
"""Sentences of each patient's report, by number."""


def noise(name, count):
    """float64 [count] in [-1, 1): a 32-bit hash of each index and the checksum of `name`."""
    mixed = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(name.encode()))
    for _ in range(2):
        mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x045D9F3B)
    return (mixed ^ (mixed >> np.uint32(16))) / 2.0**31 - 1.0


def weight(released_name, shape):
    """The tensor of this name in the released code, float64; names of the encoder without their prefix."""
    name = released_name.removeprefix("vision_encoder.")
    values = noise(name, math.prod(shape)).reshape(shape)
    if len(shape) < 2:
        return 1 + values / 10 if name.endswith("weight") else values / 20
    if name.endswith("relative_position_bias_table"):
        return values / 5
    if "position_embeddings" in name or "token_type_embeddings" in name:
        return values / 20
    if "embeddings" in name:
        return values / 2
    return values * math.sqrt(3 / math.prod(shape[1:]))


def volume(patient):
    """float64 [D, H, W] of a patient: waves along each axis, and noise."""
    z, y, x = np.ogrid[tuple(slice(0, side) for side in VOLUME_SHAPE)]
    turn = 2 * np.pi
    waves = np.sin(turn * z / 37 + patient) * np.cos(turn * y / 29) * np.sin(turn * x / 41 + 0.5)
    return 0.5 + 0.3 * waves + 0.1 * noise(f"volume{patient}", math.prod(VOLUME_SHAPE)).reshape(VOLUME_SHAPE)


def patch_mask():
    """bool [8, 6, 8], True = masked, half of them; the same for every patient."""
    grid = [side // PATCH for side in VOLUME_SHAPE]
    count = math.prod(grid)
    return (np.arange(count) * 37 % count < count // 2).reshape(grid)


def voxel_mask():
    """bool [D, H, W]."""
    return patch_mask().repeat(PATCH, 0).repeat(PATCH, 1).repeat(PATCH, 2)


def block_input(name, *shape):
    """Input of a single block."""
    return noise("input." + name, math.prod(shape)).reshape(shape)


def sentence(number):
    """Token ids of a sentence: 5, 7, 9, ... of them; sentence 6 is sentence 1 with two other words."""
    if number == 6:
        ids = sentence(1)
        ids[1], ids[4] = (10 + 3 * ids[position] % 490 for position in (1, 4))
        return ids
    return [10 + (37 * number + 11 * position) % 490 for position in range(5 + 2 * number)]


def reports():
    """int64 [3, T] each: `ids`, `sentence_index` (0-based, -1 = none), `masked_ids` and `labels` (-100 = not predicted)."""
    ids = np.full((len(REPORTS), TOKENS), PAD)
    index = np.full_like(ids, -1)
    for patient, numbers in enumerate(REPORTS):
        sentences = [sentence(number) for number in numbers]
        flat = [CLS, *chain(*sentences), SEP]
        ids[patient, : len(flat)] = flat
        index[patient, 1 : len(flat) - 1] = np.repeat(np.arange(len(sentences)), [len(tokens) for tokens in sentences])
    predicted = (5 * np.arange(TOKENS) + np.arange(len(REPORTS))[:, None]) % 7 == 0
    predicted &= index >= 0
    return {
        "ids": ids,
        "sentence_index": index,
        "masked_ids": np.where(predicted, MASK, ids),
        "labels": np.where(predicted, ids, -100),
    }
