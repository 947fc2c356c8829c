"""Extra report negatives of CML against loops over pairs, and CML under autocast."""

import pytest
import torch
from torch.nn import functional as F

from mg3d.losses.cml import CMLLoss, _is_first_occurrence
from mg3d.losses.contrastive import ExtraNegatives, contrastive_loss
from mg3d.losses.ssm import SSMLoss

ROWS, EXTRA, WIDTH = 4, 4, 6


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def slow_contrast(first, second, scale, bias, *, keys, extra):
    """extra: (vector, its keys); a pair that shares a key does not count."""
    total = 0.0
    for anchors, answers, beyond in ((first, second, extra), (second, first, ())):
        for b, anchor in enumerate(anchors):
            negatives = [answers[j] for j in range(len(answers)) if j != b and all(key[j] != key[b] for key in keys)]
            more = [vector for vector, its in beyond if all(one != key[b] for one, key in zip(its, keys, strict=True))]
            logits = [scale * anchor @ vector for vector in (answers[b], *negatives, *more)]
            if bias is None:
                total = total - logits[0] + torch.logsumexp(torch.stack(logits), 0)
            elif anchors is first:  # the sigmoid loss counts each pair once
                total = total + F.softplus(-(logits[0] + bias)) + sum(F.softplus(logit + bias) for logit in logits[1:])
    return total / (len(first) * (2 if bias is None else 1))


@pytest.mark.parametrize("bias", [None, -1.5])
def test_extra_reports_are_negatives_unless_they_share_a_key(bias):
    first, second, reports = (unit(n, WIDTH, seed=seed) for seed, n in enumerate((ROWS, ROWS, EXTRA)))
    keys = (torch.tensor([1, 2, 3, 1]), torch.tensor([11, 12, 13, 14]))
    report_keys, mask = (torch.tensor([2, 7, 8, 0]), torch.tensor([30, 13, 31, 0])), torch.tensor([True, True, True, False])
    scale, offset = torch.tensor(3.0, dtype=torch.float64), None if bias is None else torch.tensor(bias, dtype=torch.float64)
    loss = contrastive_loss(first, second, scale, offset, keys=keys, extra=ExtraNegatives(reports, report_keys, mask))
    extra = [(reports[x], [key[x] for key in report_keys]) for x in range(3)]
    torch.testing.assert_close(loss, slow_contrast(first, second, scale, offset, keys=keys, extra=extra))
    assert loss > contrastive_loss(first, second, scale, offset, keys=keys)


def test_the_first_of_equal_keys_counts():
    for keys in (torch.randint(5, (40,), generator=torch.Generator().manual_seed(0)), torch.arange(3), torch.empty(0)):
        expected = [key not in keys[:index].tolist() for index, key in enumerate(keys.tolist())]
        assert _is_first_occurrence(keys).tolist() == expected


def cml_inputs():
    return {
        "cml_image_embedding": unit(ROWS, WIDTH, seed=5), "cml_report_embedding": unit(ROWS, WIDTH, seed=6),
        "cml_view_embedding": None, "cml_logit_scale": torch.tensor(2.0, dtype=torch.float64),
        "patient_key": torch.arange(ROWS), "report_key": 10 + torch.arange(ROWS),
        "view_key": torch.empty(ROWS, 0, dtype=torch.int64),
    }  # fmt: skip


def in_type(fields, dtype):
    """Floating-point fields in this type."""
    return {name: value.to(dtype) if value is not None and value.is_floating_point() else value for name, value in fields.items()}


def test_a_report_sampled_twice_counts_once_and_the_own_patient_never():
    batch, extra = cml_inputs(), unit(ROWS, 2, WIDTH, seed=7)
    patients, reports = torch.tensor([[20, 21], [22, 23], [24, 25], [0, 26]]), 30 + torch.arange(8).view(4, 2)
    named = {"negative_embedding": extra, "negative_patient_key": patients, "negative_report_key": reports}
    value = CMLLoss()(**batch, **named)
    twice = {**named, "negative_report_key": torch.where(reports == 31, 30, reports)}
    assert CMLLoss()(**batch, **twice) < value
    own = {**named, "negative_patient_key": torch.zeros_like(patients)}
    assert not torch.equal(CMLLoss()(**batch, **own), value)
    all_equal = {**named, "negative_report_key": torch.full_like(reports, 10)}
    by_hand = slow_contrast(
        batch["cml_image_embedding"], batch["cml_report_embedding"], 2.0, None, keys=(range(ROWS), range(10, 10 + ROWS)),
        extra=[(extra[0, 0], (20, 10))],
    )  # fmt: skip
    torch.testing.assert_close(CMLLoss()(**batch, **all_equal), by_hand)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_contrastive_losses_keep_full_precision_under_autocast(dtype):
    """At a scale of 100, logits in bfloat16 are off by up to 0.25."""
    image = unit(ROWS, WIDTH, seed=5).float().requires_grad_()
    batch = in_type(cml_inputs(), torch.float32) | {"cml_image_embedding": image, "cml_logit_scale": torch.tensor(100.0)}
    sides = (unit(ROWS, 4, 8, seed=1).float(), unit(ROWS, 4, 3, seed=2).float(), torch.ones(ROWS, 4, dtype=torch.bool))
    found = []
    for mixed in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=mixed):
            cml = CMLLoss()(**batch)
            ssm = SSMLoss()(*sides, torch.ones(ROWS, 4, dtype=torch.int8), torch.arange(ROWS))
        found.append((cml, ssm, *torch.autograd.grad(cml, image)))
    for plain, mixed in zip(*found, strict=True):
        assert torch.equal(plain, mixed)


def test_embeddings_in_half_precision_are_compared_in_float32():
    half = in_type(cml_inputs(), torch.bfloat16)
    value = CMLLoss()(**half)
    assert value.dtype == torch.float32
    assert torch.equal(value, CMLLoss()(**in_type(half, torch.float32)))
