"""Differences between the paper's wiring and those of the published code, on small models."""

import pytest
import torch
from small_arrow import report_of, small_tokenizer
from small_model import WIRINGS, build, random_batch
from torch import nn

from mg3d.datasets.studies import ReportText
from mg3d.datasets.tokenizer import pad_reports
from mg3d.losses.released import ReleasedSALLoss
from mg3d.losses.sal import SALLoss
from mg3d.models.fusion import CrossAttentionFusion
from mg3d.models.pooling import sentence_membership
from mg3d.models.released import GateFusion, plain_sentences
from mg3d.models.sentence_space import CentredSentenceSpace, random_pair_cosines
from mg3d.models.text.encoder import tiny_text_encoder
from mg3d.sentence_spans import build_report

ONE = torch.tensor(1.0, dtype=torch.float64)
by_wiring = pytest.mark.parametrize("wiring", WIRINGS)


def differ(one, other):
    return (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("wiring", ["paper", "released"])
def test_only_cross_attention_reads_values_of_the_other_modality(wiring):
    """A gate only scales a token's own value, whatever the other modality contains."""
    torch.manual_seed(0)
    paper = wiring == "paper"
    fusion = CrossAttentionFusion(24, layers=1, heads=3) if paper else GateFusion(24, layers=1, second_is_read=True)
    first, *seconds = torch.randn(3, 1, 5, 24, dtype=torch.float64)
    with torch.no_grad():
        outputs = [fusion.double()(first, second) for second in seconds]
    one, other = outputs if paper else (first for first, _ in outputs)
    assert differ(one, other)
    direction = torch.cosine_similarity(one, other, dim=-1).min()
    assert direction < 0.9999 if paper else direction > 1 - 1e-9


@by_wiring
def test_one_side_of_the_contrast_reads_the_volume_alone_and_the_other_the_report_alone(wiring):
    model, batch, other = build(wiring, objectives=("cml",)).eval(), random_batch(), random_batch(seed=1)
    texts = {name: getattr(other, name) for name in ("report_ids", "attention_mask", "sentence_index", "sentence_mask")}
    sides = ("image", "report") if wiring == "paper" else ("multimodal", "unimodal")
    with torch.no_grad():
        true, volume, report = (model(one) for one in (batch, batch._replace(volume=other.volume), batch._replace(**texts)))
    first, second = (f"cml_{side}_embedding" for side in sides)
    assert differ(true[first], volume[first])
    assert differ(true[second], report[second])
    assert [differ(true[first], report[first]), differ(true[second], volume[second])] == [wiring != "paper"] * 2


def test_the_temperature_is_learned_from_a_fourteenth_and_stays_above_a_hundredth():
    scale = build(objectives=("cml",)).contrast.logit_scale
    assert scale().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.log_scale.add_(9.0)
    scale().backward()
    assert scale().item() == pytest.approx(1 / 0.01)
    assert scale.log_scale.grad > 0
    assert not [name for name, _ in build("released", objectives=("cml",)).named_parameters() if "scale" in name]


@by_wiring
def test_a_volume_is_reconstructed_through_the_layers_and_from_the_text_of_its_wiring(wiring):
    model, batch, seen = build(wiring, objectives=("mim",)).eval(), random_batch(), {}
    for name, part in model.named_modules():
        if name.split(".")[-1].startswith("fusion"):
            keep = lambda part, given, out, name=name: seen.update({name: [len(side[0]) for side in given[:2]]})  # noqa: E731
            part.register_forward_hook(keep)
    with torch.no_grad():
        model(batch)
    tokens, words, sentences = 4 * 2 * 6, batch.report_ids.shape[1], batch.sentence_mask.shape[1]
    assert seen == {
        "paper": {"branches.volume.fusion": [tokens, sentences]},
        "intended": {"fusion_volume": [tokens, sentences]},
        "released": {"fusion_report": [words, tokens]},
    }[wiring]


def test_projecting_twice_changes_the_contrast_of_the_released_wiring_only():
    intended, released, batch = build("intended").eval(), build("released").eval(), random_batch()
    released.load_state_dict(intended.state_dict())
    features = [model(batch) for model in (intended, released)]
    assert differ(features[0]["cml_multimodal_embedding"], features[1]["cml_multimodal_embedding"])
    torch.testing.assert_close(features[0]["sal_prediction"], features[1]["sal_prediction"])
    released.is_miswired = False
    torch.testing.assert_close(released(batch), features[0])


@by_wiring
def test_the_visual_side_of_a_sentence_is_made_of_the_image(wiring):
    """With equal image tokens, all sentences have the same visual side; in the released wirings they still differ."""
    model, batch = build(wiring).eval(), random_batch()
    if wiring == "paper":
        nn.init.zeros_(model.position.linear.weight)
    with torch.no_grad():
        visual = model(batch._replace(volume=torch.full_like(batch.volume, 0.5)))["ssm_visual"]
    real = visual[batch.sentence_mask]
    assert differ(real, real[:1]) == (wiring != "paper")


@by_wiring
def test_masked_patches_differ_from_air(wiring):
    model, batch = build(wiring).eval(), random_batch()
    air = torch.zeros_like(batch.volume)
    with torch.no_grad():
        assert differ(model.encode_volume(air, batch.patch_mask), model.encode_volume(air)) == (wiring == "paper")


@by_wiring
def test_no_gradient_reaches_the_target_of_sentence_alignment(wiring):
    features = build(wiring, objectives=("mlm", "sal"))(random_batch())
    assert features["sal_prediction"].requires_grad
    assert features["sal_target"].requires_grad == (wiring != "paper")


@pytest.mark.parametrize(("loss", "growth"), [(SALLoss(), 1), (ReleasedSALLoss(), 2)])
def test_sentence_alignment_does_not_grow_with_the_length_of_a_report(loss, growth):
    sides = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = loss(*sides, torch.ones(3, 4, dtype=torch.bool))
    twice = loss(*sides.repeat(1, 1, 2, 1), torch.ones(3, 8, dtype=torch.bool))
    torch.testing.assert_close(twice / once, growth * ONE)


@by_wiring
@pytest.mark.parametrize("shape", [(16, 8, 24), (8, 16, 16)])
def test_image_tokens_carry_their_position_in_volumes_of_any_size(wiring, shape):
    """The tokens of a constant volume are equal unless they carry their position."""
    model = build(wiring, objectives=("mim",)).eval()
    with torch.no_grad():
        tokens = model.encode_volume(torch.full((1, 1, *shape), 0.5, dtype=torch.float64))[0]
    distance = (tokens[:, None] - tokens).abs().amax(-1)[~torch.eye(len(tokens), dtype=torch.bool)]
    assert distance.min() > 1e-3 if wiring == "paper" else distance.max() < 1e-9


def test_plain_means_match_most_sentences_and_the_fitted_space_hardly_any(tmp_path):
    reports = []
    for number in range(40):
        text, units = build_report(*report_of(number))
        reports.append(ReportText(text, tuple((unit.start, unit.end) for unit in units)))
    tokenizer = small_tokenizer(tmp_path / "words")
    report = pad_reports(tokenizer, reports, 64)
    ids, _, index = report
    torch.manual_seed(0)
    text = tiny_text_encoder(vocab_size=len(tokenizer), width=64, layers=1, heads=2)
    space, sentences = CentredSentenceSpace(text), int(index.max()) + 1
    space.fit(text, ids, index)
    real, fractions = sentence_membership(index, sentences).any(1), []
    for vectors in (plain_sentences(text, report, sentences), space(ids, index, sentences)):
        cosines = random_pair_cosines(vectors, real, pairs=20_000, generator=torch.Generator().manual_seed(0))
        fractions.append((cosines >= 0.9).float().mean().item())
    assert fractions[0] > 0.7
    assert fractions[1] < 0.03


@by_wiring
def test_linear_layers_are_initialised_as_in_pytorch(wiring):
    """Uniform within 1 / sqrt(inputs), not normal with standard deviation 0.02."""
    model = build(wiring, frozen=True).eval()
    model.vision = model.text = None
    layers = [part.weight.detach() for part in model.modules() if isinstance(part, nn.Linear)]
    scaled = torch.cat([weight.flatten() * weight.shape[1] ** 0.5 for weight in layers])
    assert len(layers) > 20
    assert scaled.abs().max() <= 1 + 1e-6
    assert scaled.std().item() == pytest.approx(3**-0.5, rel=0.02)
