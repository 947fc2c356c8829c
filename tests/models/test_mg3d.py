"""The pre-training model: modules, number of encoder passes, and embeddings after training."""

import pytest
import torch
from small_model import OBJECTIVES, WIRINGS, build, losses_of, random_batch
from torch import nn

from mg3d.models.standardise import VoxelStandardiser


@pytest.fixture
def batch():
    return random_batch()


def total(model, batch):
    return sum(losses_of(model.eval(), batch).values())


def idle_parameters(model, batch):
    """Names of trained parameters that no gradient reaches."""
    total(model, batch).backward()
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring_computes_every_loss_and_trains_every_parameter(wiring, frozen, batch):
    model = build(wiring, frozen=frozen)
    losses = losses_of(model.eval(), batch)
    assert list(losses) == list(OBJECTIVES)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    if frozen or wiring == "paper":  # in the released wirings no gradient reaches the text encoder's last layer norm
        assert not idle_parameters(model, batch)


@pytest.mark.parametrize("settings", [{"image_pool": "positional"}, {"contrast": "sigmoid"}])
def test_every_parameter_of_other_pools_and_losses_is_trained(settings, batch):
    assert not idle_parameters(build(**settings), batch)


@pytest.mark.parametrize("objectives", [("cml",), ("mim",), ("sal",), ("mlm", "dcl"), ("mlm", "captioning")], ids="+".join)
def test_only_what_the_objectives_need_is_built_and_computed(objectives, batch):
    model = build(objectives=objectives, frozen=True)
    assert set(losses_of(model.eval(), batch)) == set(objectives)
    idle = idle_parameters(model, batch)
    assert not [name for name in idle if "aggregation.sentence_head" not in name]  # built for DCL, read by SSM only


def count_passes(model, batch):
    """Passes of (volumes, masked volumes, text encoder) in one forward of the model."""
    volumes, texts, encode = [], [], model.encode_volume
    model.encode_volume = lambda volume, mask=None: volumes.append(mask is not None) or encode(volume, mask)
    model.text.register_forward_hook(lambda part, given, out: texts.append(given[0]))
    model(batch)
    assert sum(torch.equal(ids, batch.report_ids) for ids in texts) <= 1
    return volumes.count(False), volumes.count(True), len(texts)


ALL = (*OBJECTIVES, "captioning")


@pytest.mark.parametrize(
    ("wiring", "objectives", "views", "passes"),
    [
        ("paper", ALL, True, (1, 1, 3)),  # text: unmasked, masked, views
        ("paper", ALL, False, (1, 1, 2)),
        ("intended", ALL, True, (1, 1, 2)),
        ("released", ALL, True, (1, 1, 2)),
        ("paper", ("mlm",), True, (1, 0, 1)),
        ("paper", ("mim",), True, (0, 1, 1)),
        ("paper", ("cml",), True, (1, 0, 2)),
        ("paper", ("captioning",), True, (1, 0, 0)),
    ],
)
def test_encoders_run_once_for_all_branches(wiring, objectives, views, passes, batch):
    batch = batch if views else batch._replace(view_ids=batch.view_ids[:, :0])
    assert count_passes(build(wiring, objectives=objectives, frozen=True), batch) == passes


def test_a_trained_text_encoder_runs_once_more_as_the_target_of_sal(batch):
    model, reads = build(), []
    model.branches["report"].target_text.register_forward_hook(lambda part, given, out: reads.append(given[0]))
    assert count_passes(model, batch) == (1, 1, 3)
    assert len(reads) == 1
    assert torch.equal(reads[0], batch.report_ids)


def test_a_frozen_text_encoder_stays_in_eval_mode_without_gradient(batch):
    model = build(frozen=True).train()
    assert not model.text.training
    total(model, batch).backward()
    assert all(p.grad is None for p in model.text.parameters())


@pytest.mark.parametrize("wiring", ["paper", "intended"])
def test_padding_a_batch_does_not_change_a_patient(wiring, batch):
    model = build(wiring).eval()
    together, single = model(batch), model(random_batch(1))
    for name in (name for name in together if name.endswith("_embedding")):
        torch.testing.assert_close(together[name][:1], single[name], msg=name)
    for name in ("ssm_visual", "ssm_text"):
        torch.testing.assert_close(together[name][0, :2], single[name][0, :2], msg=name)


@pytest.mark.parametrize("wiring", ["paper", "intended"])
def test_masked_voxels_do_not_reach_the_masked_encoder(wiring, batch):
    model = build(wiring).eval()
    masked = batch.patch_mask.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)[:, None]
    changed = batch._replace(volume=torch.where(masked, 0.123, batch.volume))
    predictions = [model(one, ["volume"])["mim_prediction"] for one in (batch, changed)]
    torch.testing.assert_close(*predictions)


def test_a_reconstruction_starts_from_the_mean_of_standardised_voxels(batch):
    model = build().eval()
    model.voxels = VoxelStandardiser(batch.volume.shape[2:]).double()
    model.voxels.fit(batch.volume)
    for parameter in model.branches["volume"].decoder.parameters():
        nn.init.zeros_(parameter)
    prediction = model(batch, ["volume"])["mim_prediction"]
    torch.testing.assert_close(prediction, batch.volume.mean(0, keepdim=True).expand_as(batch.volume))


def test_joint_embeddings_are_those_of_the_contrast(batch):
    model = build().eval()
    features = model(batch)
    torch.testing.assert_close(model.embed_volume(batch.volume), features["cml_image_embedding"])
    embedded = model.embed_report(batch.report_ids, batch.attention_mask, batch.sentence_index)
    torch.testing.assert_close(embedded, features["cml_report_embedding"])
    for view in range(2):
        parts = (batch.view_ids, batch.view_attention_mask, batch.view_sentence_index)
        alone = model.embed_report(*(part[:, view] for part in parts))
        torch.testing.assert_close(alone, features["cml_view_embedding"][:, view])
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(model.logit_scale, features["cml_logit_scale"])


@pytest.mark.parametrize("model", [{"wiring": "released"}, {"objectives": ("mlm", "dcl")}], ids=str)
def test_a_model_without_joint_embedding_refuses_to_embed(model, batch):
    with pytest.raises(ValueError, match="need the preset mg3d"):
        build(**model).embed_volume(batch.volume)


def test_the_target_text_encoder_follows_the_trained_one():
    model = build()
    target = model.branches["report"].target_text
    before = target.word_vectors.clone()
    with torch.no_grad():
        model.text.bert.embeddings.word_embeddings.weight.add_(1.0)
    model.update_ema()
    torch.testing.assert_close(target.word_vectors, before + 0.01)
    assert not any(p.requires_grad for p in target.parameters())


def test_the_fitted_sentence_space_is_centred(batch):
    model = build()
    model.fit_sentence_space(batch.report_ids, batch.sentence_index)
    vectors = model.sentence_vectors(batch.report_ids, batch.attention_mask, batch.sentence_index, 4)
    torch.testing.assert_close(vectors[batch.sentence_mask].mean(0), torch.zeros(16, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_text_side_of_ssm_is_computed_in_full_precision_under_autocast(batch):
    space = build(objectives=("ssm",)).branches["disentangled"].sentence_space.float()
    space.mean.fill_(0.9)
    plain = space(batch.report_ids, batch.sentence_index, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(space(batch.report_ids, batch.sentence_index, 4), plain)
