import math

import pytest
import torch
from slow_losses import slow_info_nce, slow_released_ssm, slow_sal, slow_ssm
from torch.nn import functional as F

from mg3d.losses.base import Objective
from mg3d.losses.cml import CMLLoss
from mg3d.losses.contrastive import symmetric_info_nce
from mg3d.losses.dcl import DCLLoss
from mg3d.losses.mim import MIMLoss
from mg3d.losses.mlm import MLMLoss
from mg3d.losses.released import ReleasedSALLoss, ReleasedSSMLoss
from mg3d.losses.sal import SALLoss
from mg3d.losses.ssm import SSMLoss
from mg3d.types import Features

ALL = [MLMLoss(), SALLoss(), MIMLoss(), CMLLoss(), DCLLoss(), SSMLoss()]


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def lengths_to_mask(lengths, most):
    return torch.arange(most) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_every_loss_reads_fields_of_features_and_has_no_parameters(loss):
    assert isinstance(loss, Objective)
    assert set(loss.inputs) <= Features.__annotations__.keys()
    assert not list(loss.parameters())


def test_mlm_is_the_mean_over_masked_tokens():
    logits = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    by_hand = (math.log(3) + math.log(math.exp(2) + 2) - 2) / 2
    token_loss = F.cross_entropy(logits, torch.tensor([1, 0]), reduction="none")
    assert MLMLoss()(token_loss).item() == pytest.approx(by_hand, abs=1e-12)


def test_without_masked_tokens_mlm_is_zero_with_a_graph():
    token_loss = torch.zeros(0, requires_grad=True)
    loss = MLMLoss()(token_loss)
    loss.backward()
    assert loss == 0
    assert token_loss.grad.shape == (0,)


@pytest.mark.parametrize(("loss", "per"), [(SALLoss(), "sentence"), (ReleasedSALLoss(), "patient")])
def test_sal_equals_a_loop_over_sentences(loss, per):
    lengths, prediction, target = (3, 1, 4), unit(3, 4, 5, seed=1) * 2, unit(3, 4, 5, seed=2) * 3
    fast = loss(prediction, target, lengths_to_mask(lengths, 4))
    torch.testing.assert_close(fast, slow_sal(prediction, target, lengths, per=per))


def test_mim_is_the_mean_square_over_masked_voxels():
    prediction, target = torch.zeros(2, 1, 4, 6, 8, dtype=torch.float64), torch.ones(2, 1, 4, 6, 8, dtype=torch.float64)
    target[0, 0, :2, 2:4, 4:6] = 3.0
    cubes = torch.zeros(2, 2, 3, 4, dtype=torch.bool)
    cubes[0, 0, 1, 2] = True  # the 8 voxels of value 3
    cubes[1, 1, 0, 3] = True  # 8 voxels of value 1
    assert MIMLoss()(prediction, target, cubes).item() == pytest.approx((9 + 1) / 2)


def test_mim_without_masked_patches_is_zero():
    volume = torch.rand(1, 1, 2, 4, 6, requires_grad=True)
    loss = MIMLoss()(volume, torch.zeros(1, 1, 2, 4, 6), torch.zeros(1, 1, 2, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("exclude", [True, False])
def test_contrast_equals_a_loop_with_and_without_excluded_pairs(exclude):
    first, second, scale = unit(5, 7, seed=3), unit(5, 7, seed=4), torch.tensor(9.0, dtype=torch.float64)
    patients, reports = torch.tensor([1, 2, 1, 3, 4]), torch.tensor([10, 11, 12, 11, 13])
    fast = symmetric_info_nce(first, second, scale, keys=(patients, reports) if exclude else ())
    keys = (patients.tolist(), reports.tolist()) if exclude else ()
    torch.testing.assert_close(fast, slow_info_nce(first, second, scale, *keys))


def test_perfect_embeddings_have_almost_no_contrast_and_one_patient_none():
    eye, keys = torch.eye(4, dtype=torch.float64), torch.arange(4)
    scale = torch.tensor(100.0, dtype=torch.float64)
    assert CMLLoss()(eye, eye, scale, patient_key=keys, report_key=keys) < 1e-30
    assert DCLLoss()(eye, eye, scale, patient_key=torch.zeros(4, dtype=torch.int64), report_key=keys) == 0


def test_equal_reports_are_not_negatives():
    first, second, scale = unit(4, 6, seed=8), unit(4, 6, seed=9), torch.tensor(7.0, dtype=torch.float64)
    keys = {"patient_key": torch.arange(4), "report_key": torch.tensor([1, 1, 2, 3])}
    expected = symmetric_info_nce(first, second, scale, keys=(keys["report_key"],))
    assert DCLLoss()(first, second, scale, **keys) == CMLLoss()(first, second, scale, **keys) == expected
    assert symmetric_info_nce(first, second, scale) > expected


def test_views_are_contrasted_slot_by_slot_alongside_whole_reports():
    image, whole, views = unit(4, 6, seed=8), unit(4, 6, seed=9), unit(4, 3, 6, seed=10)
    scale, patients, reports = torch.tensor(7.0, dtype=torch.float64), torch.tensor([1, 2, 3, 1]), torch.tensor([5, 6, 6, 7])
    view_keys = torch.tensor([[1, 2, 3], [1, 4, 5], [6, 7, 5], [8, 9, 10]])
    slots = []
    for slot in range(3):
        total = 0.0
        for one, other in ((image, views[:, slot]), (views[:, slot], image)):
            for b in range(4):
                equal = [(key == key[b]).tolist() for key in (patients, reports, view_keys[:, slot])]
                negatives = [c for c in range(4) if c != b and not any(key[c] for key in equal)]
                logits = torch.stack([scale * one[b] @ other[c] for c in (b, *negatives)])
                total = total + torch.logsumexp(logits, 0) - logits[0]
        slots.append(total / 8)
    plain = slow_info_nce(image, whole, scale, patients.tolist(), reports.tolist())
    fast = CMLLoss()(image, whole, scale, None, views, patient_key=patients, report_key=reports, view_key=view_keys)
    torch.testing.assert_close(fast, 0.5 * (plain + sum(slots) / 3))


@pytest.fixture
def sentences():
    lengths = (3, 1, 4, 2)
    visual, text = unit(4, 4, 6, seed=5) * 2, unit(4, 4, 3, seed=6) * 3
    text[1, 0] = 2 * text[0, 1]
    text[2, 3] = text[0, 2] + 0.05
    polarity = torch.tensor([[1, -1, 1, 0], [-1, 0, 0, 0], [1, 1, -1, 1], [-1, 1, 0, 0]], dtype=torch.int8)
    return visual, text, lengths, polarity


def test_ssm_equals_five_loops(sentences):
    visual, text, lengths, polarity = sentences
    patients = [7, 8, 9, 7]
    fast = SSMLoss()(visual, text, lengths_to_mask(lengths, 4), polarity, torch.tensor(patients))
    slow = slow_ssm(visual, text, lengths, polarity.tolist(), patients)
    assert slow > 0.05
    torch.testing.assert_close(fast, slow)


def ssm(loss, visual, text, mask, polarity, patients):
    """Either form; the released one reads neither polarity nor patients."""
    return loss(visual, text, mask) if isinstance(loss, ReleasedSSMLoss) else loss(visual, text, mask, polarity, patients)


@pytest.mark.parametrize("loss", [SSMLoss(), ReleasedSSMLoss()], ids=lambda loss: type(loss).__name__)
def test_padding_does_not_change_ssm_and_one_patient_has_none(sentences, loss):
    visual, text, lengths, polarity = sentences
    mask, patients = lengths_to_mask(lengths, 4), torch.arange(4)
    padded = [F.pad(side, (0, 0, 0, 3), value=5.0) for side in (visual, text)]
    value = ssm(loss, *padded, F.pad(mask, (0, 3)), F.pad(polarity, (0, 3)), patients)
    torch.testing.assert_close(value, ssm(loss, visual, text, mask, polarity, patients))
    assert ssm(loss, *(side[:1] for side in (visual, text, mask, polarity, patients))) == 0


def test_released_ssm_equals_its_loop_over_pairs_of_patients(sentences):
    visual, text, lengths, _ = sentences
    fast = ReleasedSSMLoss()(visual, text, lengths_to_mask(lengths, 4))
    torch.testing.assert_close(fast, slow_released_ssm(visual, text, lengths), atol=1e-12, rtol=0)


def test_ssm_sends_its_gradient_to_real_visual_sentences_only(sentences):
    visual, text, lengths, polarity = sentences
    visual.requires_grad_(), text.requires_grad_()
    mask = lengths_to_mask(lengths, 4)
    SSMLoss()(visual, text, mask, polarity, torch.arange(4)).backward()
    assert text.grad is None
    assert visual.grad[~mask].abs().max() == 0
    assert visual.grad[mask].abs().max() > 0
