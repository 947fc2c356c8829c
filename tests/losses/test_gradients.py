"""Every loss: its gradient against finite differences, and value and gradient against loops over patients."""

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
from mg3d.losses.sal import SALLoss
from mg3d.losses.ssm import SSMLoss

LENGTHS = (3, 1, 2)
PATIENTS, REPORTS, VIEWS = torch.tensor([7, 8, 7, 9]), torch.tensor([1, 2, 3, 2]), torch.tensor([[1, 2], [3, 4], [5, 6], [1, 7]])
POLARITY = torch.tensor([[1, -1, 1, 0], [1, 0, 0, 0], [-1, 1, 0, 0]], dtype=torch.int8)
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
CUBES = torch.zeros(2, 2, 1, 3, dtype=torch.bool).index_put_(
    tuple(torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 0], [1, 2, 0]])), torch.tensor(True)
)
WORDS = torch.tensor([4, 0, 2, 2])
NEXT = torch.tensor([[4, 0, 2, 1], [3, -100, -100, -100], [1, 1, 0, -100]])


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape, seed):
    return torch.nn.functional.normalize(numbers(*shape, seed=seed), dim=-1)


SCALE = torch.tensor(4.0, dtype=torch.float64)
VOLUME = numbers(2, 1, 4, 3, 6, seed=1)
TEXT = numbers(3, 4, 5, seed=2)
TEXT[1, 0] = 1.5 * TEXT[0, 2]
TEXT[2, 1] = TEXT[0, 0] + 0.05
FULL = (MASK, POLARITY, torch.tensor([7, 8, 9]))


def dcl(exclude):
    keys = (PATIENTS.tolist(), REPORTS.tolist()) if exclude else ()
    loss = DCLLoss(exclude_duplicates=exclude)
    return (
        lambda *values: loss(*values, patient_key=PATIENTS, report_key=REPORTS),
        lambda *values: slow_info_nce(*values, *keys),
        (unit(4, 6, seed=3), unit(4, 6, seed=4), SCALE),
    )


def cml(exclude, views):
    """With `views` views of each report, or (None) without the input."""
    keys = (PATIENTS.tolist(), REPORTS.tolist()) if exclude else ()
    asked = {"patient_key": PATIENTS, "report_key": REPORTS, "view_key": VIEWS[:, :views]}
    view_keys = asked["view_key"].T.tolist() if exclude else []
    loss, both = CMLLoss(exclude_duplicates=exclude), (unit(4, 6, seed=3), unit(4, 6, seed=4))
    if views is None:
        return (
            lambda first, second, scale: loss(first, second, None, scale, **asked),
            lambda *values: slow_info_nce(*values, *keys),
            (*both, SCALE),
        )
    return (
        lambda *values: loss(*values, **asked),
        lambda first, second, apart, scale: slow_cml(first, second, apart.unbind(1), scale, *keys, view_keys=view_keys),
        (*both, unit(4, views, 6, seed=12), SCALE),
    )


def captioning(smoothing):
    return (
        lambda logits: CaptionLoss(smoothing=smoothing)(logits, NEXT),
        lambda logits: slow_captioning(logits, NEXT, smoothing),
        (numbers(3, 4, 5, seed=13),),
    )


BIAS = torch.tensor(-1.5, dtype=torch.float64)


def dcl_sigmoid(exclude):
    keys = (PATIENTS.tolist(), REPORTS.tolist()) if exclude else ()
    loss = DCLLoss(exclude_duplicates=exclude)
    return (
        lambda *values: loss(*values, patient_key=PATIENTS, report_key=REPORTS),
        lambda *values: slow_sigmoid(*values, *keys),
        (unit(4, 6, seed=3), unit(4, 6, seed=4), SCALE, BIAS),
    )


def cml_sigmoid():
    def slow(image, report, views, scale, bias):
        keys = (PATIENTS.tolist(), REPORTS.tolist())
        slots = [slow_sigmoid(image, views[:, k], scale, bias, *keys, VIEWS[:, k].tolist()) for k in range(2)]
        return (slow_sigmoid(image, report, scale, bias, *keys) + sum(slots) / 2) / 2

    asked = {"patient_key": PATIENTS, "report_key": REPORTS, "view_key": VIEWS}
    values = (unit(4, 6, seed=3), unit(4, 6, seed=4), unit(4, 2, 6, seed=12), SCALE, BIAS)
    return lambda *values: CMLLoss()(*values, **asked), slow, values


def sal(per):
    return (
        lambda prediction, target: SALLoss(per=per)(prediction, target, MASK),
        lambda prediction, target: slow_sal(prediction, target, LENGTHS, per=per),
        (numbers(3, 4, 5, seed=5), numbers(3, 4, 5, seed=6)),
    )


CASES = {
    "mlm": (
        lambda logits: MLMLoss()(torch.nn.functional.cross_entropy(logits, WORDS, reduction="none")),
        lambda logits: slow_mlm(logits, WORDS),
        (numbers(4, 5, seed=7),),
    ),
    "captioning": captioning(0.0),
    "captioning smoothed": captioning(0.3),
    "sal per sentence": sal("sentence"),
    "sal per patient": sal("patient"),
    "mim": (
        lambda prediction: MIMLoss()(prediction, VOLUME, CUBES),
        lambda prediction: slow_mim(prediction, VOLUME, CUBES, (2, 3, 2)),
        (numbers(2, 1, 4, 3, 6, seed=8),),
    ),
    "cml": cml(True, None),
    "cml with duplicates": cml(False, None),
    "cml with one view": cml(True, 1),
    "cml with views": cml(True, 2),
    "cml with views and duplicates": cml(False, 2),
    "cml sigmoid": cml_sigmoid(),
    "dcl sigmoid": dcl_sigmoid(True),
    "dcl sigmoid with duplicates": dcl_sigmoid(False),
    "dcl": dcl(True),
    "dcl with duplicates": dcl(False),
    "ssm two means": (
        lambda visual: SSMLoss()(visual, TEXT, *FULL),
        lambda visual: slow_ssm(visual, TEXT, LENGTHS, POLARITY.tolist(), [7, 8, 9]),
        (numbers(3, 4, 5, seed=9),),
    ),
    "ssm pair mean": (
        lambda visual: SSMLoss(form="pair_mean")(visual, TEXT, *FULL),
        lambda visual: slow_released_ssm(visual, TEXT, LENGTHS),
        (numbers(3, 4, 5, seed=10),),
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


KEYS = {"patient_key": PATIENTS[:1], "report_key": REPORTS[:1], "view_key": VIEWS[:1]}
ALONE = {
    "cml": lambda x: CMLLoss()(x[0, :1], x[0, 1:2], None, SCALE, **KEYS),
    "cml with views": lambda x: CMLLoss()(x[0, :1], x[0, 1:2], x[:1, 2:], SCALE, **KEYS),
    "dcl": lambda x: DCLLoss()(x[0, :1], x[0, 1:2], SCALE, patient_key=PATIENTS[:1], report_key=REPORTS[:1]),
    "captioning": lambda x: CaptionLoss()(x, torch.full((3, 4), -100)),
    "ssm two means": lambda x: SSMLoss()(x[:1], TEXT[:1], *(one[:1] for one in FULL)),
    "ssm pair mean": lambda x: SSMLoss(form="pair_mean")(x[:1], TEXT[:1], *(one[:1] for one in FULL)),
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
        lambda x: SSMLoss(form="pair_mean")(x, TEXT, *FULL),
    ):
        (leaf,) = leaves([zero])
        loss(leaf).backward()
        assert leaf.grad.isfinite().all()
