import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg3d.datasets.report_tokenizers import LosslessTokenizer, M2KTTokenizer, clean_m2kt

REPORTS = (
    "The heart is normal. No pleural effusion is seen.",
    "Nodule of 0.8 cm in the left lower lobe; no effusion.",
    "The heart is normal.\nNo effusion (left), no effusion [right].",
)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("The heart is normal. No effusion.", "the heart is normal . no effusion ."),
        ("A nodule of 0.8 cm, left lobe", "a nodule of 08 cm left lobe ."),
        ("1. Normal. 2. Cyst (5 mm)..\nOld  3. __x__", "normal . cyst 5 mm . old . x ."),
        ('thin-walled 3×4 <"a"> [b] c=d; e/f', "thin-walled 3×4 a b cd ef ."),
    ],
)
def test_cleaning_matches_the_original(text, cleaned):
    assert clean_m2kt(text) == cleaned
    assert clean_m2kt(cleaned) == cleaned


def test_words_seen_three_times_have_ids_from_one_in_alphabetical_order():
    tokenizer = M2KTTokenizer.fit(REPORTS)
    assert tokenizer.vocabulary == (".", "<unk>", "effusion", "is", "no", "the")
    assert len(tokenizer) == 7
    assert tokenizer.encode("No effusion, the heart.", 150).tolist() == [0, 5, 3, 6, 2, 1, 0]
    assert tokenizer.decode([0, 5, 3, 6, 2, 1, 0, 3]) == "no effusion the <unk> ."
    assert tokenizer.decode([5, 3]) == "no effusion"


def test_known_words_decode_to_the_cleaned_report():
    tokenizer = M2KTTokenizer.fit(REPORTS, min_count=1)
    for report in REPORTS:
        assert tokenizer.decode(tokenizer.encode(report, 150)) == tokenizer.clean(report)
        assert tokenizer.decode(M2KTTokenizer(list(tokenizer.vocabulary)).encode(report, 150)[1:]) == tokenizer.clean(report)


@pytest.mark.parametrize("kind", [M2KTTokenizer, LosslessTokenizer])
def test_a_truncated_report_keeps_its_first_words_and_its_eos(kind):
    tokenizer, report = kind.fit(REPORTS), "effusion no " * 200
    ids = tokenizer.encode(report, 150)
    assert ids.dtype == np.int64
    assert len(ids) == 150
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert tokenizer.eos_id not in ids[1:-1]
    assert report.startswith(tokenizer.decode(ids))


@given(st.text(st.sampled_from(string.printable), max_size=60))
def test_printable_ascii_is_restored_except_for_white_space(text):
    tokenizer = LosslessTokenizer.fit(REPORTS)
    ids = tokenizer.encode(text, 200)
    assert tokenizer.decode(ids) == " ".join(text.split())
    assert max(ids) < len(tokenizer)


def test_the_lossless_tokenizer_keeps_case_punctuation_numbers_and_letters_of_its_reports():
    tokenizer = LosslessTokenizer.fit([*REPORTS, "Größe 3×4 mm"])
    for report in (*REPORTS, "1.  Größe 12×7.05 mm (Nodule)!"):
        assert tokenizer.decode(tokenizer.encode(report, 200)) == " ".join(report.split())
    assert tokenizer.decode(tokenizer.encode("ø", 9)) == "[UNK]"
    ids = tokenizer.encode("The heart is normal.", 99)
    assert len(ids) == 2 + 5
    assert LosslessTokenizer(list(tokenizer.vocabulary)).encode("The heart is normal.", 99).tolist() == ids.tolist()
    assert (tokenizer.pad_id, len(LosslessTokenizer.fit(REPORTS, max_size=210))) == (0, 210)


@pytest.mark.parametrize(
    ("kind", "vocabulary", "message"),
    [
        (M2KTTokenizer, ["<unk>", "a", "a"], "3 entries, but only 2 distinct"),
        (M2KTTokenizer, ["a"], "lacks <unk>"),
        (LosslessTokenizer, ["a", "b"], r"begin with \[PAD\]"),
    ],
)
def test_invalid_vocabularies_are_refused(kind, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        kind(vocabulary)
