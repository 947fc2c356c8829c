"""Changes of a batch that must not change any loss or gradient of the whole model."""

import re

import pytest
import torch
from small_model import OBJECTIVES, WIRINGS, build, losses_of, random_batch
from torch.nn import functional as F

PADDING = {"report_ids": 0, "attention_mask": False, "sentence_index": -1, "mlm_ids": 0, "mlm_labels": -100}
VIEW = {"view_ids": 0, "view_attention_mask": False, "view_sentence_index": -1}
PAIRWISE = ("cml", "dcl", "ssm")


def with_everything(wiring, batch):
    model = build(wiring, pool_queries=2).train()
    model.fit_sentence_space(batch.report_ids, batch.sentence_index)
    return model


def losses_and_gradients(model, batch, names=OBJECTIVES):
    """(losses by name, gradient of their sum by parameter)."""
    losses = {name: loss for name, loss in losses_of(model, batch).items() if name in names}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(sum(losses.values()), trained.values(), allow_unused=True)
    return losses, {name: gradient for name, gradient in zip(trained, gradients) if gradient is not None}


def assert_same(wiring, one, other, names=OBJECTIVES):
    model = with_everything(wiring, one)
    for ours, theirs in zip(losses_and_gradients(model, one, names), losses_and_gradients(model, other, names)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-9, rtol=1e-6, msg=lambda text, at=name: f"{at}: {text}")


def longer(batch, tokens=0, view_tokens=0, sentences=0):
    """The batch with more padding."""
    fields = {name: F.pad(getattr(batch, name), (0, tokens), value=value) for name, value in PADDING.items()}
    fields |= {name: F.pad(getattr(batch, name), (0, view_tokens), value=value) for name, value in VIEW.items()}
    for name in ("sentence_mask", "sentence_polarity"):
        fields[name] = F.pad(getattr(batch, name), (0, sentences))
    return batch._replace(**fields)


def other_padding(batch):
    """Padding made of a word instead of the padding token."""
    masks = {"report_ids": "attention_mask", "mlm_ids": "attention_mask", "view_ids": "view_attention_mask"}
    return batch._replace(**{ids: torch.where(getattr(batch, mask), getattr(batch, ids), 7) for ids, mask in masks.items()})


@pytest.mark.parametrize(
    ("wiring", "names"), [("paper", OBJECTIVES), ("intended", ("mim", *PAIRWISE)), ("released", PAIRWISE)]
)
def test_longer_padding_changes_nothing(wiring, names):
    batch = random_batch()
    assert_same(wiring, batch, other_padding(longer(batch, tokens=5, view_tokens=3, sentences=2)), names)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_room_for_more_sentences_changes_nothing(wiring):
    batch = random_batch()
    assert_same(wiring, batch, longer(batch, sentences=3))


@pytest.mark.parametrize(("wiring", "name"), [("intended", "mlm"), ("released", "mlm"), ("released", "mim")])
def test_the_released_gates_count_padding_of_the_report(wiring, name):
    batch = random_batch()
    model = with_everything(wiring, batch)
    short, long = (losses_and_gradients(model, one, (name,))[0][name] for one in (batch, longer(batch, tokens=5)))
    assert (short - long).abs() > 1e-7


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_order_of_patients_changes_nothing(wiring):
    batch, order = random_batch(4), torch.tensor([2, 0, 3, 1])
    keys = {"patient_key": [5, 6, 5, 7], "report_key": [1, 2, 3, 2], "view_key": [[1, 2], [3, 4], [5, 2], [1, 6]]}
    batch = batch._replace(**{name: torch.tensor(numbers) for name, numbers in keys.items()})
    turned = batch._replace(**{name: value[order] for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)})
    assert_same(wiring, batch, turned)
    features = [with_everything(wiring, batch).eval()(one) for one in (batch, turned)]
    assert ("cml_view_embedding" in features[0]) == (wiring == "paper")
    for name, values in features[0].items():
        if values.ndim:
            torch.testing.assert_close(values[order], features[1][name], msg=name)


def test_the_order_of_views_changes_nothing():
    batch = random_batch(4)._replace(view_key=torch.tensor([[1, 2], [3, 4], [5, 2], [1, 6]]))
    assert_same("paper", batch, batch._replace(**{name: getattr(batch, name).flip(1) for name in (*VIEW, "view_key")}))


@pytest.mark.parametrize("wiring", ["intended", "released"])
def test_fused_wirings_read_no_view(wiring):
    batch = random_batch()
    assert_same(wiring, batch, batch._replace(**{name: getattr(batch, name)[:, :0] for name in (*VIEW, "view_key")}))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_one_patient_alone_reconstructs_and_has_nothing_to_contrast(wiring):
    batch = random_batch(1)
    losses, gradients = losses_and_gradients(with_everything(wiring, batch), batch)
    assert all(losses[name] > 0 for name in ("mlm", "sal", "mim"))
    assert all(losses[name] == 0 for name in PAIRWISE)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("wiring", WIRINGS)
def test_one_patient_among_others_reconstructs_as_alone(wiring):
    """Reconstruction losses of a batch are the means of its patients', weighted by masked tokens or patches."""
    together, names = random_batch(3), ("mlm", "mim")
    model = with_everything(wiring, together)
    alone = [together._replace(**{k: v[b : b + 1] for k, v in together._asdict().items()}) for b in range(3)]
    for name, masked in (("mlm", together.mlm_labels != -100), ("mim", together.patch_mask)):
        fraction = masked.flatten(1).sum(1) / masked.sum()
        mean = sum(part * losses_and_gradients(model, one, (name,))[0][name] for part, one in zip(fraction, alone))
        torch.testing.assert_close(losses_and_gradients(model, together, names)[0][name], mean)


def single_sentence(batch):
    """Every report is one sentence."""
    one, view = (torch.where(index >= 0, 0, -1) for index in (batch.sentence_index, batch.view_sentence_index))
    return batch._replace(
        sentence_index=one, view_sentence_index=view, sentence_mask=batch.sentence_mask[:, :1],
        sentence_polarity=batch.sentence_polarity[:, :1],
    )  # fmt: skip


@pytest.mark.parametrize("wiring", WIRINGS)
def test_reports_of_one_sentence_have_every_loss_and_gradient(wiring):
    batch = single_sentence(random_batch())
    losses, gradients = losses_and_gradients(with_everything(wiring, batch), batch)
    assert all(loss > 0 for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def with_a_gap(batch):
    """Sentence 1 of every report and view has no token; what was sentence 1, 2, ... is now sentence 2, 3, ..."""
    index, view = (index + (index >= 1) for index in (batch.sentence_index, batch.view_sentence_index))
    sides = {}
    for name in ("sentence_mask", "sentence_polarity"):
        side = getattr(batch, name)
        sides[name] = torch.cat([side[:, :1], torch.zeros_like(side[:, :1]), side[:, 1:]], 1)
    return batch._replace(sentence_index=index, view_sentence_index=view, **sides)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_sentence_without_tokens_changes_nothing(wiring):
    batch = random_batch()
    assert_same(wiring, batch, with_a_gap(batch))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_report_without_any_sentence_has_finite_losses(wiring):
    batch = random_batch()
    index, view, mask = batch.sentence_index.clone(), batch.view_sentence_index.clone(), batch.sentence_mask.clone()
    index[0], view[0], mask[0] = -1, -1, False
    empty = batch._replace(
        sentence_index=index, view_sentence_index=view, sentence_mask=mask,
        sentence_polarity=torch.where(mask, batch.sentence_polarity, 0),
    )  # fmt: skip
    losses, gradients = losses_and_gradients(with_everything(wiring, batch), empty)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def filled(ids, attention, index):
    """Texts that fill all tokens with words and were cut before their [SEP]: (ids, attention, index) [..., T]."""
    index = torch.where(index >= 0, index, index.max(-1, keepdim=True).values)
    index[..., 0] = -1
    return torch.where(attention, ids, 9), torch.ones_like(attention), index


def truncated(batch):
    """Reports and views that fill all their tokens."""
    ids, full, index = filled(batch.report_ids, batch.attention_mask, batch.sentence_index)
    view_ids, view_full, view_index = filled(batch.view_ids, batch.view_attention_mask, batch.view_sentence_index)
    return batch._replace(
        attention_mask=full, sentence_index=index, report_ids=ids, mlm_ids=torch.where(batch.mlm_labels >= 0, 4, ids),
        view_ids=view_ids, view_attention_mask=view_full, view_sentence_index=view_index,
    )  # fmt: skip


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_report_cut_before_its_end_token_has_every_loss_and_gradient(wiring):
    batch = truncated(random_batch())
    losses, gradients = losses_and_gradients(with_everything(wiring, batch), batch)
    assert all(loss > 0 for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


ENCODERS = "vision project_image project_report type_embedding "
CONTRASTIVE = "vision project_image type_embedding fusion_volume fused_contrast branches.disentangled"
LEARNS = {
    ("released", ("mlm", "sal")): ENCODERS + "fusion_report branches.report",
    ("intended", ("mlm", "sal")): ENCODERS + "fusion_report branches.report",
    ("released", ("mim",)): ENCODERS + "fusion_report branches.volume",
    ("intended", ("mim",)): "vision project_image type_embedding fusion_volume branches.volume",
    ("released", PAIRWISE): CONTRASTIVE,
    ("intended", PAIRWISE): CONTRASTIVE,
}


@pytest.mark.parametrize(("wiring", "names"), LEARNS, ids=str)
def test_released_losses_train_what_they_trained_in_the_original(wiring, names):
    batch = random_batch()
    model = build(wiring, frozen=True)
    _, gradients = losses_and_gradients(model, batch, names)
    moved = {re.match(r"branches\.\w+|\w+", name)[0] for name, gradient in gradients.items() if gradient.abs().max() > 0}
    assert moved == set(LEARNS[wiring, names].split())
    rows = gradients["type_embedding.weight"].abs().amax(1) > 0
    assert rows.tolist() == ["project_report" in moved, True]
