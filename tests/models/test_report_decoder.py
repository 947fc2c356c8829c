"""Report decoder and pyramid tokens."""

import itertools
import warnings

import pytest
import torch
from small_vision import SMALL, small_encoder, volumes_and_mask
from torch.nn import functional as F

from mg3d.models.pyramid import PyramidTokens
from mg3d.models.text.decoder import ReportDecoder

BEGIN, END, PADDING = 1, 2, 0
SPECIAL = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PADDING}


def decoder(*, words=11, layers=2, seed=0, spread=0.6, **changes):
    """Weights are large enough for its reports to differ between images."""
    torch.manual_seed(seed)
    built = ReportDecoder(vocabulary_size=words, token_width=6, width=12, layers=layers, heads=3, max_length=24, **changes)
    for weight in built.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=spread)
    return built.double().eval()


def image_tokens(size=4, seed=0):
    return torch.randn(size, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_likelihood(model, tokens, ids):
    """[B] of the words behind the first, each up to its first end."""
    probabilities = model(tokens, ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    after_end = (ids[:, 1:] == END).cumsum(1) - (ids[:, 1:] == END).long() > 0
    return probabilities.masked_fill(after_end, 0).sum(1)


def test_decoding_is_causal():
    model, tokens = decoder(), image_tokens(2)
    ids = torch.randint(3, 11, (2, 7), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 8 + 3
    before, after = model(tokens, ids), model(tokens, changed)
    assert before.shape == (2, 7, 11)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-12)
    assert ((before - after)[:, 4:].abs().amax((1, 2)) > 1e-3).all()


def test_padding_changes_no_logit_and_another_image_changes_all():
    model, tokens = decoder(), image_tokens(2)
    ids = torch.randint(3, 11, (2, 7), generator=torch.Generator().manual_seed(1))
    padded, mask = F.pad(ids, (0, 3), value=PADDING), F.pad(torch.ones_like(ids).bool(), (0, 3))
    scores = model(tokens, ids)
    torch.testing.assert_close(model(tokens, padded, mask)[:, :7], scores)
    assert ((model(tokens.flip(0), ids) - scores).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_without_logits_has_the_value_and_gradients_of_the_plain_one(smoothing):
    """60 reports of 23 tokens are two chunks of logits."""
    model, tokens = decoder(), image_tokens(60)
    ids = torch.randint(3, 11, (60, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(24) < torch.arange(60)[:, None] % 24 + 1
    plain = F.cross_entropy(
        model(tokens, ids[:, :-1], mask[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none", label_smoothing=smoothing
    )
    expected = (plain.view(60, 23) * mask[:, 1:]).sum(1)
    found, count = model.loss(tokens, ids, mask, label_smoothing=smoothing)
    assert count.tolist() == [row % 24 for row in range(60)]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.rand(60, dtype=torch.float64)
    gradients = (torch.autograd.grad(weights @ losses, list(model.parameters())) for losses in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3, "no_repeat_ngram_size": 3}, {"temperature": 1.3}], ids=str)
def test_reports_are_equal_with_and_without_a_cache(how):
    model, tokens = decoder(), image_tokens()
    written = []
    for cached in (True, False):
        torch.manual_seed(4)
        written.append(model.generate(tokens, **SPECIAL, max_length=24, use_cache=cached, **how))
    assert torch.equal(*written)
    assert len({tuple(row) for row in written[0].tolist()}) == 4
    assert written[0].shape[1] > 8


def test_greedy_search_takes_the_argmax_of_the_forward_pass():
    model, tokens = decoder(), image_tokens()
    ids = model.generate(tokens, **SPECIAL, max_length=24)
    best = model(tokens, ids[:, :-1]).argmax(-1)
    alive = (ids[:, :-1] == END).cumsum(1) == 0
    assert torch.equal(best[alive], ids[:, 1:][alive])
    assert (ids[:, 1:][~alive] == PADDING).all()
    assert (ids[:, 0] == BEGIN).all()


def test_a_wide_beam_finds_the_most_likely_report_and_greedy_search_does_not():
    model, tokens = decoder(words=5, spread=0.3, seed=3), image_tokens(6)
    every = torch.tensor([(BEGIN, *words) for words in itertools.product(range(5), repeat=3)])
    found = model.generate(tokens, **SPECIAL, max_length=4, num_beams=25, length_penalty=0.0)
    greedy = log_likelihood(model, tokens, model.generate(tokens, **SPECIAL, max_length=4))
    for row, tokens_of_row in enumerate(tokens.split(1)):
        best = log_likelihood(model, tokens_of_row.expand(len(every), -1, -1), every).max()
        torch.testing.assert_close(log_likelihood(model, tokens_of_row, found[row : row + 1])[0], best)
        assert best >= greedy[row] - 1e-12
    assert (log_likelihood(model, tokens, found) > greedy + 1e-3).any()


def test_n_grams_are_not_repeated_if_forbidden():
    model, tokens = decoder(), image_tokens(8)
    model.words.lm_head.bias.data[END] = -50  # never comes to its end
    written = [model.generate(tokens, **SPECIAL, max_length=24, num_beams=2, no_repeat_ngram_size=n) for n in (0, 3)]
    runs = [[len(row) - len(set(row)) for row in zip_runs(ids, 3)] for ids in written]
    assert max(runs[0]) > 0
    assert max(runs[1]) == 0


def zip_runs(ids, length):
    return [list(zip(*(row[start:] for start in range(length)))) for row in ids.tolist()]


def test_samples_follow_the_softmax():
    model, tokens = decoder(), image_tokens(1).expand(4_000, -1, -1)
    torch.manual_seed(0)
    drawn = model.generate(tokens, **SPECIAL, max_length=2, temperature=2.0)[:, 1]
    probabilities = (model(tokens[:1], torch.tensor([[BEGIN]]))[0, 0] / 2).softmax(0)
    found = drawn.bincount(minlength=11) / len(drawn)
    assert (found - probabilities).abs().max() < 4 * (0.25 / len(drawn)) ** 0.5


@pytest.mark.parametrize("ends", [SPECIAL, dict.fromkeys(SPECIAL, 0)], ids=["three ids", "one id"])
def test_four_reports_are_memorised_and_generated_without_warnings(ends, capfd):
    torch.manual_seed(0)
    model = ReportDecoder(vocabulary_size=20, token_width=6, width=32, layers=1, heads=4, max_length=16, dropout=0.0)
    tokens = image_tokens().float()
    lengths = torch.tensor([5, 9, 12, 14])
    positions = torch.arange(14)
    ids = torch.randint(3, 20, (4, 14), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = ends["bos_token_id"]
    ids[positions == lengths[:, None] - 1] = ends["eos_token_id"]
    mask = positions < lengths[:, None]
    ids[~mask] = ends["pad_token_id"]
    targets = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens, ids[:, :-1], mask[:, :-1]).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for how in ({}, {"num_beams": 3}):
            assert torch.equal(model.generate(tokens, **ends, max_length=16, **how), ids)
    assert model.training
    assert capfd.readouterr() == ("", "")


def test_generation_uses_no_dropout_and_training_does():
    model, tokens = decoder(dropout=0.5).train(), image_tokens()
    assert torch.equal(*(model.generate(tokens, **SPECIAL, max_length=9) for _ in range(2)))
    ids = torch.full((4, 3), 5)
    assert not torch.equal(model(tokens, ids), model(tokens, ids))


def test_reports_that_are_too_long_are_refused():
    model = decoder()
    with pytest.raises(ValueError, match="25 tokens exceeds the decoder's max_length=24"):
        model(image_tokens(1), torch.ones(1, 25, dtype=torch.int64))
    with pytest.raises(ValueError, match="40 tokens exceeds"):
        model.generate(image_tokens(1), **SPECIAL, max_length=40)
    with pytest.raises(ValueError, match="at least 2"):
        model.generate(image_tokens(1), **SPECIAL, max_length=1)
    with pytest.raises(ValueError, match="heads=5 does not divide width=12"):
        ReportDecoder(vocabulary_size=5, token_width=6, width=12, heads=5)


def test_a_checkpoint_holds_every_tensor_once_and_fills_another_decoder():
    model, other = decoder(seed=1), decoder(seed=2)
    state = model.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    other.load_state_dict(state)
    ids = torch.randint(3, 11, (4, 5), generator=torch.Generator().manual_seed(1))
    assert torch.equal(other(image_tokens(), ids), model(image_tokens(), ids))


@pytest.mark.parametrize("name", SMALL)
def test_pyramid_tokens_of_every_encoder_have_a_gradient_into_every_map(name):
    encoder = small_encoder(name)
    tokens = PyramidTokens(encoder.pyramid_channels, 14)
    maps = [features.detach().requires_grad_() for features in encoder(volumes_and_mask()[0])]
    made = tokens(maps)
    assert made.shape == (2, 27, 14)
    (made * torch.randn(14)).sum().backward()
    assert all(features.grad.abs().max() > 0 for features in maps)


def test_a_pyramid_token_averages_its_cell_of_every_map():
    torch.manual_seed(0)
    fine, coarse = torch.randn(2, 4, 6, 9, 12), torch.randn(2, 5, 3, 3, 6)
    tokens = PyramidTokens((4, 5), 7)
    z, y, x = 2, 0, 1
    means = torch.cat([fine[:, :, 4:6, 0:3, 4:8].mean((2, 3, 4)), coarse[:, :, 2, 0, 2:4].mean(2)], 1)
    index = 9 * z + 3 * y + x
    expected = tokens.project(means) + tokens.position((3, 3, 3))[index]
    torch.testing.assert_close(tokens([fine, coarse])[:, index], expected)
