"""Every loss: gradients against finite differences, value and gradient against loops over patients."""

import pytest
import torch
from slow_losses import (
    slow_captioning,
    slow_cml,
    slow_info_nce,
    slow_mim,
    slow_mlm,
    slow_released_ssm,
    slow_sal,
    slow_sigmoid,
    slow_ssm,
)

from mg3d.losses.captioning import CaptionLoss
from mg3d.losses.cml import CMLLoss
from mg3d.losses.dcl import DCLLoss
from mg3d.losses.mim import MIMLoss
from mg3d.losses.mlm import MLMLoss
from mg3d.losses.released import ReleasedCMLLoss, ReleasedDCLLoss, ReleasedSALLoss, ReleasedSSMLoss
from mg3d.losses.sal import SALLoss
from mg3d.losses.ssm import SSMLoss
from mg3d.models.token_loss import token_losses

LENGTHS = (3, 1, 2)
PATIENTS, REPORTS, VIEWS = torch.tensor([7, 8, 7, 9]), torch.tensor([1, 2, 3, 2]), torch.tensor([[1, 2], [3, 4], [5, 6], [1, 7]])
POLARITY = torch.tensor([[1, -1, 1, 0], [1, 0, 0, 0], [-1, 1, 0, 0]], dtype=torch.int8)
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
PATCHES = torch.zeros(2, 2, 1, 3, dtype=torch.bool).index_put_(
    tuple(torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 0], [1, 2, 0]])), torch.tensor(True)
)
TOKENS = torch.tensor([4, 0, 2, 2])
NEXT = torch.tensor([[4, 0, 2, 1], [3, -100, -100, -100], [1, 1, 0, -100]])


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape, seed):
    return torch.nn.functional.normalize(random(*shape, seed=seed), dim=-1)


SCALE = torch.tensor(4.0, dtype=torch.float64)
VOLUME = random(2, 1, 4, 3, 6, seed=1)
TEXT = random(3, 4, 5, seed=2)
TEXT[1, 0] = 1.5 * TEXT[0, 2]
TEXT[2, 1] = TEXT[0, 0] + 0.05
FULL = (MASK, POLARITY, torch.tensor([7, 8, 9]))


KEYS = (PATIENTS.tolist(), REPORTS.tolist())
ROWS = {"patient_key": PATIENTS, "report_key": REPORTS}
BIAS = torch.tensor(-1.5, dtype=torch.float64)
PAIR = (unit(4, 6, seed=3), unit(4, 6, seed=4))


def cml(views):
    """With `views` views per report."""
    keys = VIEWS[:, :views]

    def slow(first, second, scale, embedded):
        return slow_cml(first, second, embedded.unbind(1), scale, *KEYS, view_keys=keys.T.tolist())

    return (
        lambda first, second, scale, embedded: CMLLoss()(first, second, scale, None, embedded, **ROWS, view_key=keys),
        slow,
        (*PAIR, SCALE, unit(4, views, 6, seed=12)),
    )


EXTRA_KEYS = {
    "negative_patient_key": torch.tensor([[20, 21], [22, 23], [24, 25], [7, 26]]),
    "negative_report_key": torch.tensor([[30, 31], [30, 2], [32, 33], [34, 35]]),
}
"""One report is sampled twice, one equals a report of the batch, one is of a patient of the batch."""


def cml_with_extra_negatives(slow, *calibration):
    def rows(extra):
        rows = list(zip(extra.flatten(0, 1), zip(*(key.flatten().tolist() for key in EXTRA_KEYS.values()))))
        return rows[:2] + rows[3:]  # the third is the first again

    return (
        lambda image, report, extra, *rest: CMLLoss()(image, report, *rest, **ROWS, **EXTRA_KEYS, negative_embedding=extra),
        lambda image, report, extra, *rest: slow(image, report, *rest, *KEYS, extra=rows(extra)),
        (*PAIR, unit(4, 2, 6, seed=14), *calibration),
    )


def cml_sigmoid():
    def slow(image, report, scale, bias, views):
        slots = [slow_sigmoid(image, views[:, k], scale, bias, *KEYS, VIEWS[:, k].tolist()) for k in range(2)]
        return (slow_sigmoid(image, report, scale, bias, *KEYS) + sum(slots) / 2) / 2

    return lambda *values: CMLLoss()(*values, **ROWS, view_key=VIEWS), slow, (*PAIR, SCALE, BIAS, unit(4, 2, 6, seed=12))


def captioning(smoothing):
    return (
        lambda logits: CaptionLoss()(
            token_losses(torch.nn.Identity(), logits, NEXT, label_smoothing=smoothing, chunk=5).sum(1), (NEXT >= 0).sum(1)
        ),
        lambda logits: slow_captioning(logits, NEXT, smoothing),
        (random(3, 4, 5, seed=13),),
    )


def sal(loss, per):
    return (
        lambda prediction, target: loss(prediction, target, MASK),
        lambda prediction, target: slow_sal(prediction, target, LENGTHS, per=per),
        (random(3, 4, 5, seed=5), random(3, 4, 5, seed=6)),
    )


def ssm(patients):
    return (
        lambda visual: SSMLoss()(visual, TEXT, MASK, POLARITY, torch.tensor(patients)),
        lambda visual: slow_ssm(visual, TEXT, LENGTHS, POLARITY.tolist(), patients),
        (random(3, 4, 5, seed=9),),
    )


CASES = {
    "mlm": (
        lambda logits: MLMLoss()(torch.nn.functional.cross_entropy(logits, TOKENS, reduction="none")[None], torch.tensor([4])),
        lambda logits: slow_mlm(logits, TOKENS),
        (random(4, 5, seed=7),),
    ),
    "captioning": captioning(0.0),
    "captioning smoothed": captioning(0.3),
    "sal per sentence": sal(SALLoss(), "sentence"),
    "sal per patient": sal(ReleasedSALLoss(), "patient"),
    "mim": (
        lambda prediction: MIMLoss()(prediction, VOLUME, PATCHES),
        lambda prediction: slow_mim(prediction, VOLUME, PATCHES, (2, 3, 2)),
        (random(2, 1, 4, 3, 6, seed=8),),
    ),
    "cml": (lambda *values: CMLLoss()(*values, **ROWS), lambda *values: slow_info_nce(*values, *KEYS), (*PAIR, SCALE)),
    "cml with one view": cml(1),
    "cml with views": cml(2),
    "cml with extra negatives": cml_with_extra_negatives(slow_info_nce, SCALE),
    "cml sigmoid": cml_sigmoid(),
    "cml sigmoid with extra negatives": cml_with_extra_negatives(slow_sigmoid, SCALE, BIAS),
    "dcl": (lambda *values: DCLLoss()(*values, **ROWS), lambda *values: slow_info_nce(*values, *KEYS), (*PAIR, SCALE)),
    "dcl sigmoid": (
        lambda *values: DCLLoss()(*values, **ROWS), lambda *values: slow_sigmoid(*values, *KEYS), (*PAIR, SCALE, BIAS),
    ),
    "released cml": (ReleasedCMLLoss(), lambda *values: slow_info_nce(*values, 10.0), PAIR),
    "released dcl": (ReleasedDCLLoss(), lambda *values: slow_info_nce(*values, 10.0), PAIR),
    "ssm": ssm([7, 8, 9]),
    "ssm of two patients": ssm([7, 8, 7]),
    "released ssm": (
        lambda visual: ReleasedSSMLoss()(visual, TEXT, MASK),
        lambda visual: slow_released_ssm(visual, TEXT, LENGTHS),
        (random(3, 4, 5, seed=10),),
    ),
}  # fmt: skip


def leaves(values):
    return tuple(value.clone().requires_grad_() for value in values)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_finite_differences(name):
    loss, _, values = CASES[name]
    assert torch.autograd.gradcheck(loss, leaves(values), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_loops(name):
    loss, slow, values = CASES[name]
    fast_leaves, slow_leaves = leaves(values), leaves(values)
    fast, reference = loss(*fast_leaves), slow(*slow_leaves)
    assert reference > 0.01
    torch.testing.assert_close(fast, reference)
    for ours, theirs in zip(torch.autograd.grad(fast, fast_leaves), torch.autograd.grad(reference, slow_leaves)):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs)


ONE_ROW = {name: key[:1] for name, key in ROWS.items()}
ALONE = {
    "cml": lambda x: CMLLoss()(x[0, :1], x[0, 1:2], SCALE, **ONE_ROW),
    "cml with views": lambda x: CMLLoss()(x[0, :1], x[0, 1:2], SCALE, None, x[:1, 2:], **ONE_ROW, view_key=VIEWS[:1]),
    "dcl": lambda x: DCLLoss()(x[0, :1], x[0, 1:2], SCALE, **ONE_ROW),
    "captioning without tokens": lambda x: CaptionLoss()(0 * x[:, 0, 0], torch.zeros(3, dtype=torch.int64)),
    "ssm": lambda x: SSMLoss()(x[:1], TEXT[:1], *(one[:1] for one in FULL)),
    "released ssm": lambda x: ReleasedSSMLoss()(x[:1], TEXT[:1], MASK[:1]),
    "mlm without masked tokens": lambda x: MLMLoss()(x[0, :, :0], torch.zeros(4, dtype=torch.int64)),
    "mim without masked patches": lambda x: MIMLoss()(x[None, None], TEXT[None, None], torch.zeros(1, 1, 2, 1).bool()),
    "sal without sentences": lambda x: SALLoss()(x, 2 * x, torch.zeros(3, 4, dtype=torch.bool)),
}


@pytest.mark.parametrize("name", ALONE)
def test_with_nothing_to_compare_value_and_gradient_are_zero(name):
    values = unit(3, 4, 5, seed=11).requires_grad_()
    loss = ALONE[name](values)
    loss.backward()
    assert loss.abs() < 1e-12
    assert values.grad.abs().max() < 1e-12


def test_cosines_of_zero_vectors_have_a_finite_gradient():
    """An empty sentence leaves a zero vector behind its mask."""
    zero = torch.zeros(3, 4, 5, dtype=torch.float64)
    for loss in (
        lambda x: SALLoss()(x, TEXT, MASK),
        lambda x: SALLoss()(TEXT, x, MASK),
        lambda x: SSMLoss()(x, TEXT, *FULL),
        lambda x: ReleasedSSMLoss()(x, TEXT, MASK),
    ):
        (leaf,) = leaves([zero])
        loss(leaf).backward()
        assert leaf.grad.isfinite().all()
