"""Polarity of sentences by the categories of NegEx and ConText, and of clauses in the context of their sentence."""

from pathlib import Path

import pytest

from mg3d.languages import LANGUAGES, language_of
from mg3d.polarity import AFFIRMED, NEGATED, UNCERTAIN, polarity, span_polarities
from mg3d.sentence_spans import build_report, split_clauses

SIGNS = {"+": AFFIRMED, "-": NEGATED, "?": UNCERTAIN}


def sentences(name):
    """(polarity, sentence, language) of a file; the heading `# German` changes the language."""
    language = "english"
    for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            language = "german" if "German" in line else "english"
        else:
            yield SIGNS[line[0]], line[2:], LANGUAGES[language]


def test_97_of_100_sentences_have_the_right_polarity():
    rows = [*sentences("polarity_development.txt"), *sentences("polarity_held_out.txt")]
    wrong = [text for expected, text, language in rows if polarity(text, language) != expected]
    assert len(rows) > 500
    assert len(wrong) <= 0.03 * len(rows), wrong


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("No effusion, pneumothorax, or consolidation.", "---"),
        ("No effusion, small nodule of the apex.", "-+"),
        ("Possible mass, consolidation or atelectasis, no effusion.", "??-"),
        ("Effusion, pneumothorax and consolidation are not seen.", "--"),
        ("Trachea, both main bronchi are open.", "--"),
        ("Mediastinal main vascular structures, heart contour, size are normal.", "---"),
        ("Emphysema, fibrosis, the heart is normal.", "++-"),
        ("No mass, emphysema is present, fibrosis or scar.", "-++"),
        ("A nodule in the left lobe, bilaterally.", "++"),
        ("No increase in the left pleural effusion, no increase in heart size.", "+-"),
        ("Pneumothorax: No", "-"),
        ("Nodule (5 mm, solid), no effusion; mild scar.", "+-+"),
    ],
)
def test_clauses_are_read_in_the_context_of_their_sentence(sentence, expected):
    spans = split_clauses(sentence)
    assert span_polarities(sentence, spans) == [SIGNS[sign] for sign in expected]


def test_a_report_gives_the_language_of_its_sentences():
    report, spans = build_report("Das Herz ist normal. Mögliche Pneumonie. Weder Erguss noch Rundherd.", None)
    assert language_of(report) is LANGUAGES["german"]
    sentences = [(span.start, span.end) for span in spans if span.kind == 0]
    assert span_polarities(report, sentences) == [NEGATED, UNCERTAIN, NEGATED]


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_word_of_a_table_is_lower_case_without_final_full_stop(name):
    language = LANGUAGES[name]
    for table in (language.function_words, language.open_words, language.abbreviations, language.abbreviations_before_number):
        assert all(word == word.lower().strip().removesuffix(".") for word in table)


def test_letters_whose_lower_case_is_longer_do_not_shift_clauses():
    sentence = "İİİİİİİİ Nodül, no effusion."
    assert span_polarities(sentence, split_clauses(sentence)) == [AFFIRMED, NEGATED]
