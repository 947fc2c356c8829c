"""The words of reports that are to be written."""

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
def test_cleaning_is_the_originals(text, cleaned):
    assert clean_m2kt(text) == cleaned
    assert clean_m2kt(cleaned) == cleaned


def test_words_seen_three_times_have_ids_from_one_in_alphabetical_order():
    words = M2KTTokenizer.fit(REPORTS)
    assert words.words == (".", "<unk>", "effusion", "is", "no", "the")
    assert len(words) == 7
    assert words.encode("No effusion, the heart.").tolist() == [0, 5, 3, 6, 2, 1, 0]
    assert words.decode([0, 5, 3, 6, 2, 1, 0, 3]) == "no effusion the <unk> ."
    assert words.decode([5, 3]) == "no effusion"


def test_known_words_come_back_as_the_cleaned_report():
    words = M2KTTokenizer.fit(REPORTS, least_count=1)
    for report in REPORTS:
        assert words.decode(words.encode(report)) == words.clean(report)
        assert words.decode(M2KTTokenizer(list(words.words)).encode(report)[1:]) == words.clean(report)


@pytest.mark.parametrize("kind", [M2KTTokenizer, LosslessTokenizer])
def test_a_long_report_keeps_its_first_words_and_its_end(kind):
    words = kind.fit(REPORTS)
    long = words.encode("effusion no " * 200, 150)
    assert long.dtype == np.int64
    assert len(long) == 150
    assert (long[0], long[-1]) == (words.begin, words.end)
    assert words.end not in long[1:-1]
    assert ("effusion no " * 200).startswith(words.decode(long))


@given(st.text(st.sampled_from(string.printable), max_size=60))
def test_any_printable_ascii_text_comes_back_but_for_its_white_space(text):
    words = LosslessTokenizer.fit(REPORTS)
    ids = words.encode(text, 200)
    assert words.decode(ids) == " ".join(text.split())
    assert max(ids) < len(words)


def test_faithful_words_keep_case_signs_numbers_and_letters_of_their_reports():
    words = LosslessTokenizer.fit([*REPORTS, "Größe 3×4 mm"])
    for report in (*REPORTS, "1.  Größe 12×7.05 mm (Nodule)!"):
        assert words.decode(words.encode(report, 200)) == " ".join(report.split())
    assert words.decode(words.encode("ø", 9)) == "[UNK]"
    whole = words.encode("The heart is normal.", 99)
    assert len(whole) == 2 + 5
    again = LosslessTokenizer(list(words.words))
    assert again.encode("The heart is normal.", 99).tolist() == whole.tolist()
    assert (words.padding, len(LosslessTokenizer.fit(REPORTS, most=210))) == (0, 210)


def test_lists_that_are_no_words_are_refused():
    with pytest.raises(ValueError, match="3 words, 2 of them different"):
        M2KTTokenizer(["<unk>", "a", "a"])
    with pytest.raises(ValueError, match="holds <unk>"):
        M2KTTokenizer(["a"])
    with pytest.raises(ValueError, match=r"begins with \[PAD\]"):
        LosslessTokenizer(["a", "b"])
