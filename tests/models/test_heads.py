import pytest
import torch
from torch.nn import functional as F

from mg3d.models.heads import MLMHead


def head_and_words(asked=11, vocabulary=23, width=6):
    torch.manual_seed(0)
    head = MLMHead(width, vocabulary).double()
    labels = torch.full((2, 9), -100)
    labels.view(-1)[torch.randperm(18)[:asked]] = torch.randint(vocabulary, (asked,))
    return head, torch.randn(2, 9, width, dtype=torch.float64, requires_grad=True), labels


@pytest.mark.parametrize("at_once", [1, 3, 4, 10, 11, 50])
def test_words_in_parts_surprise_as_all_together_in_value_and_gradient(at_once):
    head, words, labels = head_and_words()
    logits = head.decoder(words) + head.bias
    plain = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")[labels.flatten() >= 0]
    weighted = torch.rand(11, dtype=torch.float64)
    expected = torch.autograd.grad((plain * weighted).sum(), (words, head.decoder.weight, head.bias))
    parts = head.token_loss(words, labels, at_once=at_once)
    torch.testing.assert_close(parts, plain)
    found = torch.autograd.grad((parts * weighted).sum(), (words, head.decoder.weight, head.bias))
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


def test_what_is_kept_for_the_gradient_does_not_grow_with_words_times_vocabulary():
    kept = []
    head, words, labels = head_and_words(asked=16, vocabulary=5000)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        head.token_loss(words, labels, at_once=4)
        in_parts, kept = sum(size for size in kept if size != head.decoder.weight.numel()), []
        head.token_loss(words, labels)
    assert in_parts < 1000
    assert sum(kept) > 16 * 5000


def test_no_asked_word_gives_nothing_with_a_graph():
    head, words, labels = head_and_words(asked=0)
    head.token_loss(words, labels).sum().backward()
    assert words.grad.abs().max() == 0
