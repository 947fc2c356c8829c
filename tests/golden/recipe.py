"""The closed form behind the recorded numbers: every weight, volume, token and mask from its name and index alone.

The original, repaired just enough to run, was filled with these values and run in float64; what it gave lies in `data`. Filled
with the same values, mg3d must give the same. Nothing here knows mg3d.
"""

import math
import zlib

import numpy as np

VOLUME_SHAPE, CUBE = (128, 96, 128), 16
TOKENS, VOCABULARY = 250, 512
PAD, CLS, SEP, MASK = range(4)
REPORTS = ((0, 1, 2), (1, 3), (0, 4, 6, 5))
"""Numbers of the sentences of each patient's report."""


def noise(word, count):
    """float64 [count] in [-1, 1): a 32-bit mixture of each index and the checksum of `word`."""
    mixed = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(word.encode()))
    for _ in range(2):
        mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x045D9F3B)
    return (mixed ^ (mixed >> np.uint32(16))) / 2.0**31 - 1.0


def weight(released_name, shape):
    """The tensor of this name in the released code, float64; the encoder's are known by their names within it."""
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


def hidden_cubes():
    """bool [8, 6, 8], True = hidden, half of them; the same for every patient."""
    grid = [side // CUBE for side in VOLUME_SHAPE]
    count = math.prod(grid)
    return (np.arange(count) * 37 % count < count // 2).reshape(grid)


def hidden_voxels():
    """bool [D, H, W]."""
    return hidden_cubes().repeat(CUBE, 0).repeat(CUBE, 1).repeat(CUBE, 2)


def block_input(word, *shape):
    """What a block alone is given."""
    return noise("input." + word, math.prod(shape)).reshape(shape)


def sentence(number):
    """Ids of a sentence: 5, 7, 9, ... of them; number 6 is number 1 with two other words."""
    ids = [10 + (37 * (1 if number == 6 else number) + 11 * place) % 490 for place in range(7 if number == 6 else 5 + 2 * number)]
    if number == 6:
        ids[1], ids[4] = (10 + 3 * ids[place] % 490 for place in (1, 4))
    return ids


def reports():
    """int64 [3, T] each: `ids`, `sentence_index` (0-based, -1 = of none), `masked_ids` and `labels` (-100 = not asked)."""
    ids = np.full((len(REPORTS), TOKENS), PAD)
    index = np.full_like(ids, -1)
    for patient, numbers in enumerate(REPORTS):
        words = [sentence(number) for number in numbers]
        flat = [CLS, *(word for one in words for word in one), SEP]
        ids[patient, : len(flat)] = flat
        index[patient, 1 : len(flat) - 1] = np.repeat(np.arange(len(words)), [len(one) for one in words])
    asked = (5 * np.arange(TOKENS) + np.arange(len(REPORTS))[:, None]) % 7 == 0
    asked &= index >= 0
    return {
        "ids": ids,
        "sentence_index": index,
        "masked_ids": np.where(asked, MASK, ids),
        "labels": np.where(asked, ids, -100),
    }
