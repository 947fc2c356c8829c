"""The sentence of each token, for WordPiece and byte-level tokenizers on arbitrary text."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mg3d.datasets.tokenizer import SPECIAL_TOKENS, encode_report, train_wordpiece
from mg3d.sentence_spans import build_report

CORPUS = ["The heart is large. No effusion, no mass. A nodule of 0.8 cm.", "Emphysema  Hernia\n- şüpheli nodül; İzlenmedi."] * 3
PARTS = [
    "The", "heart", " ", "  ", ". ", ", ", "\n", "- ", "• ", "0.8 cm", "İzlenmedi", "ığş", "Noduleé",
    "结节", "🫁", "e\u0301", "(", ") ",
]  # fmt: skip
REPORTS = st.one_of(st.lists(st.sampled_from(PARTS), max_size=20).map("".join), st.text(max_size=40))
FEW_EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


def byte_level(*, trim_offsets, use_regex):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": list(SPECIAL_TOKENS), "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=400, **options)
    tokenizer.train_from_iterator([text.lower() for text in CORPUS], trainer)
    ends = [(word, tokenizer.token_to_id(word)) for word in ("[CLS]", "[SEP]")]
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim_offsets), template])
    kinds = {f"{kind.strip('[]').lower()}_token": kind for kind in SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kinds)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {
        "wordpiece": train_wordpiece(CORPUS, vocab_size=120, out_dir=tmp_path_factory.mktemp("tokenizer") / "wordpiece"),
        "byte_level": byte_level(trim_offsets=True, use_regex=True),
        "spaces_in_tokens": byte_level(trim_offsets=False, use_regex=True),
        "across_words": byte_level(trim_offsets=False, use_regex=False),
    }


def slow_index(offsets, spans):
    """Character by character: the only span that contains characters of the token; else -1."""
    sentences = []
    for start, end in offsets:
        owners = {k for position in range(start, end) for k, (first, last) in enumerate(spans) if first <= position < last}
        sentences.append(owners.pop() if len(owners) == 1 else -1)
    return sentences


@pytest.mark.parametrize("name", ["wordpiece", "byte_level", "spaces_in_tokens", "across_words"])
@pytest.mark.parametrize("kind", [0, 1])
@FEW_EXAMPLES
@given(report=REPORTS, longest=st.integers(3, 40))
def test_every_token_is_assigned_to_the_sentence_of_its_characters(tokenizers, name, kind, report, longest):
    tokenizer = tokenizers[name]
    report, every = build_report(report, None)
    spans = [(span.start, span.end) for span in every if span.kind == kind]
    whole = encode_report(tokenizer, report, spans, 10_000)
    text = "".join(small if len(small := letter.lower()) == 1 else letter for letter in report)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    owner = [spans.index(whole.sentence_spans[k]) if k >= 0 else -1 for k in whole.sentence_index]
    assert owner == slow_index(offsets, spans)
    cut = encode_report(tokenizer, report, spans, longest)
    length = len(cut.ids)
    assert length == min(longest, len(whole.ids))
    assert cut.ids[-1] == tokenizer.sep_token_id
    np.testing.assert_array_equal(cut.ids[:-1], whole.ids[: length - 1])
    assert [cut.sentence_spans[k] if k >= 0 else None for k in cut.sentence_index[:-1]] == [
        whole.sentence_spans[k] if k >= 0 else None for k in whole.sentence_index[: length - 1]
    ]
    assert set(cut.sentence_index) - {-1} == set(range(len(cut.sentence_spans)))
    assert all(before[1] <= after[0] for before, after in pairwise(cut.sentence_spans))


def test_a_leading_space_in_a_token_does_not_lose_the_first_word(tokenizers):
    report = "The heart is large. No effusion."
    for name, tokenizer in tokenizers.items():
        encoded = encode_report(tokenizer, report, [(0, 19), (20, 32)], 99)
        if name != "across_words":
            assert (encoded.sentence_index[1:-1] >= 0).all(), name
        assert encoded.sentence_spans == ((0, 19), (20, 32))
