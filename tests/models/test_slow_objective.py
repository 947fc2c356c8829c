"""Losses and gradients of the whole model against loops over patients, sentences, heads and tokens, in all three wirings."""

import math

import pytest
import torch
from slow_objective import SlowMG3D
from small_model import OBJECTIVES, WIRINGS, build, losses_of, random_batch


def with_views(batch, chosen):
    """The batch with these views: chosen[b][k] are the sentences of patient b's view k, between [CLS] and [SEP]."""
    views = []
    for b, slots in enumerate(chosen):
        ids, index = (rows[b][batch.attention_mask[b]] for rows in (batch.report_ids, batch.sentence_index))
        for sentences in slots:
            words = [ids[index == n] for n in sentences]
            indices = [torch.full_like(of, n) for n, of in enumerate(words)]
            first, last, none = (ids.new_tensor([number]) for number in (2, 3, -1))
            views.append((torch.cat([first, *words, last]), torch.cat([none, *indices, none])))

    def stacked(rows, padding):
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding).unflatten(0, (len(chosen), -1))

    ids, index = zip(*views)
    return batch._replace(
        view_ids=stacked(ids, 0), view_sentence_index=stacked(index, -1),
        view_attention_mask=stacked([torch.ones_like(one, dtype=torch.bool) for one in ids], False),
        view_key=torch.tensor([hash(tuple(one.tolist())) for one in ids]).view(len(chosen), -1),
    )  # fmt: skip


CHOSEN = (([1], [0, 1]), ([0], [1, 2]), ([0, 1, 2], [3]), ([0], []))
"""Sentences of both views of the four patients: the first two patients' first views are equal; one view is empty."""


@pytest.fixture
def batch():
    """Four patients: two volumes of one patient, two equal reports, an equal sentence in two reports, equal views, an empty
    view, sentences that deny."""
    plain = random_batch(4)
    ids, masked = plain.report_ids.clone(), plain.mlm_labels != -100
    ids[1, 1:4] = ids[0, 5:8]
    assert plain.sentence_index[0, 5:8].tolist() == [1, 1, 1]
    assert plain.sentence_index[1, 1:4].tolist() == [0, 0, 0]
    polarity = plain.sentence_polarity.clone()
    polarity[2, 1] = polarity[0, 0] = -1
    changed = plain._replace(
        report_ids=ids, mlm_ids=torch.where(masked, 4, ids), mlm_labels=torch.where(masked, ids, -100),
        sentence_polarity=polarity, patient_key=torch.tensor([5, 6, 5, 7]), report_key=torch.tensor([1, 2, 3, 2]),
    )  # fmt: skip
    return with_views(changed, CHOSEN)


def assert_as_the_loops(wiring, name, batch, **settings):
    model = build(wiring, pool_queries=2, **settings).eval()
    model.fit_sentence_space(batch.report_ids, batch.sentence_index)
    fast, slow = losses_of(model, batch)[name], getattr(SlowMG3D(model, batch), name)()
    assert slow > 1e-3
    torch.testing.assert_close(fast, slow)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours, theirs = (torch.autograd.grad(loss, trained.values(), allow_unused=True) for loss in (fast, slow))
    for parameter, mine, reference in zip(trained, ours, theirs):
        none = torch.zeros_like(trained[parameter])
        mine, reference = (none if gradient is None else gradient for gradient in (mine, reference))
        torch.testing.assert_close(mine, reference, atol=1e-9, rtol=1e-6, msg=lambda text, at=parameter: f"{at}: {text}")


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("wiring", WIRINGS)
def test_value_and_gradient_are_those_of_the_loops(wiring, name, batch):
    assert_as_the_loops(wiring, name, batch)


@pytest.mark.parametrize("name", ["cml", "dcl"])
def test_with_positional_pooling_value_and_gradient_are_those_of_the_loops(name, batch):
    assert_as_the_loops("paper", name, batch, image_pool="positional")


@pytest.mark.parametrize("views", [0, 1])
def test_with_fewer_views_value_and_gradient_are_those_of_the_loops(views, batch):
    parts = ("view_ids", "view_attention_mask", "view_sentence_index", "view_key")
    assert_as_the_loops("paper", "cml", batch._replace(**{part: getattr(batch, part)[:, :views] for part in parts}))


def test_the_loops_see_equal_sentences_views_and_excluded_pairs(batch):
    """The batch above exercises what it is for."""
    model = build()
    slow = SlowMG3D(model, batch)
    first, second = slow.meanings(0)[1], slow.meanings(1)[0]
    torch.testing.assert_close(first, second)
    assert batch.view_key[0, 0] == batch.view_key[1, 0]
    assert len(batch.view_key.unique()) == 7
    torch.testing.assert_close(slow.view(0, 0), slow.view(1, 0))
    distinct = {"view_key": torch.arange(8).view(4, 2), "report_key": torch.arange(4), "patient_key": torch.arange(4)}
    for name, keys in distinct.items():
        assert (slow.cml() - SlowMG3D(model, batch._replace(**{name: keys})).cml()).abs() > 1e-3


def test_word_weights_and_mean_of_the_sentence_space_are_counted(batch):
    model = build()
    space = model.branches["disentangled"].sentence_space
    model.fit_sentence_space(batch.report_ids, batch.sentence_index)
    sentences = [
        ids[index == n].tolist()
        for ids, index in zip(batch.report_ids, batch.sentence_index)
        for n in range(4)
        if (index == n).any()
    ]
    holding = [sum(word in sentence for sentence in sentences) for word in range(model.text.vocabulary_size)]
    weights = [max(1e-3, math.log((1 + len(sentences)) / (1 + count))) for count in holding]
    torch.testing.assert_close(space.word_weight, torch.tensor(weights, dtype=torch.float64))
    vectors = [
        sum(weights[word] * model.text.word_vectors[word] for word in sentence) / sum(weights[word] for word in sentence)
        for sentence in sentences
    ]
    torch.testing.assert_close(space.mean, torch.stack(vectors).mean(0))
