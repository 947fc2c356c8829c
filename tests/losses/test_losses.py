"""Values computed by hand and properties of the losses."""

import math

import pytest
import torch
from torch.nn import functional as F

from mg3d.losses.base import Loss
from mg3d.losses.cml import CMLLoss
from mg3d.losses.dcl import DCLLoss
from mg3d.losses.mim import MIMLoss
from mg3d.losses.mlm import MLMLoss
from mg3d.losses.released import ReleasedSSMLoss
from mg3d.losses.sal import SALLoss
from mg3d.losses.ssm import SSMLoss
from mg3d.types import Features

ALL = [MLMLoss(), SALLoss(), MIMLoss(), CMLLoss(), DCLLoss(), SSMLoss()]


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_every_loss_reads_fields_of_features_and_has_no_parameters(loss):
    assert isinstance(loss, Loss)
    assert set(loss.inputs) <= Features.__annotations__.keys()
    assert not list(loss.parameters())


def test_mlm_is_the_mean_over_masked_tokens():
    logits = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    by_hand = (math.log(3) + math.log(math.exp(2) + 2) - 2) / 2
    token_loss = F.cross_entropy(logits, torch.tensor([1, 0]), reduction="none")[None]
    assert MLMLoss()(F.pad(token_loss, (0, 3)), torch.tensor([2])).item() == pytest.approx(by_hand, abs=1e-12)


def test_mim_is_the_mean_square_over_masked_voxels():
    prediction, target = torch.zeros(2, 1, 4, 6, 8, dtype=torch.float64), torch.ones(2, 1, 4, 6, 8, dtype=torch.float64)
    target[0, 0, :2, 2:4, 4:6] = 3.0
    masked = torch.zeros(2, 2, 3, 4, dtype=torch.bool)
    masked[0, 0, 1, 2] = True  # the 8 voxels of value 3
    masked[1, 1, 0, 3] = True  # 8 voxels of value 1
    assert MIMLoss()(prediction, target, masked).item() == pytest.approx((9 + 1) / 2)


def test_perfect_embeddings_have_almost_no_contrast_and_one_patient_none():
    eye, keys = torch.eye(4, dtype=torch.float64), torch.arange(4)
    scale = torch.tensor(100.0, dtype=torch.float64)
    assert CMLLoss()(eye, eye, scale, patient_key=keys, report_key=keys) < 1e-30
    assert DCLLoss()(eye, eye, scale, patient_key=torch.zeros(4, dtype=torch.int64), report_key=keys) == 0


MASK = torch.arange(4) < torch.tensor([3, 1, 4, 2])[:, None]
POLARITY = torch.tensor([[1, -1, 1, 0], [-1, 0, 0, 0], [1, 1, -1, 1], [-1, 1, 0, 0]], dtype=torch.int8)


def released_ssm(visual, text, mask, polarity, patients):
    return ReleasedSSMLoss()(visual, text, mask)


@pytest.mark.parametrize("loss", [SSMLoss(), released_ssm], ids=["paper", "released"])
def test_padding_does_not_change_ssm(loss):
    visual, text, patients = unit(4, 4, 6, seed=5), unit(4, 4, 3, seed=6), torch.arange(4)
    padded = [F.pad(side, (0, 0, 0, 3), value=5.0) for side in (visual, text)]
    value = loss(visual, text, MASK, POLARITY, patients)
    assert value > 0.05
    torch.testing.assert_close(loss(*padded, F.pad(MASK, (0, 3)), F.pad(POLARITY, (0, 3)), patients), value)


def test_the_gradient_of_ssm_reaches_only_real_visual_sentences():
    visual, text = unit(4, 4, 6, seed=5).requires_grad_(), unit(4, 4, 3, seed=6).requires_grad_()
    SSMLoss()(visual, text, MASK, POLARITY, torch.arange(4)).backward()
    assert text.grad is None
    assert visual.grad[~MASK].abs().max() == 0
    assert visual.grad[MASK].abs().max() > 0


KEYS = {"patient_key": torch.arange(4), "report_key": torch.arange(4)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_contrastive_losses_keep_full_precision_under_autocast(dtype):
    """At a scale of 100, logits in bfloat16 are off by up to 0.25."""
    image, report = (unit(4, 6, seed=seed, dtype=torch.float32).requires_grad_() for seed in (5, 6))
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            cml = CMLLoss()(image, report, torch.tensor(100.0), **KEYS)
            ssm = SSMLoss()(unit(4, 4, 8).float(), unit(4, 4, 3).float(), MASK, POLARITY, KEYS["patient_key"])
        found.append((cml, ssm, *torch.autograd.grad(cml, image)))
    for plain, mixed in zip(*found, strict=True):
        assert torch.equal(plain, mixed)


def test_embeddings_in_half_precision_are_compared_in_float32():
    half = [unit(4, 6, seed=seed, dtype=torch.bfloat16) for seed in (5, 6)]
    value = CMLLoss()(*half, torch.tensor(2.0), **KEYS)
    assert value.dtype == torch.float32
    assert torch.equal(value, CMLLoss()(*(rows.float() for rows in half), torch.tensor(2.0), **KEYS))
