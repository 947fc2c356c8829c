import pytest
import torch
from small_model import OBJECTIVES, WIRINGS, build, random_batch

from mg3d.settings.schema import ModelSettings
from mg3d.training.objectives import build_losses


@pytest.fixture
def batch():
    return random_batch()


def total(model, batch, names=OBJECTIVES):
    features = model.eval()(batch)
    losses = build_losses(ModelSettings(), list(names))
    return sum(loss(**{field: getattr(features, field) for field in loss.inputs}) for loss in losses.values())


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring_gives_what_its_losses_read(wiring, frozen, batch):
    model = build(wiring, frozen=frozen)
    value = total(model, batch)
    assert value.isfinite()
    assert value > 0


@pytest.mark.parametrize("image_pool", ["attention", "positional"])
def test_every_parameter_of_the_default_wiring_learns(image_pool, batch):
    model = build(image_pool=image_pool)
    total(model, batch).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@pytest.mark.parametrize("wiring", WIRINGS)
def test_no_preset_trains_a_parameter_that_no_gradient_reaches(wiring, batch):
    model = build(wiring, frozen=True)
    total(model, batch).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("views", [0, 2])
def test_a_frozen_text_encoder_reads_the_unmasked_report_once(views, batch):
    model, read = build(frozen=True), []
    model.text.register_forward_hook(lambda part, given, out: read.append(given[0]))
    model(batch if views else batch._replace(view_ids=batch.view_ids[:, :0]))
    assert sum(torch.equal(ids, batch.report_ids) for ids in read) == 1
    assert len(read) == 2 + (views > 0)


def test_a_frozen_text_encoder_stays_in_eval_mode_without_gradient(batch):
    model = build(frozen=True).train()
    assert not model.text.training
    total(model, batch).backward()
    assert all(p.grad is None for p in model.text.parameters())


@pytest.mark.parametrize("wiring", ["mg3d", "mg3d_intended"])
def test_padding_a_batch_does_not_change_a_patient(wiring, batch):
    model = build(wiring).eval()
    alone = random_batch(1)
    together, single = model(batch), model(alone)
    for field in ("cml_first_embedding", "cml_second_embedding", "dcl_image_embedding", "dcl_aggregate_embedding"):
        torch.testing.assert_close(getattr(together, field)[:1], getattr(single, field), msg=field)
    torch.testing.assert_close(together.ssm_visual[0, :2], single.ssm_visual[0, :2])
    torch.testing.assert_close(together.ssm_text[0, :2], single.ssm_text[0, :2])


def test_only_what_the_objectives_need_is_built_and_computed(batch):
    model = build(objectives=("cml",))
    features = model(batch)
    assert features.mlm_token_loss is None
    assert features.mim_prediction is None
    assert features.cml_first_embedding.shape == (3, 20)
    assert not any(name.startswith(("mlm", "mim", "dcl", "aggregation", "fusion")) for name, _ in model.named_parameters())
    total(model, batch, ["cml"]).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_hidden_voxels_do_not_reach_the_masked_encoder(batch):
    for wiring in ("mg3d", "mg3d_intended"):
        model = build(wiring).eval()
        hidden = batch.patch_mask.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)[:, None]
        changed = batch._replace(volume=torch.where(hidden, 0.123, batch.volume))
        predictions = [model(one, frozenset({"mim"})).mim_prediction for one in (batch, changed)]
        torch.testing.assert_close(*predictions)


def test_the_order_of_patients_does_not_matter(batch):
    model = build().eval()
    order = torch.tensor([2, 0, 1])
    turned = batch._replace(**{name: value[order] for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)})
    torch.testing.assert_close(total(model, batch), total(model, turned))


def test_embeddings_are_those_that_are_contrasted(batch):
    model = build().eval()
    features = model(batch)
    torch.testing.assert_close(model.embed_volume(batch.volume), features.cml_first_embedding)
    embedded = model.embed_report(batch.report_ids, batch.attention_mask, batch.sentence_index)
    torch.testing.assert_close(embedded, features.cml_second_embedding)
    for view in range(2):
        parts = (batch.view_ids, batch.view_attention_mask, batch.view_sentence_index)
        torch.testing.assert_close(model.embed_report(*(part[:, view] for part in parts)), features.cml_view_embedding[:, view])
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(3, dtype=torch.float64))


def test_plain_embeddings_of_fused_wirings_are_refused(batch):
    with pytest.raises(ValueError, match="objective preset mg3d"):
        build("mg3d_released").embed_volume(batch.volume)


def test_projecting_twice_is_the_only_difference_between_its_two_settings(batch):
    once, twice = (build("mg3d_intended", project_twice=flag).eval() for flag in (False, True))
    twice.load_state_dict(once.state_dict())
    torch.testing.assert_close(once(batch).mim_prediction, twice(batch).mim_prediction)
    assert (once(batch).cml_first_embedding - twice(batch).cml_first_embedding).abs().max() > 1e-3


def test_the_averaged_text_encoder_follows_the_trained_one():
    model = build()
    before = model.target_text.word_vectors.clone()
    with torch.no_grad():
        model.text.bert.embeddings.word_embeddings.weight.add_(1.0)
    model.update_ema()
    torch.testing.assert_close(model.target_text.word_vectors, before + 0.01)
    assert not any(p.requires_grad for p in model.target_text.parameters())


def test_the_fitted_sentence_space_is_centred(batch):
    model = build()
    model.fit_sentence_space(batch.report_ids, batch.sentence_index)
    vectors = model.sentence_vectors(batch.report_ids, batch.attention_mask, batch.sentence_index, 4)
    torch.testing.assert_close(vectors[batch.sentence_mask].mean(0), torch.zeros(16, dtype=torch.float64), atol=1e-12, rtol=0)
    cosines = model.random_sentence_cosines(batch.report_ids, batch.attention_mask, batch.sentence_index, seed=1)
    assert -1 <= cosines.min() < cosines.max() <= 1


def test_projecting_twice_needs_equal_widths():
    with pytest.raises(ValueError, match="project_twice"):
        build("mg3d_released", width=48)


def test_the_text_side_of_ssm_is_computed_in_full_under_autocast():
    space, batch = build(objectives=("ssm",)).sentence_space.float(), random_batch(3)
    space.mean.fill_(0.9)
    plain = space(batch.report_ids, batch.sentence_index, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(space(batch.report_ids, batch.sentence_index, 4), plain)
