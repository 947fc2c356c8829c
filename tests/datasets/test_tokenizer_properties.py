"""Which sentence a token belongs to, for a WordPiece and two byte-level tokenizers on any text."""

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
    "The",
    "heart",
    " ",
    "  ",
    ". ",
    ", ",
    "\n",
    "- ",
    "• ",
    "0.8 cm",
    "İzlenmedi",
    "ığş",
    "Noduleé",
    "结节",
    "🫁",
    "e\u0301",
    "(",
    ") ",
]
REPORTS = st.one_of(st.lists(st.sampled_from(PARTS), max_size=20).map("".join), st.text(max_size=40))
FEW = settings(max_examples=60, deadline=None, derandomize=True)


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


def slow_index(offsets, units):
    """Character by character: the one unit that holds all those characters of a token which any unit holds; else -1."""
    found = []
    for start, end in offsets:
        owners = {number for place in range(start, end) for number, (first, last) in enumerate(units) if first <= place < last}
        found.append(owners.pop() if len(owners) == 1 else -1)
    return found


@pytest.mark.parametrize("name", ["wordpiece", "byte_level", "spaces_in_tokens", "across_words"])
@pytest.mark.parametrize("kind", [0, 1])
@FEW
@given(report=REPORTS, longest=st.integers(3, 40))
def test_tokens_belong_to_the_sentence_whose_characters_they_are(tokenizers, name, kind, report, longest):
    tokenizer = tokenizers[name]
    report, every = build_report(report, None)
    units = [(unit.start, unit.end) for unit in every if unit.kind == kind]
    whole = encode_report(tokenizer, report, units, 10_000)
    text = "".join(small if len(small := letter.lower()) == 1 else letter for letter in report)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    owner = [units.index(whole.sentence_spans[place]) if place >= 0 else -1 for place in whole.sentence_index]
    assert owner == slow_index(offsets, units)
    cut = encode_report(tokenizer, report, units, longest)
    kept = len(cut.ids)
    assert kept == min(longest, len(whole.ids))
    assert cut.ids[-1] == tokenizer.sep_token_id
    np.testing.assert_array_equal(cut.ids[:-1], whole.ids[: kept - 1])
    assert [cut.sentence_spans[place] if place >= 0 else None for place in cut.sentence_index[:-1]] == [
        whole.sentence_spans[place] if place >= 0 else None for place in whole.sentence_index[: kept - 1]
    ]
    assert set(cut.sentence_index) - {-1} == set(range(len(cut.sentence_spans)))
    assert all(before[1] <= after[0] for before, after in pairwise(cut.sentence_spans))


def test_a_space_in_a_token_does_not_cost_a_sentence_its_first_word(tokenizers):
    report = "The heart is large. No effusion."
    for name, tokenizer in tokenizers.items():
        encoded = encode_report(tokenizer, report, [(0, 19), (20, 32)], 99)
        if name != "across_words":
            assert (encoded.sentence_index[1:-1] >= 0).all(), name
        assert encoded.sentence_spans == ((0, 19), (20, 32))
