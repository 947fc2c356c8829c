"""The Swin-B encoder alone, on the first patient's volume."""

import numpy as np
import pytest
import torch
from golden.harness import recorded, swin_b

STAGES = range(5)
SLICES = {1: np.s_[0, :8, ::8, ::8, ::8], 2: np.s_[0, :8, ::4, ::4, ::4], 3: np.s_[0, :8, ::2, ::2, ::2]}


def golden(stage):
    return recorded("vision_swinb.json")[f"x{stage}"]


def tokens_of(features):
    return features[0].flatten(1).T


def test_swin_b_tokens(encoded, compare, dtype):
    compare(tokens_of(encoded.pyramid[-1]), recorded("vision_swinb.npz")["tokens"], dtype)


def test_swin_b_first_and_last_token(encoded, compare, dtype):
    tokens, stored = tokens_of(encoded.pyramid[-1]), recorded("vision_swinb.json")["tokens"]
    compare(tokens[0, :64], stored["first_token_first64"], dtype)
    compare(tokens[-1, -8:], stored["last_token_last8"], dtype)


def test_swin_b_last_stage_before_it_is_normalised(encoded, compare, dtype):
    compare(tokens_of(encoded.last), recorded("vision_swinb.npz")["x4_unnormalised_tokens"], dtype)
    stored = recorded("vision_swinb.json")["x4_unnormalised"]
    compare(encoded.last.flatten()[:16], stored["first16"], dtype)
    compare(encoded.last.double().mean(), stored["mean"], dtype)
    compare(encoded.last.double().std(correction=0), stored["std"], dtype)


@pytest.mark.parametrize("stage", SLICES)
def test_swin_b_slice_of_a_stage(encoded, compare, dtype, stage):
    compare(encoded.pyramid[stage][SLICES[stage]], recorded("vision_swinb.npz")[f"x{stage}_slice"], dtype)


@pytest.mark.parametrize("stage", STAGES)
def test_swin_b_first_values_of_a_stage(encoded, compare, dtype, stage):
    compare(encoded.pyramid[stage].flatten()[:16], golden(stage)["first16"], dtype)


@pytest.mark.parametrize("stage", STAGES)
def test_swin_b_moments_of_a_stage(encoded, compare, dtype, stage):
    features = encoded.pyramid[stage].double()
    moments = [features.mean(), features.std(correction=0), features.min(), features.max()]
    compare(torch.stack(moments), [golden(stage)[name] for name in ("mean", "std", "min", "max")], dtype)
    compare(features.abs().sum(), golden(stage)["sum_abs"], dtype, scale=golden(stage)["sum_abs"])


def test_the_current_patch_merging_of_monai_gives_other_values(encoded, dtype):
    """From the first merging on, with equal names, shapes and weights."""
    before, legacy = encoded.merged
    present = swin_b(dtype, patch_merging="monai")
    legacy_names = {name: tensor.shape for name, tensor in swin_b(dtype).state_dict().items()}
    assert {name: tensor.shape for name, tensor in present.state_dict().items()} == legacy_names
    other = present.proj_out(present.layers1[0].downsample(before).movedim(-1, 1), normalize=True)
    stored = recorded("vision_swinb.npz")["x1_slice"]
    assert np.abs(other[SLICES[1]].numpy() - stored).max() > 0.1
    assert (other - present.proj_out(legacy.movedim(-1, 1), normalize=True)).abs().max() > 1
