"""What `mg3d` does and the released presets do not, shown on small models with the settings of each preset."""

import inspect

import pytest
import torch
from small_arrow import report_of, small_tokenizer
from small_model import build, objective, random_batch
from torch import nn

from mg3d.datasets.studies import ReportText
from mg3d.datasets.tokenizer import pad_reports
from mg3d.models.fusion import build_fusion
from mg3d.models.mg3d import MG3D
from mg3d.models.sentence_space import CentredSentenceSpace, plain_sentences, random_pair_cosines, sentence_membership
from mg3d.models.text.encoder import tiny_text_encoder
from mg3d.sentence_spans import report_units
from mg3d.settings.presets import PRESETS

EVERY = ("mg3d", "mg3d_intended", "mg3d_released")
ONE = torch.tensor(1.0, dtype=torch.float64)
"""A stand-in for what a scale takes its type from."""


def model_of(preset, **changes):
    """A small model with what the preset sets, in eval mode."""
    known = inspect.signature(MG3D).parameters
    return build(**{name: value for name, value in PRESETS[preset].items() if name in known} | changes).eval()


def differ(one, other):
    return (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("preset", EVERY)
def test_only_cross_attention_reads_values_of_the_other_modality(preset):
    """A gate gives a multiple of a token's own value, whatever the other modality says."""
    torch.manual_seed(0)
    fusion = build_fusion(PRESETS[preset]["fusion"], 24, layers=1, heads=3).double()
    first, *seconds = torch.randn(3, 1, 5, 24, dtype=torch.float64)
    with torch.no_grad():
        one, other = (fusion(first, second)[0] for second in seconds)
    assert differ(one, other)
    direction = torch.cosine_similarity(one, other, dim=-1).min()
    assert direction < 0.9999 if preset == "mg3d" else direction > 1 - 1e-9


@pytest.mark.parametrize("preset", EVERY)
def test_one_side_of_the_contrast_reads_the_volume_alone_and_the_other_the_report_alone(preset):
    model, batch, other = model_of(preset, objectives=("cml",)), random_batch(), random_batch(seed=1)
    texts = {name: getattr(other, name) for name in ("report_ids", "attention_mask", "sentence_index", "sentence_mask")}
    with torch.no_grad():
        true, volume, report = (model(one) for one in (batch, batch._replace(volume=other.volume), batch._replace(**texts)))
    assert differ(true.cml_first_embedding, volume.cml_first_embedding)
    assert differ(true.cml_second_embedding, report.cml_second_embedding)
    mixed = [
        differ(true.cml_first_embedding, report.cml_first_embedding),
        differ(true.cml_second_embedding, volume.cml_second_embedding),
    ]
    assert mixed == [preset != "mg3d"] * 2


@pytest.mark.parametrize("preset", EVERY)
def test_the_temperature_is_learned_from_a_fourteenth_and_stays_above_a_hundredth(preset):
    scale = model_of(preset, objectives=("cml",)).cml_scale
    if preset != "mg3d":
        assert scale(ONE) == 10
        assert not list(scale.parameters())
        return
    assert scale(ONE).item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.log_scale.add_(9.0)
    scale(ONE).backward()
    assert scale(ONE).item() == pytest.approx(1 / 0.01)
    assert scale.log_scale.grad > 0


@pytest.mark.parametrize("preset", EVERY)
def test_a_volume_is_reconstructed_through_the_layers_and_from_the_text_of_its_preset(preset):
    model, batch, seen = model_of(preset, objectives=("mim",)), random_batch(), {}
    for name, part in model.named_children():
        if name.startswith("fusion"):
            part.register_forward_hook(lambda part, given, out, name=name: seen.update({name: [len(side[0]) for side in given]}))
    with torch.no_grad():
        model(batch)
    tokens, words, sentences = 4 * 2 * 6, batch.report_ids.shape[1], batch.sentence_mask.shape[1]
    released = preset == "mg3d_released"
    assert seen == ({"fusion_report": [words, tokens]} if released else {"fusion_volume": [tokens, sentences]})


@pytest.mark.parametrize("preset", EVERY)
def test_the_visual_side_of_a_sentence_is_made_of_the_image(preset):
    """Where all image tokens are alike, all sentences see the same; the released visual side tells the sentences apart."""
    model, batch = model_of(preset, image_position=False), random_batch()
    with torch.no_grad():
        visual = model(batch._replace(volume=torch.full_like(batch.volume, 0.5))).ssm_visual
    real = visual[batch.sentence_mask]
    assert differ(real, real[:1]) == (preset != "mg3d")


@pytest.mark.parametrize("preset", EVERY)
def test_what_is_hidden_is_told_from_air(preset):
    model, batch = model_of(preset), random_batch()
    air = torch.zeros_like(batch.volume)
    with torch.no_grad():
        assert differ(model.encode_volume(air, batch.patch_mask), model.encode_volume(air)) == (preset == "mg3d")


@pytest.mark.parametrize("preset", EVERY)
def test_no_gradient_pulls_the_target_of_sentence_alignment(preset):
    features = model_of(preset, objectives=("mlm", "sal"))(random_batch())
    assert features.sal_prediction.requires_grad
    assert features.sal_target.requires_grad == (preset != "mg3d")


@pytest.mark.parametrize("preset", EVERY)
def test_sentence_alignment_does_not_grow_with_the_length_of_a_report(preset):
    sal, generator = objective(preset)[1]["sal"], torch.Generator().manual_seed(0)
    sides = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    once = sal(*sides, torch.ones(3, 4, dtype=torch.bool))
    twice = sal(*sides.repeat(1, 1, 2, 1), torch.ones(3, 8, dtype=torch.bool))
    torch.testing.assert_close(twice / once, ONE if preset == "mg3d" else 2 * ONE)


@pytest.mark.parametrize("preset", EVERY)
@pytest.mark.parametrize("shape", [(16, 8, 24), (8, 16, 16)])
def test_image_tokens_are_told_where_they_lie_in_a_volume_of_any_size(preset, shape):
    """A volume that is the same everywhere has tokens that are the same everywhere, unless they are told."""
    model = model_of(preset, objectives=("mim",))
    with torch.no_grad():
        tokens = model.encode_volume(torch.full((1, 1, *shape), 0.5, dtype=torch.float64))[0]
    apart = (tokens[:, None] - tokens).abs().amax(-1)[~torch.eye(len(tokens), dtype=torch.bool)]
    assert apart.min() > 1e-3 if preset == "mg3d" else apart.max() < 1e-9


def test_plain_means_call_most_sentences_the_same_and_the_fitted_space_hardly_any(tmp_path):
    reports = []
    for number in range(40):
        text, units = report_units(*report_of(number))
        reports.append(ReportText(text, tuple((unit.start, unit.end) for unit in units)))
    tokenizer = small_tokenizer(tmp_path / "words")
    ids, attention, index = pad_reports(tokenizer, reports, 64)
    torch.manual_seed(0)
    text = tiny_text_encoder(vocab_size=len(tokenizer), width=64, layers=1, heads=2)
    space, sentences = CentredSentenceSpace(text), int(index.max()) + 1
    space.fit(text, ids, index)
    real, shares = sentence_membership(index, sentences).any(1), []
    for vectors in (plain_sentences(text, ids, attention, index, sentences), space(ids, index, sentences)):
        cosines = random_pair_cosines(vectors, real, pairs=20_000, generator=torch.Generator().manual_seed(0))
        shares.append((cosines >= 0.9).float().mean().item())
    assert shares[0] > 0.7
    assert shares[1] < 0.03


@pytest.mark.parametrize("preset", EVERY)
def test_linear_layers_begin_as_pytorchs_do(preset):
    """Uniform within 1 / sqrt(inputs), and not normal of deviation 0.02."""
    model = model_of(preset)
    model.vision = model.text = model.target_text = None
    layers = [part.weight.detach() for part in model.modules() if isinstance(part, nn.Linear)]
    scaled = torch.cat([weight.flatten() * weight.shape[1] ** 0.5 for weight in layers])
    assert len(layers) > 20
    assert scaled.abs().max() <= 1 + 1e-6
    assert scaled.std().item() == pytest.approx(3**-0.5, rel=0.02)
