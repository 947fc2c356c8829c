"""Wrong answers beyond the batch: further reports and the queue, against loops over pairs."""

import pytest
import torch
from slow_losses import slow_ssm
from torch.nn import functional as F

from mg3d.losses.cml import CMLLoss, _is_first_of_its_text
from mg3d.losses.contrastive import More, Others, contrast
from mg3d.losses.ssm import SSMLoss
from mg3d.types import QueueRows

ROWS, WIDTH, FURTHER, QUEUED, SENTENCES = 4, 6, 3, 5, 7


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def slow_contrast(first, second, scale, bias, *, keys, to_second=(), to_first=()):
    """(vector, its keys) beyond the rows; a pair that agrees in a key does not count."""
    total = 0.0
    for anchors, answers, beyond in ((first, second, to_second), (second, first, to_first)):
        for b, anchor in enumerate(anchors):
            wrong = [answers[j] for j in range(len(answers)) if j != b and all(key[j] != key[b] for key in keys)]
            further = [vector for vector, its in beyond if all(one != key[b] for one, key in zip(its, keys, strict=True))]
            logits = [scale * anchor @ vector for vector in (answers[b], *wrong, *further)]
            if bias is None:
                total = total - logits[0] + torch.logsumexp(torch.stack(logits), 0)
                continue
            inside = (len(wrong) + 1) if anchors is first else 0  # each pair of the batch once, those beyond from their side
            pairs = logits[:inside] + logits[len(wrong) + 1 :]
            for place, logit in enumerate(pairs):
                total = total + F.softplus(-(logit + bias) if place == 0 and inside else logit + bias)
    return total / (len(first) * (2 if bias is None else 1))


@pytest.mark.parametrize("bias", [None, -1.5])
def test_further_vectors_are_wrong_answers_but_for_the_rows_own(bias):
    first, second, reports, images = (unit(n, WIDTH, seed=s) for s, n in enumerate((ROWS, ROWS, FURTHER, QUEUED)))
    keys = (torch.tensor([1, 2, 3, 1]), torch.tensor([11, 12, 13, 14]))
    report_keys = (torch.tensor([2, 7, 8]), torch.tensor([30, 13, 31]))
    image_keys = (torch.tensor([9, 3, 9, 9, 0]), torch.tensor([40, 41, 12, 42, 0]))
    is_there = torch.tensor([True, True, True, True, False])
    scale, offset = torch.tensor(3.0, dtype=torch.float64), None if bias is None else torch.tensor(bias, dtype=torch.float64)
    more = More(Others(images, image_keys, is_there), Others(reports, report_keys, torch.ones(FURTHER, dtype=torch.bool)))
    expected = slow_contrast(
        first, second, scale, offset, keys=keys,
        to_second=[(reports[x], [key[x] for key in report_keys]) for x in range(FURTHER)],
        to_first=[(images[x], [key[x] for key in image_keys]) for x in range(4)],
    )  # fmt: skip
    found = contrast(first, second, scale, offset, keys=keys, more=more)
    torch.testing.assert_close(found, expected)
    assert found > contrast(first, second, scale, offset, keys=keys)


def test_of_equal_keys_the_first_counts():
    for keys in (torch.randint(5, (40,), generator=torch.Generator().manual_seed(0)), torch.arange(3), torch.empty(0)):
        expected = [key not in keys[:place].tolist() for place, key in enumerate(keys.tolist())]
        assert _is_first_of_its_text(keys).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_contrasts_keep_full_precision_under_autocast(dtype):
    """At a scale of 100, logits in bfloat16 are off by up to .25."""
    batch = in_type(batch_of_cml(), torch.float32)
    image = unit(ROWS, WIDTH, seed=5).float().requires_grad_()
    batch |= {"cml_first_embedding": image, "cml_logit_scale": torch.tensor(100.0)}
    queue = QueueRows(*(part.float() if part.is_floating_point() else part for part in queue_rows([9] * 5)))
    sides = (unit(ROWS, 4, 8, seed=1).float(), unit(ROWS, 4, 3, seed=2).float(), torch.ones(ROWS, 4, dtype=torch.bool))
    found = []
    for mixed in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=mixed):
            total = CMLLoss()(**batch, queue=queue)
            alike = SSMLoss()(*sides, torch.ones(ROWS, 4, dtype=torch.int8), torch.arange(ROWS), queue=queue)
        found.append((total, alike, *torch.autograd.grad(total, image)))
    for plain, mixed in zip(*found, strict=True):
        assert torch.equal(plain, mixed)


def test_embeddings_of_half_precision_are_compared_in_full():
    half = in_type(batch_of_cml(), torch.bfloat16)
    value = CMLLoss()(**half)
    assert value.dtype == torch.float32
    assert torch.equal(value, CMLLoss()(**in_type(half, torch.float32)))


def in_type(fields, dtype):
    """Numbers in this type, keys as they are."""
    return {name: value.to(dtype) if value is not None and value.is_floating_point() else value for name, value in fields.items()}


def batch_of_cml():
    return {
        "cml_first_embedding": unit(ROWS, WIDTH, seed=5).requires_grad_(), "cml_second_embedding": unit(ROWS, WIDTH, seed=6),
        "cml_view_embedding": None, "cml_logit_scale": torch.tensor(2.0, dtype=torch.float64),
        "patient_key": torch.arange(ROWS), "report_key": 10 + torch.arange(ROWS),
        "view_key": torch.empty(ROWS, 0, dtype=torch.int64),
    }  # fmt: skip


def queue_rows(patients, *, seed=8, filled=QUEUED):
    there = torch.arange(QUEUED) < filled
    mask = (torch.arange(SENTENCES) < torch.tensor([2, 7, 1, 3, 4])[:, None]) & there[:, None]
    return QueueRows(
        unit(QUEUED, WIDTH, seed=seed), unit(QUEUED, WIDTH, seed=seed + 1), unit(QUEUED, SENTENCES, 8, seed=seed + 2),
        unit(QUEUED, SENTENCES, 3, seed=seed + 3), mask, torch.where(mask, 1, 0).to(torch.int8), torch.tensor(patients),
        50 + torch.arange(QUEUED), there,
    )  # fmt: skip


def test_a_report_drawn_twice_counts_once_and_the_own_patient_never():
    batch, further = batch_of_cml(), unit(ROWS, 2, WIDTH, seed=7)
    patients, reports = torch.tensor([[20, 21], [22, 23], [24, 25], [0, 26]]), 30 + torch.arange(8).view(4, 2)
    named = {"negative_embedding": further, "negative_patient_key": patients, "negative_report_key": reports}
    value = CMLLoss()(**batch, **named)
    twice = {**named, "negative_report_key": torch.where(reports == 31, 30, reports)}
    assert CMLLoss()(**batch, **twice) < value
    own = {**named, "negative_patient_key": torch.zeros_like(patients)}
    assert not torch.equal(CMLLoss()(**batch, **own), value)
    everyone = {**named, "negative_report_key": torch.full_like(reports, 10)}
    by_hand = slow_contrast(
        batch["cml_first_embedding"], batch["cml_second_embedding"], 2.0, None, keys=(range(ROWS), range(10, 10 + ROWS)),
        to_second=[(further[0, 0], (20, 10))],
    )  # fmt: skip
    torch.testing.assert_close(CMLLoss()(**batch, **everyone), by_hand)


def test_the_queue_serves_both_directions_of_cml_and_an_empty_one_changes_nothing():
    batch, rows = batch_of_cml(), queue_rows([9, 9, 2, 9, 9], filled=4)
    expected = slow_contrast(
        batch["cml_first_embedding"], batch["cml_second_embedding"], 2.0, None, keys=(range(ROWS), range(10, 10 + ROWS)),
        to_second=[(rows.report_embedding[x], (int(rows.patient_key[x]), 50 + x)) for x in range(4)],
        to_first=[(rows.image_embedding[x], (int(rows.patient_key[x]), 50 + x)) for x in range(4)],
    )  # fmt: skip
    torch.testing.assert_close(CMLLoss()(**batch, queue=rows), expected)
    torch.testing.assert_close(CMLLoss()(**batch, queue=queue_rows([9] * 5, filled=0)), CMLLoss()(**batch))


def test_sentences_of_the_queue_are_pairs_of_those_of_the_batch_and_not_of_one_another():
    lengths = [3, 2, 4, 1]
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    visual, text = unit(ROWS, 4, 8, seed=1), unit(ROWS, 4, 3, seed=2)
    polarity, patients = torch.where(mask, 1, 0).to(torch.int8), torch.tensor([0, 1, 2, 0])
    rows = queue_rows([2, 8, 8, 7, 6], filled=4)
    found = SSMLoss(same_above=0.5, differ_below=0.3)(visual, text, mask, polarity, patients, queue=rows)
    kept = [int(number) for number in rows.sentence_mask.sum(1)]
    pad = (0, 0, 0, SENTENCES - 4)
    joined = (torch.cat([F.pad(visual, pad), rows.visual]), torch.cat([F.pad(text, pad), rows.text]))
    expected = slow_sums(*joined, lengths + kept, [0, 1, 2, 0, 2, 8, 8, 7, 6], own=ROWS)
    torch.testing.assert_close(found, expected)
    alone = SSMLoss(same_above=0.5, differ_below=0.3)(visual, text, mask, polarity, patients)
    torch.testing.assert_close(alone, slow_ssm(visual, text, lengths, polarity.tolist(), [0, 1, 2, 0], 0.5, 0.3))
    assert not torch.isclose(found, alone)


def slow_sums(visual, text, lengths, patients, *, own):
    same, different = [], []
    for b in range(own):
        for c in range(len(lengths)):
            for s in range(lengths[b]):
                for t in range(lengths[c]):
                    words, seen = text[b, s] @ text[c, t], visual[b, s] @ visual[c, t]
                    if patients[b] != patients[c] and words >= 0.5:
                        same.append((seen - words).abs())
                    elif patients[b] != patients[c] and words <= 0.3:
                        different.append(seen.abs())
    return 0.5 * (torch.stack(same).mean() + torch.stack(different).mean())
